//! The logs that crictl reads, which it does by the path in a container's status.

use std::time::Duration;

use crate::crictl::{Crictl, wait_for};
use crate::rig::with_own_engine;

#[test]
fn who_follows_a_log_gets_every_line_across_rotations_and_ends_with_the_container() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let script = "i=0; while [ ! -e /tmp/end ]; do i=$((i+1)); echo line $i; sleep 0.01; done; \
            echo last $i";
        let (pod, id) = rig.running("followed", &["sh", "-c", script]).await;
        drop(pod);
        let follower = crictl.begin(&["logs", "-f", &id]);
        let log = rig.engine.path("logs/followed/main/0.log");
        follower.until("line 1\n");
        for rotation in 1..=5 {
            std::fs::rename(&log, log.with_extension(format!("log.{rotation}"))).expect("rename");
            // What `logs -r` prints is the new file: empty, or what came since.
            let said = crictl.run(&["logs", "-r", &id]);
            assert_eq!(said.code, Some(0), "{said:?}");
            assert!(said.stderr.contains("reopened"), "{said:?}");
            let newest = wait_for("a line in the next file", || {
                let text = std::fs::read_to_string(&log).expect("the next file");
                let number = text.lines().last()?.rsplit_once("line ")?.1.to_owned();
                Some(number)
            });
            follower.until(&format!("line {newest}\n"));
        }
        let ended = rig.client.exec(&id, &["touch", "/tmp/end"], 5).await;
        assert_eq!(ended.expect("exec").code, 0);
        let said = follower.ended();
        assert_eq!(said.code, Some(0), "{said:?}");
        let mut lines: Vec<&str> = said.stdout.lines().collect();
        let last = lines.pop().and_then(|line| line.strip_prefix("last "));
        let count: usize = last.expect("the last line").parse().expect("a number");
        let all: Vec<String> = (1..=count).map(|number| format!("line {number}")).collect();
        assert_eq!(lines, all);
    });
}

#[test]
fn a_log_is_shown_in_part_with_times_and_by_stream() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        // What comes by two pipes at once has no order.
        let script = "echo err >&2; until [ -e /tmp/go ]; do sleep 0.05; done; \
            for i in 1 2 3 4 5; do echo out $i; done; printf part";
        let (_, id) = rig.running("parts", &["sh", "-c", script]).await;
        rig.log_with("parts", "err").await;
        let go = rig.client.exec(&id, &["touch", "/tmp/go"], 5).await;
        assert_eq!(go.expect("exec").code, 0);
        rig.exited(&id).await;
        let logs = |more: &[&str]| {
            let said = crictl.run(&[&["logs"], more, &[id.as_str()]].concat());
            assert_eq!(said.code, Some(0), "{more:?}: {said:?}");
            (said.stdout, said.stderr)
        };
        let all = "out 1\nout 2\nout 3\nout 4\nout 5\npart";
        assert_eq!(logs(&[]), (all.to_owned(), "err\n".to_owned()));
        assert_eq!(logs(&["--tail", "0"]), (String::new(), String::new()));
        let (tail, _) = logs(&["--tail", "1"]);
        assert_eq!(tail, "part");
        assert_eq!(
            logs(&["--stream", "stderr"]),
            (String::new(), "err\n".to_owned())
        );
        let (limited, _) = logs(&["--limit-bytes", "13"]);
        assert_eq!(limited, "out 1\nout");
        let (timed, _) = logs(&["-t", "--tail", "3"]);
        for line in timed.lines() {
            let (time, _) = line.split_once(' ').expect("a time");
            assert!(time.contains('T') && time.contains('.'), "{line}");
        }
        assert_eq!(logs(&["--since", "1h"]).0, all);
        assert_eq!(logs(&["--since", "2999-01-01T00:00:00Z"]).0, "");
        // The engine's time of a line is what `--since` compares with. Lines that came at
        // once have the same.
        let log = rig.engine.path("logs/parts/main/0.log");
        let text = std::fs::read_to_string(log).expect("the log");
        let time = |line: &str| line.split(' ').next().expect("a time").to_owned();
        let since = time(text.lines().nth(2).expect("a line"));
        let first = text.lines().find(|line| time(line) == since);
        let (_, first) = first
            .and_then(|line| line.split_once(" F "))
            .expect("a line");
        let shown = logs(&["--since", &since]).0;
        assert!(
            shown.starts_with(first) && shown.ends_with("part"),
            "{shown}"
        );
        let missing = crictl.fails(&["logs", "-p", &id]);
        assert!(missing.contains("previous"), "{missing}");
    });
}

#[test]
fn the_log_of_the_attempt_before_is_shown() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let sandbox = rig.sandbox("attempts");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut id = String::new();
        for attempt in 0..2 {
            let said = format!("attempt {attempt}");
            let mut config = rig.container("main", &["echo", &said]);
            config.metadata.as_mut().expect("a name").attempt = attempt;
            config.log_path = format!("main/{attempt}.log");
            id = rig.started(&pod, &config, &sandbox).await;
            rig.exited(&id).await;
        }
        assert_eq!(crictl.ok(&["logs", &id]), "attempt 1\n");
        assert_eq!(crictl.ok(&["logs", "-p", &id]), "attempt 0\n");
    });
}

#[test]
fn a_follower_that_is_interrupted_ends_at_once() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let script = "echo begun; sleep 1000";
        let (_, id) = rig.running("interrupted", &["sh", "-c", script]).await;
        let follower = crictl.begin(&["logs", "-f", &id]);
        follower.until("begun\n");
        let began = std::time::Instant::now();
        follower.interrupt();
        follower.ended();
        assert!(began.elapsed() < Duration::from_secs(10));
    });
}
