//! Commands in containers, containers that somebody is attached to, and forwarded ports.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use proto::v1;

use crate::crictl::{Crictl, Running, wait_for};
use crate::rig::{Rig, deadline, runs, with_own_engine};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

#[test]
fn a_shell_in_a_terminal_answers_and_a_commands_code_is_told() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (_, id) = rig.running("shell", &["sleep", "1000"]).await;
        for transport in TRANSPORTS {
            let words = ["exec", "-it", "-r", transport, &id, "sh"];
            let mut shell = crictl.in_terminal(&words);
            shell.types("echo shown $((6 * 7)); test -t 0 && test -t 2 && echo terminal\r");
            shell.until("shown 42\nterminal\n");
            shell.types("exit 4\r");
            let said = shell.ended();
            assert!(said.stdout.contains("exit code 4"), "{said:?}");
            assert_eq!(said.code, Some(1), "{said:?}");
            let fails = [
                "exec",
                "-r",
                transport,
                &id,
                "sh",
                "-c",
                "echo said >&2; exit 5",
            ];
            let said = crictl.run(&fails);
            assert!(said.stderr.starts_with("said\n"), "{said:?}");
            assert!(said.stderr.contains("exit code 5"), "{said:?}");
            let mut piped = crictl.begin(&["exec", "-i", "-r", transport, &id, "cat"]);
            piped.types("through a pipe\n");
            piped.until("through a pipe\n");
            piped.ends_input();
            assert_eq!(piped.ended().code, Some(0));
        }
        let sync = crictl.ok(&["exec", "-s", &id[..10], "echo", "sync"]);
        assert!(sync.starts_with("sync\n"), "{sync}");
    });
}

#[test]
fn a_program_sees_its_terminals_size_change_and_keys_that_mean_a_signal() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (_, id) = rig.running("sizes", &["sleep", "1000"]).await;
        for transport in TRANSPORTS {
            let script = "trap 'stty size' WINCH; until stty size | grep -q '30 90'; do :; done; \
                echo begun; while :; do sleep 0.05; done";
            let words = ["exec", "-it", "-r", transport, &id, "sh", "-c", script];
            let mut program = crictl.in_terminal(&words);
            program.until("begun\n");
            for (lines, columns) in [(33, 77), (50, 200), (10, 40)] {
                program.resize(lines, columns);
                program.until(&format!("\n{lines} {columns}\n"));
            }
            program.types("\u{3}");
            let said = program.ended();
            assert!(said.stdout.contains("exit code 130"), "{said:?}");
        }
    });
}

#[test]
fn a_command_for_several_containers_runs_in_each() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (_, one) = rig.running("one", &["sleep", "1000"]).await;
        let (pod, two) = rig.running("two", &["sleep", "1000"]).await;
        for more in [["-q"].as_slice(), &["-x"]] {
            let words = [&["exec"], more, &["--name", "main", "echo", "here"]].concat();
            let said = crictl.ok(&words);
            assert_eq!(said.matches("here\n").count(), 2, "{said}");
        }
        let each = crictl.ok(&["exec", "--name", "main", "echo", "here"]);
        assert!(each.contains(&one) && each.contains(&two), "{each}");
        let only = crictl.ok(&["exec", "--pod", &pod, "hostname"]);
        assert!(only.contains(&two) && !only.contains(&one), "{only}");
    });
}

/// A container that reads, with or without a terminal.
async fn reader(rig: &mut Rig, name: &str, tty: bool, words: &[&str]) -> String {
    let sandbox = rig.sandbox(name);
    let pod = rig.client.run_pod(&sandbox).await.expect("run");
    let mut config = rig.container("main", words);
    (config.stdin, config.stdin_once, config.tty) = (true, !tty, tty);
    rig.started(&pod, &config, &sandbox).await
}

#[test]
fn who_attaches_by_pipes_writes_and_reads_to_the_containers_end() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        for transport in TRANSPORTS {
            let script = "while read line; do echo got $line; echo bad $line >&2; done; echo end";
            let id = reader(rig, transport, false, &["sh", "-c", script]).await;
            let mut attached = crictl.begin(&["attach", "-i", "-r", transport, &id]);
            attached.types("one\n");
            attached.until("got one\n");
            attached.complains("bad one\n");
            attached.types("two\n");
            attached.ends_input();
            let said = attached.ended();
            assert_eq!(said.code, Some(0), "{said:?}");
            assert_eq!(said.stdout, "got one\ngot two\nend\n");
            assert_eq!(said.stderr, "bad one\nbad two\n");
            assert_eq!(rig.exited(&id).await.exit_code, 0);
        }
    });
}

/// Asks a shell for its terminal's size until that is the one.
fn has_size(shell: &mut Running, size: &str) {
    let end = std::time::Instant::now() + deadline();
    for round in 0.. {
        shell.types(&format!("echo {round}: $(stty size).\r"));
        let said = shell.until(&format!("\n{round}: "));
        if said.contains(&format!("\n{round}: {size}.\n")) {
            return;
        }
        assert!(std::time::Instant::now() < end, "{size}: {said}");
    }
}

#[test]
fn who_attaches_to_a_terminal_has_its_size_and_leaves_it_running() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        for transport in TRANSPORTS {
            let id = reader(rig, transport, true, &["sh"]).await;
            let words = ["attach", "-it", "-r", transport, &id];
            let mut shell = crictl.in_terminal(&words);
            shell.types("echo shown $((6 * 7))\r");
            shell.until("shown 42\n");
            has_size(&mut shell, "30 90");
            shell.resize(40, 100);
            has_size(&mut shell, "40 100");
            // The keys by which crictl lets go.
            shell.types("\u{10}\u{11}");
            let left = shell.ended();
            assert!(left.stdout.contains("escape sequence"), "{left:?}");
            let status = rig.client.container(&id).await.expect("status");
            assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
            let mut again = crictl.in_terminal(&words);
            again.types("echo again $((6 * 9))\r");
            again.until("again 54\n");
            again.types("exit 3\r");
            again.ended();
            assert_eq!(rig.exited(&id).await.exit_code, 3);
        }
    });
}

#[test]
fn who_only_looks_on_can_go_and_the_container_goes_on() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let script = "while :; do echo tick; sleep 0.1; done";
        let (_, id) = rig.running("watched", &["sh", "-c", script]).await;
        let watcher = crictl.begin(&["attach", &id]);
        watcher.until("tick\n");
        watcher.interrupted();
        let again = crictl.begin(&["attach", &id]);
        again.until("tick\n");
    });
}

/// The port of this node that crictl listens at, of those that it chose itself.
fn chosen(forwarder: &Running, port: u16) -> SocketAddr {
    let to = format!(" -> {port}");
    let said = forwarder.until(&format!("{to}\n"));
    let line = said
        .lines()
        .find(|line| line.starts_with("Forwarding from 127.0.0.1:") && line.ends_with(&to));
    let address = line.and_then(|line| line.split(' ').nth(2)).expect(&said);
    address.parse().expect("an address")
}

fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("crictl listens");
    stream
        .set_read_timeout(Some(deadline()))
        .expect("a deadline");
    let asked = b"GET /page HTTP/1.0\r\n\r\n";
    stream.write_all(asked).expect("written");
    let mut said = String::new();
    // A connection that cannot be made further on is closed, or reset.
    drop(stream.read_to_string(&mut said));
    said
}

/// Waits until so many sockets of the pod listen at ports that look so in /proc/net/tcp.
async fn listens(rig: &Rig, container: &str, ports: &str, sockets: usize) {
    let mut client = rig.client.clone();
    let script = format!("cat /proc/net/tcp /proc/net/tcp6 | grep -c '{ports} 0A '");
    conformance::eventually(deadline(), async || {
        let listening = client.exec(container, &["sh", "-c", &script], 5).await;
        (listening.expect("exec").stdout == format!("{sockets}\n")).then_some(())
    })
    .await
    .expect("all listen");
}

#[test]
fn ports_of_a_pod_are_reached_on_both_families_and_a_closed_one_is_told() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let script = "mkdir /tmp/four /tmp/six; printf four >/tmp/four/page; printf six >/tmp/six/page; \
            busybox httpd -p 127.0.0.1:8080 -h /tmp/four; busybox httpd -p '[::1]:8081' -h /tmp/six; \
            sleep 1000";
        let (pod, id) = rig.running("ports", &["sh", "-c", script]).await;
        listens(rig, &id, ":1F9[01] .*", 2).await;
        for transport in TRANSPORTS {
            let words = [
                "port-forward",
                "-r",
                transport,
                &pod,
                ":8080",
                ":8081",
                ":8082",
            ];
            let forwarder = crictl.begin(&words);
            for _ in 0..5 {
                for (port, page) in [(8080, "\r\n\r\nfour"), (8081, "\r\n\r\nsix")] {
                    let said = ask(chosen(&forwarder, port));
                    assert!(said.ends_with(page), "{port}: {said}");
                }
            }
            assert_eq!(ask(chosen(&forwarder, 8082)), "");
            let told = forwarder.complains("refused");
            assert!(told.contains("8082"), "{told}");
            drop(forwarder);
        }
        let words = ["port-forward", &pod, ":8080"];
        let forwarder = crictl.begin(&words);
        let address = chosen(&forwarder, 8080);
        rig.client.stop_pod(&pod).await.expect("stop");
        wait_for("no answer from a pod that was stopped", || {
            let left = TcpStream::connect(address).is_err();
            (left || ask(address).is_empty()).then_some(())
        });
        let refused = crictl.fails(&words);
        assert!(refused.contains("not ready"), "{refused}");
    });
}

#[test]
fn a_forwarded_connection_is_whole_and_ends_in_each_direction_by_itself() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        // What comes is counted when it has ended, and much goes back then.
        let script =
            "nc -ll -p 8080 -e sh -c 'wc -c; dd if=/dev/zero bs=1024 count=4096 2>/dev/null'";
        let (pod, id) = rig.running("whole", &["sh", "-c", script]).await;
        listens(rig, &id, ":1F90 .*", 1).await;
        for transport in TRANSPORTS {
            let forwarder = crictl.begin(&["port-forward", "-r", transport, &pod, ":8080"]);
            let address = chosen(&forwarder, 8080);
            let connections: Vec<_> = (1..=4_usize)
                .map(|number| {
                    let mut stream = TcpStream::connect(address).expect("crictl listens");
                    stream
                        .set_read_timeout(Some(deadline()))
                        .expect("a deadline");
                    std::thread::spawn(move || {
                        let sent = vec![b'x'; number << 20];
                        stream.write_all(&sent).expect("written");
                        stream.shutdown(Shutdown::Write).expect("an end");
                        let mut back = Vec::new();
                        stream.read_to_end(&mut back).expect("read");
                        let zeros = back.iter().position(|byte| *byte == 0).expect("zeros");
                        let (count, zeros) = back.split_at(zeros);
                        assert_eq!(count, format!("{}\n", sent.len()).as_bytes());
                        assert_eq!(zeros, vec![0; 4 << 20]);
                    })
                })
                .collect();
            for connection in connections {
                connection.join().expect("as it should be");
            }
        }
    });
}

#[test]
fn what_is_piped_through_a_command_arrives_whole() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (_, id) = rig.running("piped", &["sleep", "1000"]).await;
        let sent: String = (0..1_000_000).map(|number| format!("{number}\n")).collect();
        for transport in TRANSPORTS {
            let words = ["exec", "-i", "-r", transport, &id, "cat"];
            let mut piped = crictl.begin(&words);
            piped.types(&sent);
            piped.ends_input();
            let said = piped.ended();
            assert_eq!(said.code, Some(0), "{}", said.stderr);
            assert_eq!(said.stdout.len(), sent.len());
            assert!(said.stdout == sent, "another text of the same length");
        }
    });
}

#[test]
fn a_command_ends_with_the_crictl_that_was_interrupted() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (_, id) = rig.running("interrupted", &["sleep", "1000"]).await;
        let script = "echo begun; sleep 7654";
        let command = crictl.begin(&["exec", "-i", &id, "sh", "-c", script]);
        command.until("begun\n");
        assert!(runs("sleep\u{0}7654"));
        command.interrupted();
        wait_for("the command's end", || {
            (!runs("sleep\u{0}7654")).then_some(())
        });
    });
}
