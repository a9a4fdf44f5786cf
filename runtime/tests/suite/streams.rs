//! What containers read and write.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use runtime::client::MonitorError;
use runtime::mount::{TmpfsFlags, tmpfs};

use crate::support::{Kind, Pod, TestContainer, TestSpec, until, wait_until};

/// Long lines are split, order is kept, nothing is lost.
pub(crate) async fn long_output_is_complete(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let script = "seq 1 60000; head -c 40000 /dev/zero | tr '\\0' x; echo end";
    let (record, log) = pod.outcome(&TestSpec::shell(script)).await;
    assert_eq!(record.exit_code, 0);
    for number in 1..=60_000 {
        assert_eq!(log[number - 1], format!("stdout F {number}"));
    }
    let tags: Vec<_> = log[60_000..]
        .iter()
        .map(|line| (line[..9].to_owned(), line.len() - 9))
        .collect();
    let (partial, full) = ("stdout P ".to_owned(), "stdout F ".to_owned());
    assert_eq!(
        tags,
        [
            (partial.clone(), 16_384),
            (partial, 16_384),
            (full, 40_000 - 2 * 16_384 + 3)
        ]
    );
    pod.end().await;
}

/// Reopening between lines loses nothing.
pub(crate) async fn reopened_log_loses_nothing(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod
        .run(&TestSpec::shell(
            "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done",
        ))
        .await;
    let mut rotated = Vec::new();
    for number in 0..5 {
        let old = container.log.with_extension(number.to_string());
        std::fs::rename(&container.log, &old).unwrap();
        pod.monitor
            .reopen_log(&container.id, &container.log)
            .await
            .unwrap();
        rotated.push(old);
    }
    pod.exit(&container).await;
    rotated.push(container.log.clone());
    let text: String = rotated
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.rsplit_once(' ').unwrap().1.to_owned())
        .collect();
    assert_eq!(
        lines,
        (0..2000)
            .map(|number| number.to_string())
            .collect::<Vec<_>>()
    );
    assert!(matches!(
        pod.monitor.reopen_log("nobody", &container.log).await,
        Err(MonitorError::UnknownContainer(_))
    ));
    pod.end().await;
}

/// Who follows a log by its name gets every line across its rotation: the former file
/// is whole before the new one is there.
pub(crate) async fn followed_log_is_whole_before_its_next_file(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let endless = "yes 0123456789";
    let container = pod.run(&TestSpec::shell(endless)).await;
    for number in 0..10 {
        let old = container.log.with_extension(number.to_string());
        std::fs::rename(&container.log, &old).unwrap();
        let (path, former) = (container.log.clone(), old.clone());
        let follower = std::thread::spawn(move || {
            while !path.exists() {
                std::hint::spin_loop();
            }
            std::fs::metadata(&former).unwrap().len()
        });
        let reopened = pod.monitor.reopen_log(&container.id, &container.log).await;
        reopened.unwrap();
        let seen = follower.join().unwrap();
        until(|| std::fs::metadata(&container.log).unwrap().len() > 0).await;
        assert_eq!(std::fs::metadata(&old).unwrap().len(), seen, "{number}");
    }
    pod.end().await;
}

/// A log that is brought to rest and never opened again is written on.
pub(crate) async fn log_at_rest_goes_on_by_itself(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let endless = "while :; do echo line; sleep 0.01; done";
    let container = pod.run(&TestSpec::shell(endless)).await;
    // The folder's place is taken: the new file cannot be made.
    let folder = container.log.parent().unwrap().to_owned();
    let moved = folder.with_extension("moved");
    std::fs::rename(&folder, &moved).unwrap();
    std::fs::write(&folder, "").unwrap();
    let refused = pod.monitor.reopen_log(&container.id, &container.log).await;
    refused.unwrap_err();
    let former = moved.join(container.log.file_name().unwrap());
    let length = || std::fs::metadata(&former).unwrap().len();
    let before = length();
    until(|| length() > before).await;
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&moved, &folder).unwrap();
    pod.end().await;
}

/// A log that cannot be written never keeps the container waiting.
pub(crate) async fn full_disk_never_blocks_the_container(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell("seq 1 100000");
    // Mounted nowhere: nothing of it is left.
    let disk = tmpfs(&[("size", "4096")], TmpfsFlags::default()).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd());
    let path = PathBuf::from(path);
    let filled = std::fs::write(path.join("filler"), [0; 8192]).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    let container = pod
        .create_with(&spec, |request| request.log_path = Some(path.join("0.log")))
        .await
        .unwrap();
    pod.start(&container).await;
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    let lost = pod.monitor.list().await.unwrap()[0].lost_log_bytes;
    assert!(lost > 588_895, "{lost}");
    pod.end().await;
}

/// Without a log the output is read all the same.
pub(crate) async fn output_without_a_log_is_dropped(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = pod
        .create_with(&TestSpec::shell("seq 1 100000"), |request| {
            request.log_path = None
        })
        .await
        .unwrap();
    pod.start(&container).await;
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    assert!(
        pod.monitor
            .reopen_log(&container.id, &container.log)
            .await
            .is_err()
    );
    pod.end().await;
}

/// A log that cannot be opened fails the creation by its name.
pub(crate) async fn log_that_cannot_be_opened_is_named(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let result = pod
        .create_with(&TestSpec::shell("true"), |request| {
            request.log_path = Some("/dev/null/0.log".into());
        })
        .await;
    let (step, _, not_found) = super::launch_error(result);
    assert_eq!(
        (step.as_str(), not_found),
        ("open log /dev/null/0.log", false)
    );
    pod.end().await;
}

/// A link or a device in the place of a log fails the creation by its name.
pub(crate) async fn log_that_is_no_file_is_named(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let result = pod
        .create_with(&TestSpec::shell("true"), |request| {
            request.log_path = Some("/dev/null".into());
        })
        .await;
    let (step, message, _) = super::launch_error(result);
    assert_eq!(step, "open log /dev/null");
    assert_eq!(message, "not a regular file");
    pod.end().await;
}

/// Without stdin there is an empty one; with it, it stays open.
pub(crate) async fn input_is_empty_or_open(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let (record, _) = pod.outcome(&TestSpec::new(&["cat"])).await;
    assert_eq!(record.exit_code, 0);
    let spec = TestSpec::shell("echo begin; cat; echo end");
    let container = pod
        .create_with(&spec, |request| request.stdin = true)
        .await
        .unwrap();
    pod.start(&container).await;
    container.logged("begin");
    let reads = || {
        let state = std::fs::read_to_string(format!("/proc/{}/wchan", container.created.pid));
        state.is_ok_and(|text| !text.is_empty())
    };
    assert!(wait_until(reads));
    assert_eq!(container.log(), ["stdout F begin"]);
    pod.monitor.signal(&container.id, 9).await.unwrap();
    pod.exit(&container).await;
    pod.end().await;
}

/// A terminal is one for the container, and its output is in the log.
pub(crate) async fn terminal_is_logged(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let script = "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; echo err >&2; (exec 3</dev/tty) && echo controlling; printf last";
    let container = pod
        .create_with(&TestSpec::shell(script), |request| {
            request.spec.process.terminal = true
        })
        .await
        .unwrap();
    pod.start(&container).await;
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    let expected = [
        "F /dev/pts/0\r",
        "F all\r",
        "F err\r",
        "F controlling\r",
        "P last",
    ];
    let log: Vec<_> = container.log();
    assert_eq!(log, expected.map(|line| format!("stdout {line}")));
    pod.end().await;
}

/// A terminal lives on when nobody has it open, as long as the first process lives.
pub(crate) async fn terminal_outlives_its_users(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let script = "exec <&- >&- 2>&-; sleep 1; echo one >/dev/pts/0; sleep 1; \
                  echo two >/dev/pts/0; seq 1 1000 >/dev/pts/0; sleep 1; exit 6";
    let container = pod
        .create_with(&TestSpec::shell(script), |request| {
            request.spec.process.terminal = true
        })
        .await
        .unwrap();
    pod.start(&container).await;
    container.logged("one");
    let before = cpu_ticks(pod.monitor.pid());
    assert_eq!(pod.exit(&container).await.exit_code, 6);
    let log = container.log();
    assert_eq!(log[..2], ["stdout F one\r", "stdout F two\r"]);
    assert_eq!(log.len(), 1002);
    // Nor is the monitor busy with a terminal that is at its end.
    let spent = cpu_ticks(pod.monitor.pid()) - before;
    assert!(spent < 50, "{spent} ticks");
    pod.end().await;
}

/// Ticks of 10 ms that a process ran.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
    let ticks = fields.skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// A container that was killed while another process holds its stdout.
async fn killed_while_held(launcher: Kind) -> (Pod, TestContainer, OwnedFd) {
    let mut pod = Pod::new(launcher).await;
    // In the pod's pid namespace a grandchild would be killed with the first process;
    // one that was run from outside is not in that tree. A pipe that leaves the
    // container does the same.
    let container = pod
        .run(&TestSpec::shell("echo first; read wait <&0; sleep 1000"))
        .await;
    container.logged("first");
    let pid = rustix::process::Pid::from_raw(container.created.pid).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let held =
        rustix::process::pidfd_getfd(&pidfd, 1, rustix::process::PidfdGetfdFlags::empty()).unwrap();
    pod.monitor.signal(&container.id, 9).await.unwrap();
    assert_eq!(pod.exit(&container).await.exit_code, 137);
    (pod, container, held)
}

/// What a process of the container holds open keeps no exit waiting, and what
/// it writes later is logged.
pub(crate) async fn grandchild_keeps_no_exit_waiting(launcher: Kind) {
    let (pod, container, held) = killed_while_held(launcher).await;
    rustix::io::write(&held, b"late\n").unwrap();
    container.logged("stdout F late");
    rustix::io::write(&held, b"rest").unwrap();
    drop(held);
    container.logged("stdout P rest");
    pod.end().await;
}

/// Nobody rotates the log of a container that has ended: who holds its stream cannot let
/// it grow without end.
pub(crate) async fn what_comes_after_an_exit_is_bounded(launcher: Kind) {
    let (pod, _container, held) = killed_while_held(launcher).await;
    let line = [&[b'x'; 8191][..], b"\n"].concat();
    let ended = tokio::task::spawn_blocking(move || {
        let lines = std::iter::repeat_n((), 100_000);
        lines
            .map(|()| rustix::io::write(&held, &line))
            .position(|written| written == Err(rustix::io::Errno::PIPE))
    });
    let lines = ended.await.unwrap().expect("its pipe is closed");
    // What is logged, and what was in pipes.
    assert!((500..2000).contains(&lines), "{lines}");
    pod.end().await;
}
