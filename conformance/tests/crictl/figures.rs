//! What is measured, and what is told when it happens.

use std::time::Instant;

use serde_json::Value;

use crate::crictl::{Crictl, wait_for};
use crate::rig::{Rig, deadline, with_own_engine};

/// Two pods with a container each, which use a bit of a processor.
async fn two_pods(rig: &mut Rig) -> [(String, String); 2] {
    let busy = [
        "sh",
        "-c",
        "while :; do i=0; while [ $i -lt 999 ]; do i=$((i+1)); done; sleep 0.1; done",
    ];
    [
        rig.running("one", &busy).await,
        rig.running("two", &busy).await,
    ]
}

fn value(of: &Value, path: &str) -> u64 {
    let found = of
        .pointer(path)
        .unwrap_or_else(|| panic!("{path} is not in {of}"));
    let number = found.as_str().and_then(|text| text.parse().ok());
    number.unwrap_or_else(|| panic!("{path} is {found}"))
}

#[test]
fn containers_and_pods_have_statistics_as_tables_and_as_figures() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let [(one, first), (two, second)] = two_pods(rig).await;
        let listed = wait_for("measured layers", || {
            let listed = crictl.json(&["stats", "-o", "json"]);
            let all = listed["stats"].as_array().expect("statistics").clone();
            let measured = |one: &Value| one["writableLayer"].is_object();
            all.iter().all(measured).then_some(all)
        });
        assert_eq!(listed.len(), 2);
        for line in &listed {
            assert!(value(line, "/cpu/usageCoreNanoSeconds/value") > 0);
            assert!(value(line, "/memory/workingSetBytes/value") > 0);
            assert_eq!(line["attributes"]["metadata"]["name"], "main");
        }
        for words in [
            ["stats", "-o", "json", "--id", &first[..10]],
            ["stats", "-o", "json", "-p", &one[..10]],
        ] {
            let listed = crictl.json(&words);
            assert_eq!(listed["stats"].as_array().map(Vec::len), Some(1));
            assert_eq!(listed["stats"][0]["attributes"]["id"], *first);
        }
        let table = crictl.lines(&["stats"]);
        assert!(table[0].contains("CONTAINER"), "{table:?}");
        assert_eq!(table.len(), 3, "{table:?}");
        for id in [&first, &second] {
            let mut lines = table.iter().filter(|line| line.starts_with(&id[..13]));
            let line = lines.next().expect("a line");
            let cpu = line.split_whitespace().nth(2).expect("a share");
            assert!(cpu.parse::<f64>().expect("a number") > 0.0, "{line}");
        }
        let listed = crictl.json(&["statsp", "-o", "json"]);
        assert_eq!(listed["stats"].as_array().map(Vec::len), Some(2));
        let listed = crictl.json(&["statsp", "-o", "json", "--id", &two[..10]]);
        let line = &listed["stats"][0];
        assert_eq!(line["attributes"]["id"], *two);
        assert_eq!(line["linux"]["containers"][0]["attributes"]["id"], *second);
        assert_eq!(line["linux"]["network"]["defaultInterface"]["name"], "eth0");
        let table = crictl.lines(&["statsp"]);
        assert!(table[0].contains("POD"), "{table:?}");
        assert_eq!(table.len(), 3, "{table:?}");
    });
}

#[test]
fn pods_have_a_value_for_each_metric_that_is_described() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let pods = two_pods(rig).await;
        let described = crictl.json(&["metricdescs"]);
        let described = described["descriptors"].as_array().expect("descriptors");
        assert!(described.len() > 40);
        let metrics = crictl.json(&["metricsp"]);
        let metrics = metrics["podMetrics"].as_array().expect("pods");
        assert_eq!(metrics.len(), 2);
        for (pod, container) in &pods {
            let mut found = metrics.iter().filter(|one| one["podSandboxId"] == **pod);
            let found = found.next().expect("the pod");
            let of_container = &found["containerMetrics"][0];
            assert_eq!(of_container["containerId"], **container);
            let named = |list: &Value, name: &Value| {
                let list = list.as_array().expect("metrics");
                list.iter().any(|one| one["name"] == *name)
            };
            for one in described {
                let keys = one["labelKeys"].as_array().expect("labels");
                assert!(!keys.is_empty() && one["help"] != "", "{one}");
                let name = &one["name"];
                let has_value =
                    named(&found["metrics"], name) || named(&of_container["metrics"], name);
                assert!(has_value, "{one}");
            }
        }
    });
}

#[test]
fn events_tell_a_containers_life() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let template = "{{.containerEventType}} {{.containerId}}";
        let words = ["events", "-o", "go-template", "--template", template];
        let listener = crictl.begin(&words);
        let whole = crictl.begin(&["events"]);
        // Only who has asked already is told: something happens until both are.
        let end = Instant::now() + deadline();
        let mut round = 0;
        while listener.said().is_empty() || whole.said().is_empty() {
            assert!(Instant::now() < end, "no event is told");
            rig.running(&format!("probe-{round}"), &["true"]).await;
            round += 1;
        }
        let (pod, id) = rig.running("told", &["true"]).await;
        rig.exited(&id).await;
        rig.client.remove(&id).await.expect("remove");
        rig.client.stop_pod(&pod).await.expect("stop");
        rig.client.remove_pod(&pod).await.expect("remove");
        let ids = [
            ("STARTED", &pod),
            ("CREATED", &id),
            ("STARTED", &id),
            ("STOPPED", &id),
            ("DELETED", &id),
            ("STOPPED", &pod),
            ("DELETED", &pod),
        ];
        let mut rest = listener.until(&format!("CONTAINER_DELETED_EVENT {pod}\n"));
        for (what, id) in ids {
            let event = format!("CONTAINER_{what}_EVENT {id}\n");
            let (_, after) = rest
                .split_once(&event)
                .unwrap_or_else(|| panic!("{event} is not in {rest}"));
            rest = after.to_owned();
        }
        whole.until(&format!("\"containerId\": \"{id}\""));
        whole.interrupt();
        let said = whole.ended();
        assert!(said.stderr.contains("interrupted"), "{}", said.stderr);
    });
}
