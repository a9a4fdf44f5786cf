//! Sessions: what clients of exec, attach and port-forward get, over WebSocket; the field's
//! suite comes over SPDY as well.

#![expect(
    clippy::expect_used,
    reason = "helpers of tests, which the exception for tests misses"
)]

use std::time::Duration;

use conformance::eventually;
use conformance::session::{self, OUTCOME, SIZE, STDERR, STDIN, STDOUT};
use proto::v1;
use tokio_tungstenite::tungstenite::Error;
use tonic::Code;

use crate::rig::{Rig, deadline, runs, with_own_engine};

/// A client of a session.
struct Session(session::Session);

/// What came of a session: stdout, stderr, and what was said of the end.
#[derive(Default)]
struct Ended {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    outcome: String,
}

async fn connect(url: &str) -> Result<Session, Error> {
    let session = session::Session::begin(url, "v5.channel.k8s.io");
    session.await.map(Session)
}

impl Session {
    async fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.0.send(channel, bytes).await.expect("sent");
    }

    /// Ends what is sent on a channel.
    async fn end(&mut self, channel: u8) {
        self.send(255, &[channel]).await;
    }

    /// The next piece of a channel; `None` at the end.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let piece = tokio::time::timeout(deadline(), self.0.next()).await;
        let piece = piece.expect("in time").expect("a piece of a channel");
        piece.map(|(channel, bytes)| (channel, bytes.to_vec()))
    }

    /// Reads until a text has come on stdout.
    async fn until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(text) {
            let (channel, bytes) = self.next().await.expect(text);
            if channel == STDOUT {
                all.extend(bytes);
            }
        }
        String::from_utf8(all).expect("text")
    }

    /// Reads to the end.
    async fn ended(&mut self) -> Ended {
        let mut ended = Ended::default();
        while let Some((channel, bytes)) = self.next().await {
            match channel {
                STDOUT => ended.stdout.extend(bytes),
                STDERR => ended.stderr.extend(bytes),
                OUTCOME => ended.outcome.push_str(&String::from_utf8_lossy(&bytes)),
                _ => {}
            }
        }
        ended
    }
}

fn command(id: &str, script: &str) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

async fn exec(rig: &mut Rig, request: v1::ExecRequest) -> Session {
    let url = rig.client.runtime.exec(request).await.expect("a URL");
    connect(&url.into_inner().url).await.expect("a session")
}

#[test]
fn a_command_reads_and_writes_and_its_code_is_told() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("command", &["/bin/sleep", "1000"]).await;
        let script = "read line; echo got $line; cat >&2; exit 7";
        let mut session = exec(rig, command(&id, script)).await;
        session.send(STDIN, b"one\n").await;
        session.until("got one\n").await;
        session.send(STDIN, b"rest").await;
        session.end(STDIN).await;
        let ended = session.ended().await;
        assert_eq!(ended.stderr, b"rest");
        let said: serde_json::Value = serde_json::from_str(&ended.outcome).expect("a status");
        assert_eq!(said["reason"], "NonZeroExitCode");
        assert_eq!(said["details"]["causes"][0]["message"], "7");
        let mut session = exec(rig, command(&id, "true")).await;
        let ended = session.ended().await;
        let said: serde_json::Value = serde_json::from_str(&ended.outcome).expect("a status");
        assert_eq!(said["status"], "Success");
    });
}

#[test]
fn a_terminal_has_the_clients_size_and_its_end_is_told() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("terminal", &["/bin/sleep", "1000"]).await;
        let request = v1::ExecRequest {
            tty: true,
            stderr: false,
            ..command(&id, "echo $TERM; read go; stty size; exit 3")
        };
        let mut session = exec(rig, request).await;
        session.until("xterm").await;
        session.send(SIZE, br#"{"Width":77,"Height":33}"#).await;
        // The size has come when the kernel says so: it is asked until then.
        session.send(STDIN, b"go\n").await;
        session.until("33 77").await;
        assert!(session.ended().await.outcome.contains("NonZeroExitCode"));
    });
}

#[test]
fn a_terminal_whose_command_ends_at_once_says_all() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("brief", &["/bin/sleep", "1000"]).await;
        for round in 0..20 {
            let request = v1::ExecRequest {
                tty: true,
                stderr: false,
                ..command(&id, "seq 1 20000")
            };
            let mut brief = Vec::new();
            for _ in 0..4 {
                let request = v1::ExecRequest {
                    cmd: vec!["/bin/echo".to_owned(), "brief".to_owned()],
                    ..request.clone()
                };
                brief.push(exec(rig, request).await);
            }
            for mut session in brief {
                assert_eq!(session.ended().await.stdout, b"brief\r\n", "{round}");
            }
            let said = exec(rig, request).await.ended().await.stdout;
            assert!(said.ends_with(b"\r\n20000\r\n"), "{round}: {}", said.len());
        }
    });
}

#[test]
fn a_url_is_good_once_and_for_what_was_asked_for() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("once", &["/bin/sleep", "1000"]).await;
        let answer = rig.client.runtime.exec(command(&id, "echo once")).await;
        let url = answer.expect("a URL").into_inner().url;
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        let mut session = connect(&url).await.expect("a session");
        assert_eq!(session.ended().await.stdout, b"once\n");
        for url in [
            url.clone(),
            url.replace("/exec/", "/attach/"),
            format!("{url}0"),
        ] {
            assert!(matches!(connect(&url).await, Err(Error::Http(_))), "{url}");
        }
        for (request, code) in [
            (
                v1::ExecRequest {
                    tty: true,
                    ..command(&id, "true")
                },
                Code::InvalidArgument,
            ),
            (
                v1::ExecRequest {
                    stdin: false,
                    stdout: false,
                    stderr: false,
                    ..command(&id, "true")
                },
                Code::InvalidArgument,
            ),
            (command(&"0".repeat(64), "true"), Code::NotFound),
        ] {
            let error = rig.client.runtime.exec(request).await.expect_err("refused");
            assert_eq!(error.code(), code, "{error}");
        }
    });
}

#[test]
fn a_command_ends_with_its_client_and_leaves_no_process() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("gone", &["/bin/sleep", "1000"]).await;
        let script = "setsid sleep 4321 & echo ready; sleep 4321";
        let mut session = exec(rig, command(&id, script)).await;
        session.until("ready").await;
        // The shell says so before either of them is executed.
        let both = eventually(deadline(), async || runs("sleep\u{0}4321").then_some(()));
        both.await.expect("a process runs");
        drop(session);
        let deadline = std::time::Instant::now() + deadline();
        while runs("sleep\u{0}4321") {
            assert!(std::time::Instant::now() < deadline, "a process is left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn who_does_not_read_holds_up_himself_alone() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("unread", &["/bin/sleep", "1000"]).await;
        let mut unread = Vec::new();
        for _ in 0..4 {
            unread.push(exec(rig, command(&id, "yes")).await);
        }
        let mut quick = exec(rig, command(&id, "seq 1 20000")).await;
        let ended = quick.ended().await;
        assert_eq!(
            ended.stdout.iter().filter(|byte| **byte == b'\n').count(),
            20_000
        );
        let output = rig.client.exec(&id, &["/bin/echo", "sync"], 10).await;
        assert_eq!(output.expect("exec").stdout, "sync\n");
        rig.client.stop(&id, 0).await.expect("stop");
        drop(unread);
    });
}

#[test]
fn who_attaches_reads_along_and_writes_and_the_log_has_it_all() {
    with_own_engine(async |rig| {
        let sandbox = rig.sandbox("attach");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let words = [
            "/bin/sh",
            "-c",
            "while read line; do echo got $line; done; echo end",
        ];
        let mut config = rig.container("main", &words);
        (config.stdin, config.stdin_once) = (true, true);
        let id = rig
            .client
            .create(&pod, &config, &sandbox)
            .await
            .expect("create");
        rig.client.start(&id).await.expect("start");
        let request = v1::AttachRequest {
            container_id: id.clone(),
            stdin: true,
            tty: false,
            stdout: true,
            stderr: true,
        };
        let url = rig.client.runtime.attach(request).await.expect("a URL");
        let mut session = connect(&url.into_inner().url).await.expect("a session");
        session.send(STDIN, b"one\n").await;
        session.until("got one\n").await;
        session.end(STDIN).await;
        let ended = session.ended().await;
        assert_eq!(ended.stdout, b"end\n");
        assert!(ended.outcome.contains("Success"), "{}", ended.outcome);
        assert_eq!(rig.exited(&id).await.exit_code, 0);
        let log = rig.log_with("attach", "end").await;
        assert!(log.contains("got one"), "{log}");
    });
}

/// As with containerd and CRI-O: whoever wants to leave a container without ending it
/// closes what he types, which is what crictl does at its detach keys.
#[test]
fn who_ends_what_he_types_is_detached_and_the_container_goes_on() {
    with_own_engine(async |rig| {
        for (name, tty, once) in [("plain", false, false), ("terminal", true, true)] {
            let sandbox = rig.sandbox(name);
            let pod = rig.client.run_pod(&sandbox).await.expect("run");
            let words = ["/bin/sh", "-c", "while read line; do echo got $line; done"];
            let mut config = rig.container("main", &words);
            (config.stdin, config.stdin_once, config.tty) = (true, once, tty);
            let id = rig.started(&pod, &config, &sandbox).await;
            for word in ["one", "two"] {
                let request = v1::AttachRequest {
                    container_id: id.clone(),
                    stdin: true,
                    tty,
                    stdout: true,
                    stderr: !tty,
                };
                let url = rig.client.runtime.attach(request).await.expect("a URL");
                let mut session = connect(&url.into_inner().url).await.expect("a session");
                session.send(STDIN, format!("{word}\n").as_bytes()).await;
                session.until(&format!("got {word}")).await;
                session.end(STDIN).await;
                let ended = session.ended().await;
                assert!(ended.outcome.contains("Success"), "{}", ended.outcome);
            }
            let status = rig.client.container(&id).await.expect("status");
            assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
        }
    });
}

#[test]
fn an_engine_that_ends_ends_its_sessions_and_their_commands() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("ends", &["/bin/sleep", "1000"]).await;
        let mut session = exec(rig, command(&id, "echo ready; sleep 5432")).await;
        session.until("ready").await;
        let took = rig.engine.terminate().expect("terminate");
        assert!(took < conformance::patient(2), "{took:?}");
        assert!(session.next().await.is_none());
        rig.client = rig.engine.start().await.expect("an engine");
        let deadline = std::time::Instant::now() + deadline();
        while runs("sleep\u{0}5432") {
            assert!(std::time::Instant::now() < deadline, "a command is left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let status = rig.client.container(&id).await.expect("status");
        assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
    });
}

/// Sockets that the engine has.
fn sockets(rig: &Rig) -> usize {
    let pid = rig.engine.pid().expect("it runs");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    let leads = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    leads
        .filter(|leads| leads.to_string_lossy().starts_with("socket:"))
        .count()
}

/// A container may take connections and neither answer nor end them, whatever their other
/// end does.
#[test]
fn connections_to_a_port_that_never_ends_them_are_gone_soon_after_their_client() {
    with_own_engine(async |rig| {
        let server = "nc -ll -p 8080 -e /bin/sleep 1000 & exec sleep 1000";
        let (pod, id) = rig.running("silent", &["/bin/sh", "-c", server]).await;
        let listens = "until grep -q :1F90 /proc/net/tcp /proc/net/tcp6; do :; done";
        let output = rig.client.exec(&id, &["/bin/sh", "-c", listens], 10).await;
        output.expect("a server");
        let before = sockets(rig);
        let mut sessions = Vec::new();
        for _ in 0..8 {
            let request = v1::PortForwardRequest {
                pod_sandbox_id: pod.clone(),
                port: vec![8080],
            };
            let url = rig.client.runtime.port_forward(request).await;
            let url = url.expect("a URL").into_inner().url + "?port=8080";
            let session = session::Session::begin(&url, "v4.channel.k8s.io").await;
            let mut session = Session(session.expect("a session"));
            session.send(0, b"hello").await;
            sessions.push(session);
        }
        let connected = eventually(deadline(), async || {
            (sockets(rig) >= before + 16).then_some(())
        });
        connected.await.expect("each session has two sockets");
        drop(sessions);
        let gone = eventually(deadline(), async || (sockets(rig) <= before).then_some(()));
        assert!(gone.await.is_some(), "{} are left", sockets(rig) - before);
    });
}
