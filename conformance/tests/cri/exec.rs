//! ExecSync.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use conformance::bench::machine::resident;
use conformance::client::Client;
use proto::v1;
use tonic::Code;

use crate::rig::{Rig, deadline, runs, with_engine, with_own_engine, with_settings};

#[test]
fn output_exit_code_and_streams_are_kept_apart() {
    with_engine(async |rig| {
        let (_, id) = rig.running("exec", &["/bin/sleep", "1000"]).await;
        let command = ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"];
        let output = rig.client.exec(&id, &command, 5).await.expect("exec");
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str()),
            ("out\n", "err\n")
        );
        assert_eq!(output.code, 3);
    });
}

#[test]
fn a_command_that_runs_too_long_is_killed_and_says_so() {
    with_engine(async |rig| {
        let (_, id) = rig.running("slow", &["/bin/sleep", "1000"]).await;
        let error = rig
            .client
            .exec(&id, &["sleep", "777"], 1)
            .await
            .expect_err("too long");
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        let left = rig.client.exec(&id, &["ps"], 5).await.expect("exec").stdout;
        assert!(!left.contains("sleep 777"), "{left}");
    });
}

/// What a container among the node's processes has daemonised comes to the monitor when
/// its parent ends, as siblings of a command do.
#[test]
fn a_command_out_of_time_leaves_daemons_of_its_container_alone() {
    with_own_engine(async |rig| {
        let mut sandbox = rig.sandbox("daemons");
        let script = "until [ -e /tmp/go ]; do sleep 0.1; done; (sleep 4817 &); sleep 1000";
        let mut config = rig.container("main", &["/bin/sh", "-c", script]);
        let of_node = v1::NamespaceOption {
            pid: v1::NamespaceMode::Node as i32,
            ..Default::default()
        };
        let linux = sandbox.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a context");
        context.namespace_options = Some(of_node.clone());
        let linux = config.linux.as_mut().expect("linux");
        let context = linux.security_context.as_mut().expect("a context");
        context.namespace_options = Some(of_node);
        let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        let id = rig.started(&pod, &config, &sandbox).await;
        let words = ["/bin/sh", "-c", "touch /tmp/go; sleep 1000"];
        let late = rig.client.exec(&id, &words, 2).await;
        assert_eq!(late.expect_err("no time").code(), Code::DeadlineExceeded);
        assert!(runs("sleep\x004817"));
        rig.client.stop(&id, 0).await.expect("stop");
        assert!(!runs("sleep\x004817"));
    });
}

/// A command that is being born is nobody's sibling: the container has little of a
/// processor, so that births take long.
#[test]
fn a_command_that_is_born_beside_one_out_of_time_ends_by_itself() {
    with_own_engine(async |rig| {
        let sandbox = rig.sandbox("births");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let linux = config.linux.as_mut().expect("linux");
        let resources = linux.resources.get_or_insert_default();
        (resources.cpu_period, resources.cpu_quota) = (100_000, 10_000);
        let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        let id = rig.started(&pod, &config, &sandbox).await;
        for _ in 0..3 {
            let hang = |_| {
                let (mut client, id) = (rig.client.clone(), id.clone());
                tokio::task::spawn_local(async move {
                    client.exec(&id, &["/bin/sleep", "1000"], 1).await
                })
            };
            let late: Vec<_> = (0..6).map(hang).collect();
            while !late.iter().all(tokio::task::JoinHandle::is_finished) {
                let ended = rig.client.exec(&id, &["/bin/true"], 20).await;
                assert_eq!(ended.expect("ExecSync").code, 0);
            }
        }
    });
}

#[test]
fn a_grandchild_that_keeps_the_pipes_open_holds_nobody_up() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("daemon", &["/bin/sleep", "1000"]).await;
        let began = Instant::now();
        let command = ["/bin/sh", "-c", "sleep 300 & echo started"];
        let output = rig.client.exec(&id, &command, 60).await.expect("exec");
        assert_eq!(output.stdout, "started\n");
        assert!(began.elapsed() < conformance::patient(30));
    });
}

#[test]
fn more_output_than_a_message_holds_is_cut_and_drained() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("flood", &["/bin/sleep", "1000"]).await;
        let command = ["/bin/sh", "-c", "head -c 30000000 /dev/zero; echo done >&2"];
        let output = rig.client.exec(&id, &command, 60).await.expect("exec");
        assert_eq!(output.code, 0);
        let kept = output.stdout.len();
        assert!((16_700_000..16 * 1024 * 1024).contains(&kept), "{kept}");
        let said = output.stderr.strip_prefix("done\n").expect("its own words");
        let lost = format!("{} bytes of stdout", 30_000_000 - kept);
        assert!(said.contains(&lost), "{said}");
    });
}

/// A client of its own that stops reading when it is told, with calls under way.
struct Stopping {
    stop: Option<Sender<()>>,
    thread: JoinHandle<()>,
}

#[expect(
    clippy::expect_used,
    reason = "a test's helper, which the exception for tests misses"
)]
impl Stopping {
    fn new(socket: PathBuf, container: String, script: &'static str, calls: usize) -> Self {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let work = Self::work(&socket, &container, script, calls, &stopped);
            runtime.expect("a runtime").block_on(work);
        });
        Self {
            stop: Some(stop),
            thread,
        }
    }

    async fn work(
        socket: &Path,
        container: &str,
        script: &str,
        calls: usize,
        stopped: &Receiver<()>,
    ) {
        let client = Client::connect(socket).await.expect("connect");
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..calls {
            let (mut client, container) = (client.clone(), container.to_owned());
            let script = script.to_owned();
            all.spawn(async move {
                let words = ["/bin/sh", "-c", &script];
                client.exec(&container, &words, 0).await
            });
        }
        while stopped.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The thread that would read waits here, until the other end is dropped.
        let _dropped = stopped.recv();
    }

    fn stops_reading(&self) {
        let stop = self.stop.as_ref().expect("not ended");
        stop.send(()).expect("the thread lives");
    }

    fn ends(mut self) {
        self.stop = None;
        self.thread.join().expect("the thread");
    }
}

#[expect(
    clippy::expect_used,
    reason = "a test's helper, which the exception for tests misses"
)]
/// How many commands of this kind run in a container.
async fn commands(rig: &mut Rig, container: &str, script: &str) -> usize {
    let shown = rig.client.exec(container, &["ps"], 10).await;
    shown.expect("ps").stdout.matches(script).count()
}

/// Answers that nobody reads are memory as well: what all of them may hold is bounded,
/// and free again when the client is gone.
#[test]
fn answers_that_are_not_read_hold_no_more_than_all_may() {
    const CALLS: usize = 40;
    const SCRIPT: &str = "until [ -e /tmp/go ]; do sleep 1; done; head -c 16000000 /dev/zero";
    with_own_engine(async |rig| {
        let (_, id) = rig.running("unread", &["/bin/sleep", "1000"]).await;
        let unread = Stopping::new(rig.engine.socket(), id.clone(), SCRIPT, CALLS);
        // Each of these moves some hundred MiB, so each has a deadline of its own.
        let end = Instant::now() + deadline();
        while commands(rig, &id, "[ -e /tmp/go").await < CALLS {
            assert!(Instant::now() < end, "not all of the commands run");
        }
        unread.stops_reading();
        let go = rig.client.exec(&id, &["touch", "/tmp/go"], 10).await;
        assert_eq!(go.expect("touch").code, 0);
        let end = Instant::now() + deadline();
        while commands(rig, &id, "/tmp/go").await > 0 {
            assert!(Instant::now() < end, "the commands do not end");
        }
        let engine = rig.engine.pid().expect("the engine").cast_signed();
        // All of them are 610 MiB. While an answer is encoded there are two of it.
        let kept = || resident(engine).expect("its memory") / 1024;
        let end = Instant::now() + deadline();
        while kept() > 300 {
            assert!(Instant::now() < end, "{} MiB", kept());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unread.ends();
        let end = Instant::now() + deadline();
        let whole = ["head", "-c", "16000000", "/dev/zero"];
        while rig
            .client
            .exec(&id, &whole, 60)
            .await
            .expect("exec")
            .stdout
            .len()
            < 16_000_000
        {
            assert!(
                Instant::now() < end,
                "what the client held is not given back"
            );
        }
    });
}

#[test]
fn files_are_open_and_signals_reach_as_configured_whatever_the_engine_has() {
    with_settings("[runtime]\nopen_files = 4000\n", async |rig| {
        let show = "ulimit -Sn; ulimit -Hn; grep -E '^Sig(Ign|Blk)' /proc/self/status; true";
        let script = format!("{show}; echo end; sleep 1000");
        let (_, id) = rig.running("limits", &["/bin/sh", "-c", &script]).await;
        let first = rig.log_with("limits", "end").await;
        let run = rig.client.exec(&id, &["/bin/sh", "-c", show], 10).await;
        let run = run.expect("ExecSync").stdout;
        for text in [&first, &run] {
            let lines = |end: &str| text.lines().filter(|line| line.ends_with(end)).count();
            assert_eq!(lines("4000"), 2, "{text}");
            assert_eq!(lines("\t0000000000000000"), 2, "{text}");
        }
    });
}

#[test]
fn a_missing_command_and_a_stopped_container_are_told_apart() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("missing", &["/bin/sleep", "1000"]).await;
        let error = rig
            .client
            .exec(&id, &["/no/such"], 5)
            .await
            .expect_err("no such file");
        assert!(error.message().contains("/no/such"), "{error}");
        rig.client.stop(&id, 0).await.expect("stop");
        let error = rig
            .client
            .exec(&id, &["true"], 5)
            .await
            .expect_err("stopped");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        let error = rig
            .client
            .exec(&"1".repeat(64), &["true"], 5)
            .await
            .expect_err("unknown");
        assert_eq!(error.code(), Code::NotFound, "{error}");
    });
}
