//! A log whose disk stalls, or whose writer dies, and exit records on a full disk: whoever
//! launches.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::client::{Event, ExitRecord, MonitorError};
use rustix::process::{Pid, Signal};

use crate::support::{FullDisk, Kind, Pod, StallingDisk, TestContainer, TestSpec, wait_until};

/// What must not wait for a disk takes less than this, on a busy machine too.
const PROMPT: Duration = Duration::from_secs(4);
/// More output than pipes and buffers on the way to a log hold.
const FLOOD: &str = "seq 1 2000000";

/// Processes of a monitor that write logs.
fn writers(pod: &Pod) -> Vec<Pid> {
    let monitor = pod.monitor.pid();
    let path = format!("/proc/{monitor}/task/{monitor}/children");
    let children = std::fs::read_to_string(path).unwrap();
    children
        .split_whitespace()
        .filter(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == "slipway-log")
        })
        .map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap())
        .collect()
}

async fn run_with_log(pod: &mut Pod, spec: &TestSpec, log: PathBuf) -> TestContainer {
    let container = pod
        .create_with(spec, |request| request.log_path = Some(log))
        .await
        .unwrap();
    pod.start(&container).await;
    container
}

/// The numbers in a log, which were written one a line. The last line may be cut
/// off by the end of who wrote it.
fn numbers(log: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(log).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.pop_if(|line| line.contains(" P "));
    let whole = lines.iter().map(|line| line.rsplit_once(" F ").unwrap().1);
    whole.map(|number| number.parse().unwrap()).collect()
}

async fn prompt<T>(what: &str, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = tokio::time::timeout(PROMPT, work).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {:?}", begun.elapsed()))
}

/// A stalled log holds up the output of its container, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_log_holds_up_its_container_only() {
    let Some(mut disk) = StallingDisk::new() else {
        return;
    };
    let mut pod = Pod::new(Kind::Native).await;
    let quiet = pod.run(&TestSpec::new(&["sleep", "1000"])).await;
    let log = disk.path().join("0.log");
    let script = format!("echo 0; sleep 1; {FLOOD}; touch /done; sleep 1000");
    let noisy = run_with_log(&mut pod, &TestSpec::shell(&script), log.clone()).await;
    noisy_logged(&log, 1);
    disk.freeze();
    let stalled = Event::Log {
        container: noisy.id.clone(),
        stalled: true,
    };
    assert_eq!(pod.event().await, stalled);
    let done = TestSpec::shell("[ -e /done ] || echo held up");
    let ended = prompt("exec", pod.exec(&noisy, &done)).await.unwrap();
    assert_eq!(ended.stdout, "held up\n");
    let echo = TestSpec::new(&["echo", "here"]);
    let ended = prompt("exec", pod.exec(&quiet, &echo)).await.unwrap();
    assert_eq!(ended.stdout, "here\n");
    prompt("list", pod.monitor.list()).await.unwrap();
    for container in [&quiet, &noisy] {
        pod.monitor.signal(&container.id, 9).await.unwrap();
        let code = prompt("exit", pod_exit(&mut pod.events, container)).await;
        assert_eq!(code, 137);
        prompt("delete", pod.monitor.delete(&container.id))
            .await
            .unwrap();
    }
    disk.thaw();
    // What was written is there to the last whole line, in order.
    let mut seen = 0;
    let is_done = || {
        let length = std::fs::metadata(&log).unwrap().len();
        std::mem::replace(&mut seen, length) == length && writers(&pod).is_empty()
    };
    assert!(wait_until(is_done), "a writer is left: {:?}", writers(&pod));
    let found = numbers(&log);
    assert!(found.len() > 10_000, "{}", found.len());
    assert!(found.iter().copied().eq(0..found.len() as u64));
    pod.end().await;
}

fn noisy_logged(log: &Path, lines: usize) {
    assert!(wait_until(|| numbers(log).len() >= lines));
}

async fn pod_exit(
    events: &mut tokio::sync::mpsc::UnboundedReceiver<Event>,
    container: &TestContainer,
) -> i32 {
    loop {
        match events.recv().await.unwrap() {
            Event::Exited(record) if record.container == container.id => return record.exit_code,
            Event::Gone => panic!("the monitor died"),
            _ => {}
        }
    }
}

/// A stall is told, and so is its end; then everything is in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stall_is_told_and_loses_nothing() {
    let Some(mut disk) = StallingDisk::new() else {
        return;
    };
    let mut pod = Pod::new(Kind::Native).await;
    let log = disk.path().join("0.log");
    let spec = TestSpec::shell("seq 0 9; sleep 1; seq 10 299999");
    let container = run_with_log(&mut pod, &spec, log.clone()).await;
    noisy_logged(&log, 10);
    disk.freeze();
    let told = |stalled| Event::Log {
        container: container.id.clone(),
        stalled,
    };
    assert_eq!(pod.event().await, told(true));
    assert!(pod.monitor.list().await.unwrap()[0].log_stalled);
    // Who comes later is told as well.
    let (other, mut events) = runtime::client::Monitor::connect(&pod.state_dir())
        .await
        .unwrap();
    assert_eq!(events.recv().await, Some(told(true)));
    drop(other);
    disk.thaw();
    let mut ended = false;
    let mut recovered = false;
    while !(ended && recovered) {
        match pod.event().await {
            Event::Exited(record) => {
                assert_eq!(record.exit_code, 0);
                ended = true;
            }
            event => {
                assert_eq!(event, told(false));
                recovered = true;
            }
        }
    }
    assert!(numbers(&log).into_iter().eq(0..300_000));
    let report = &pod.monitor.list().await.unwrap()[0];
    assert!(!report.log_stalled);
    assert_eq!(report.lost_log_bytes, 0);
    pod.end().await;
}

/// A pod ends although a log of it stalls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_log_keeps_no_pod() {
    let Some(mut disk) = StallingDisk::new() else {
        return;
    };
    let mut pod = Pod::new(Kind::Native).await;
    let log = disk.path().join("0.log");
    let spec = TestSpec::shell(&format!("echo 0; sleep 1; {FLOOD}"));
    let container = run_with_log(&mut pod, &spec, log.clone()).await;
    noisy_logged(&log, 1);
    disk.freeze();
    assert!(wait_until(|| !writers(&pod).is_empty()));
    prompt("shutdown", pod.monitor.shutdown()).await.unwrap();
    disk.thaw();
    drop(container);
    // The writer is nobody's child any more, and ends with what it has.
    assert!(wait_until(|| pod.cgroup.pids().is_empty()));
    let found = numbers(&log);
    assert!(found.iter().copied().eq(0..found.len() as u64));
}

/// A writer that dies is replaced; what it had taken is all that is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_log_writer_is_replaced() {
    let mut pod = Pod::new(Kind::Native).await;
    let spec = TestSpec::shell("i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done");
    let container = pod.run(&spec).await;
    let mut killed = 0;
    let mut kill = || {
        for pid in writers(&pod) {
            killed += usize::from(rustix::process::kill_process(pid, Signal::KILL).is_ok());
        }
        killed > 0
    };
    assert!(wait_until(&mut kill));
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    let found = numbers(&container.log);
    assert!(found.is_sorted_by(|a, b| a < b), "nothing twice");
    assert_eq!(found.last(), Some(&29_999));
    // One writer holds 64 KiB at most: 1600 lines of 40 bytes.
    let lost = 30_000 - found.len();
    assert!(lost <= killed * 1700, "{lost} of {killed} writers");
    pod.end().await;
}

/// A container that says nothing for a while has no writer, and one again later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_log_needs_no_process() {
    let mut pod = Pod::new(Kind::Native).await;
    let spec = TestSpec::shell("echo first; read wait <&0; echo second; sleep 1000");
    let container = pod
        .create_with(&spec, |request| request.stdin = true)
        .await
        .unwrap();
    assert!(writers(&pod).is_empty());
    pod.start(&container).await;
    container.logged("first");
    assert!(wait_until(|| writers(&pod).is_empty()));
    let stdin = format!("/proc/{}/fd/0", container.created.pid);
    std::fs::write(stdin, "go\n").unwrap();
    container.logged("second");
    pod.monitor.signal(&container.id, 9).await.unwrap();
    pod.exit(&container).await;
    assert!(
        writers(&pod).is_empty(),
        "it ended before the exit was told"
    );
    pod.end().await;
}

/// A log whose folder was removed is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reopened_log_makes_its_folder() {
    let mut pod = Pod::new(Kind::Native).await;
    let spec = TestSpec::shell("echo first; read wait <&0; echo second; sleep 1000");
    let log = pod.scratch().join("logs/deep/below/0.log");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    let container = pod
        .create_with(&spec, |request| {
            request.stdin = true;
            request.log_path = Some(log.clone());
        })
        .await
        .unwrap();
    pod.start(&container).await;
    container.logged("first");
    std::fs::remove_dir_all(pod.scratch().join("logs/deep")).unwrap();
    pod.monitor.reopen_log(&container.id, &log).await.unwrap();
    let stdin = format!("/proc/{}/fd/0", container.created.pid);
    std::fs::write(stdin, "go\n").unwrap();
    container.logged("second");
    assert_eq!(container.log(), ["stdout F second"]);
    // A link in its place is refused as at the beginning.
    std::fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/dev/null", &log).unwrap();
    let refused = pod.monitor.reopen_log(&container.id, &log).await;
    assert!(
        matches!(refused, Err(MonitorError::Launch { .. })),
        "{refused:?}"
    );
    pod.monitor.signal(&container.id, 9).await.unwrap();
    pod.exit(&container).await;
    pod.end().await;
}

/// An exit that met a full disk is told at once, and written down when there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_on_a_full_disk_is_written_once_there_is_room() {
    let mut pod = Pod::new(Kind::Native).await;
    let disk = FullDisk::at(pod.exit_dir());
    let container = pod.run(&TestSpec::shell("sleep 1; exit 7")).await;
    disk.fill();
    let told = prompt("exit", pod.exit(&container)).await;
    assert_eq!(told.exit_code, 7);
    // A process writes it at this moment at most.
    assert!(wait_until(|| disk.names().is_empty()), "{:?}", disk.names());
    prompt("list", pod.monitor.list()).await.unwrap();
    disk.empty();
    let written = || ExitRecord::read_dir(&pod.exit_dir()).unwrap() == [told.clone()];
    assert!(wait_until(written), "{:?}", disk.names());
    assert_eq!(disk.names(), [container.id.as_str()]);
    drop(disk);
    pod.end().await;
}

/// An exit for which room was made is written down when it is told, on a full disk too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_with_room_made_for_it_is_written_on_a_full_disk() {
    let mut pod = Pod::new(Kind::Native).await;
    let disk = FullDisk::at(pod.exit_dir());
    let container = pod.run(&TestSpec::shell("sleep 1; exit 7")).await;
    ExitRecord::reserve(&pod.exit_dir(), &container.id).unwrap();
    disk.fill();
    let told = prompt("exit", pod.exit(&container)).await;
    let written = ExitRecord::read_dir(&pod.exit_dir()).unwrap();
    assert_eq!(written, [told]);
    assert_eq!(disk.names(), [container.id.as_str()]);
    drop(disk);
    pod.end().await;
}
