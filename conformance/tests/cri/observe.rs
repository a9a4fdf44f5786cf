//! What the engine tells of its own work: the step clock and the metrics.

use std::process::Command;

use conformance::engine::executable;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::rig::{Rig, with_own_engine};

/// The answer of `slipway trace --json`.
fn trace(rig: &Rig, pod: &str) -> Vec<Value> {
    let output = Command::new(executable().expect("slipway"))
        .args(["trace", "--json", "--socket"])
        .arg(rig.engine.socket())
        .arg("--svg")
        .arg(rig.engine.path("trace.svg"))
        .arg(pod)
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("a list")
}

#[test]
fn a_pods_last_calls_tell_their_steps_in_both_processes() {
    with_own_engine(async |rig| {
        let sandbox = rig.sandbox("traced");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let config = rig.container("main", &["/bin/sleep", "1000"]);
        let id = rig
            .client
            .create(&pod, &config, &sandbox)
            .await
            .expect("create");
        rig.client.start(&id).await.expect("start");
        for _ in 0..2 {
            rig.client.exec(&id, &["/bin/true"], 5).await.expect("exec");
        }
        rig.client.stop(&id, 0).await.expect("stop");
        // The beginning of an id is enough.
        let calls = trace(rig, &pod[..12]);
        let names: Vec<_> = calls
            .iter()
            .map(|call| call["rpc"].as_str().expect("a name"))
            .collect();
        let wanted = [
            "RunPodSandbox",
            "CreateContainer",
            "StartContainer",
            "ExecSync",
            "StopContainer",
        ];
        assert_eq!(names, wanted, "each once, by their beginning");
        for call in &calls {
            let took = call["took"].as_u64().expect("a time");
            let steps = call["steps"].as_array().expect("steps");
            for step in steps {
                let (start, end) = (
                    step["start"].as_u64().expect("ns"),
                    step["end"].as_u64().expect("ns"),
                );
                assert!(start <= end && end <= took, "{step} of {call}");
            }
            let part = steps
                .iter()
                .find(|step| step["place"] == "monitor")
                .expect("a monitor's step");
            let whole = usize::try_from(part["parent"].as_u64().expect("a whole")).expect("small");
            assert!(
                steps[whole]["name"]
                    .as_str()
                    .expect("a name")
                    .starts_with("monitor: "),
                "{call}"
            );
        }
        assert!(
            calls[0]["steps"]
                .as_array()
                .expect("steps")
                .iter()
                .any(|step| step["name"] == "network")
        );
        assert_eq!(calls[1]["container"], id.as_str());
        let svg = std::fs::read_to_string(rig.engine.path("trace.svg")).expect("a picture");
        assert!(svg.contains("RunPodSandbox"));
    });
}

/// What a scraper gets.
async fn scrape(rig: &Rig, path: &str) -> String {
    let mut stream = UnixStream::connect(rig.engine.path("metrics.sock"))
        .await
        .expect("a listener");
    let request = format!("GET {path} HTTP/1.1\r\nHost: slipway\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[test]
fn metrics_are_served_where_they_are_configured_and_nowhere_else() {
    with_own_engine(async |rig| {
        assert!(!rig.engine.path("metrics.sock").exists());
        rig.engine.terminate().expect("ended");
        let config = format!(
            "[metrics]\nlisten = {:?}\n",
            rig.engine.path("metrics.sock")
        );
        std::fs::write(rig.engine.path("config/40-metrics.toml"), config).expect("written");
        rig.client = rig.engine.start().await.expect("an engine");
        let sandbox = rig.sandbox("counted");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let missing = rig.client.start("0123456789").await;
        assert!(missing.is_err());
        let text = scrape(rig, "/metrics").await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        for line in [
            r#"slipway_rpc_seconds_count{rpc="RunPodSandbox",code="0"} 1"#,
            r#"slipway_rpc_seconds_count{rpc="StartContainer",code="5"} 1"#,
            r#"slipway_step_seconds_count{rpc="RunPodSandbox",step="network"} 1"#,
            r#"slipway_pods{state="ready"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(scrape(rig, "/").await.starts_with("HTTP/1.1 404 "));
        rig.client.stop_pod(&pod).await.expect("stop");
        let text = scrape(rig, "/metrics").await;
        assert!(
            text.contains(r#"slipway_pods{state="notready"} 1"#),
            "{text}"
        );
        rig.engine.terminate().expect("ended");
        assert!(!rig.engine.path("metrics.sock").exists());
    });
}
