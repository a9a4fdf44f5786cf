//! A log whose disk stalls, and pods whose monitor is of an earlier build.

use std::path::Path;
use std::time::{Duration, Instant};

use conformance::eventually;
use proto::v1;

use crate::rig::{Rig, deadline, monitor_pid, with_own_engine};
use crate::stall::Disk;

/// What waits for no disk takes less.
fn prompt() -> Duration {
    conformance::patient(5)
}

/// The conditions of the engine, by their names.
async fn condition(rig: &mut Rig, name: &str) -> v1::RuntimeCondition {
    let request = v1::StatusRequest::default();
    let answer = rig.client.runtime.status(request).await.expect("status");
    let conditions = answer.into_inner().status.expect("there").conditions;
    let found = conditions.into_iter().find(|one| one.r#type == name);
    found.expect("a condition")
}

#[test]
fn a_log_that_stalls_is_told_and_holds_up_nothing_else() {
    with_own_engine(async |rig| {
        let folder = rig.engine.path("logs/disk");
        std::fs::create_dir_all(&folder).expect("a mount point");
        let disk = Disk::mount(&folder, &rig.engine.path("disk.img"));
        let sandbox = rig.sandbox("disk");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let quiet = rig.container("quiet", &["/bin/sleep", "1000"]);
        let quiet = rig.started(&pod, &quiet, &sandbox).await;
        let script = "echo 0; sleep 1; i=1; while :; do echo $i; i=$((i+1)); done";
        let noisy = rig.container("noisy", &["/bin/sh", "-c", script]);
        let noisy = rig.started(&pod, &noisy, &sandbox).await;
        let log = folder.join("noisy/0.log");
        let written = || std::fs::metadata(&log).is_ok_and(|file| file.len() > 0);
        eventually(deadline(), async || written().then_some(()))
            .await
            .expect("a line");
        disk.freeze();
        let mut client = rig.client.clone();
        let stalled = eventually(deadline() * 2, async || {
            let request = v1::StatusRequest::default();
            let answer = client.runtime.status(request).await.ok()?;
            let conditions = answer.into_inner().status?.conditions;
            let mut conditions = conditions.into_iter();
            conditions.find(|one| one.r#type == "ContainerLogsFlow" && !one.status)
        });
        let stalled = stalled.await.expect("told");
        assert_eq!(stalled.reason, "LogDiskStalled");
        assert!(stalled.message.contains(&noisy), "{stalled:?}");
        for name in ["RuntimeReady", "NetworkReady"] {
            assert!(condition(rig, name).await.status, "{name}");
        }
        let begun = Instant::now();
        for id in [&quiet, &noisy] {
            let output = rig.client.exec(id, &["echo", "here"], 5).await;
            assert_eq!(output.expect("exec").stdout, "here\n");
            rig.client.stop(id, 0).await.expect("stop");
            assert_eq!(rig.exited(id).await.exit_code, 137);
        }
        assert!(begun.elapsed() < prompt(), "{:?}", begun.elapsed());
        // Not even the pod's end waits, and the writer that is stuck goes on behind it.
        let begun = Instant::now();
        rig.client.stop_pod(&pod).await.expect("stop");
        rig.client.remove_pod(&pod).await.expect("remove");
        assert!(begun.elapsed() < 2 * prompt(), "{:?}", begun.elapsed());
        disk.thaw();
        let mut client = rig.client.clone();
        let flows = eventually(deadline(), async || {
            let request = v1::StatusRequest::default();
            let answer = client.runtime.status(request).await.ok()?;
            let conditions = answer.into_inner().status?.conditions;
            let mut conditions = conditions.into_iter();
            conditions.find(|one| one.r#type == "ContainerLogsFlow" && one.status)
        });
        flows.await.expect("its end is told");
        let text = written_to_its_end(&log).await;
        let whole = text.lines().filter(|line| line.contains(" F "));
        assert!(
            whole.clone().count() > 1000,
            "what was in the pipes is there"
        );
        let last = whole.clone().count() - 1;
        for (number, line) in whole.enumerate() {
            let said = line.rsplit(' ').next().unwrap_or_default();
            let number = number.to_string();
            // A process that is killed while the pipe is full has written part of a line.
            let cut = said.len() < number.len() && number.starts_with(said);
            let may_be_cut = last.to_string() == number;
            assert!(said == number || may_be_cut && cut, "{number}: {line}");
        }
    });
}

/// What a log holds once it has not grown for a moment.
async fn written_to_its_end(log: &Path) -> String {
    let mut before = 0;
    let text = eventually(deadline(), async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let text = std::fs::read_to_string(log).ok()?;
        (std::mem::replace(&mut before, text.len()) == text.len()).then_some(text)
    });
    text.await.expect("a log")
}

#[test]
fn a_living_pod_gets_the_monitor_of_a_newer_engine() {
    with_own_engine(async |rig| {
        let script = "i=0; while :; do echo tick$i; i=$((i+1)); sleep 0.01; done";
        let (pod, id) = rig.running("upgraded", &["/bin/sh", "-c", script]).await;
        rig.log_with("upgraded", "tick10").await;
        let monitor = monitor_pid(&rig.client.pod(&pod).await.expect("status"));
        let program = || std::fs::metadata(format!("/proc/{monitor}/exe")).map(|file| inode(&file));
        let before = program().expect("a monitor");
        rig.engine.become_another_build().expect("another build");
        rig.crash_and_restart().await;
        let upgraded = eventually(deadline(), async || {
            let now = program().ok()?;
            (now != before).then_some(())
        });
        upgraded.await.expect("the monitor is of the new build");
        let after = rig.client.pod(&pod).await.expect("status");
        assert_eq!(monitor_pid(&after), monitor, "the process stays");
        let output = rig.client.exec(&id, &["echo", "alive"], 5).await;
        assert_eq!(output.expect("exec").stdout, "alive\n");
        let log = std::fs::read_to_string(rig.engine.path("logs/upgraded/main/0.log"));
        let last = log.expect("log").lines().count();
        rig.log_with("upgraded", &format!("tick{}", last + 10))
            .await;
        rig.client.stop(&id, 0).await.expect("stop");
        let log = std::fs::read_to_string(rig.engine.path("logs/upgraded/main/0.log"));
        for (number, line) in log.expect("log").lines().enumerate() {
            assert!(line.ends_with(&format!(" F tick{number}")), "{line}");
        }
    });
}

fn inode(file: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}
