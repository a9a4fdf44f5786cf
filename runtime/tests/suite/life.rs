//! Life and death of containers.

use runtime::client::{ContainerState, ExitRecord, LauncherKind};

use crate::support::{Pod, TestSpec};

/// Both streams are in the log, the exit is an event and a record.
pub async fn output_and_exit_code_are_recorded(launcher: LauncherKind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell("echo out; echo err >&2; printf half; exit 3");
    let container = pod.create(&spec).await;
    let started = pod.start(&container).await;
    let record = pod.exit(&container).await;
    assert_eq!(
        (record.exit_code, record.signal, record.oom_killed),
        (3, None, false)
    );
    assert_eq!(record.started_at, started.started_at);
    assert!(record.finished_at >= record.started_at);
    let mut log = container.log();
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out", "stdout P half"]);
    assert_eq!(ExitRecord::read_dir(&pod.exit_dir()).unwrap(), [record]);
    pod.end().await;
}

/// Nothing of the container's runs before it is started.
pub async fn created_container_waits_for_its_start(launcher: LauncherKind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod.create(&TestSpec::shell("touch /ran")).await;
    let list = pod.monitor.list().await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].state, ContainerState::Created);
    assert_eq!(list[0].pid, container.created.pid);
    assert!(!container.upper.join("ran").exists());
    pod.start(&container).await;
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    assert!(container.upper.join("ran").exists());
    pod.end().await;
}
