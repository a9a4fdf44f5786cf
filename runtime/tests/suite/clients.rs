//! Clients that read what processes write, and write what they read, as it comes.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use runtime::client::{Attachment, ExecExit, ExecProcess, ExecStreams, MonitorError};
use runtime::terminal;
use rustix::event::{PollFd, PollFlags};

use crate::support::{Kind, Pod, TestContainer, TestSpec, detached_tmpfs, volume, wait_until};

/// Nobody waits longer for what a client has to read.
const DEADLINE: Duration = Duration::from_secs(20);

/// A pipe that does not keep its reader waiting for ever.
pub(crate) struct Reader(OwnedFd);

impl Reader {
    fn pair() -> (Self, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        (Self(read), write)
    }

    /// What one read gives; empty at the end.
    fn read(&self) -> Vec<u8> {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let patience = rustix::event::Timespec::try_from(DEADLINE).unwrap();
        let found = rustix::event::poll(&mut polled, Some(&patience)).unwrap();
        assert_eq!(found, 1, "nothing came");
        let mut bytes = vec![0; 1 << 16];
        let length = match rustix::io::read(&self.0, &mut bytes) {
            // A terminal that nobody has any more.
            Err(rustix::io::Errno::IO) => 0,
            other => other.unwrap(),
        };
        bytes.truncate(length);
        bytes
    }

    /// Reads until a text has come.
    pub(crate) fn until(&self, text: &str) -> String {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(text) {
            let piece = self.read();
            let so_far = String::from_utf8_lossy(&all).into_owned();
            assert!(!piece.is_empty(), "{text} did not come: {so_far}");
            all.extend(piece);
        }
        String::from_utf8(all).unwrap()
    }

    /// Reads to the end.
    pub(crate) fn rest(&self) -> String {
        let mut all = Vec::new();
        loop {
            let piece = self.read();
            if piece.is_empty() {
                return String::from_utf8_lossy(&all).into_owned();
            }
            all.extend(piece);
        }
    }
}

fn request(container: &TestContainer, spec: &TestSpec, streams: ExecStreams) -> ExecProcess {
    ExecProcess {
        container: container.id.clone(),
        process: spec.process(),
        streams,
        streaming: true,
        timeout: None,
        cgroup_files: container.cgroup.files_to_join(),
    }
}

pub(crate) type Ended = tokio::task::JoinHandle<Result<ExecExit, MonitorError>>;

/// Runs a process with pipes.
pub(crate) fn piped(
    pod: &Pod,
    container: &TestContainer,
    script: &str,
) -> (Ended, File, Reader, Reader) {
    let (stdin, write) = rustix::pipe::pipe().unwrap();
    let (out, stdout) = Reader::pair();
    let (err, stderr) = Reader::pair();
    let streams = ExecStreams::Pipes {
        stdin: Some(stdin),
        stdout,
        stderr,
    };
    let request = request(container, &TestSpec::shell(script), streams);
    let monitor = pod.monitor.clone();
    let ended = tokio::spawn(async move { monitor.exec(request).await });
    (ended, write.into(), out, err)
}

/// Runs a process with a terminal, and receives that.
fn with_terminal(pod: &Pod, container: &TestContainer, script: &str) -> (Ended, OwnedFd) {
    let (receives, sends) = terminal::pair().unwrap();
    let spec = TestSpec::shell(script);
    let request = request(container, &spec, ExecStreams::Terminal(sends));
    let monitor = pod.monitor.clone();
    let ended = tokio::spawn(async move { monitor.exec(request).await });
    (ended, received(&receives))
}

fn received(socket: &OwnedFd) -> OwnedFd {
    let mut master = None;
    assert!(wait_until(|| {
        master = terminal::receive(socket.as_fd()).ok();
        master.is_some()
    }));
    master.unwrap()
}

pub(crate) async fn code(ended: Ended) -> i32 {
    match tokio::time::timeout(DEADLINE, ended).await.unwrap() {
        Ok(Ok(ExecExit::Exited { code })) => code,
        other => panic!("{other:?}"),
    }
}

async fn sleeper(pod: &mut Pod) -> TestContainer {
    pod.run(&TestSpec::new(&["sleep", "1000"])).await
}

/// What a client writes is read as it comes, and its end ends the input.
pub(crate) async fn commands_read_as_it_comes(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let script = "read line; echo got $line; cat >&2; exit 7";
    let (ended, mut input, out, err) = piped(&pod, &container, script);
    input.write_all(b"one\n").unwrap();
    out.until("got one\n");
    let much = "x".repeat(300_000);
    let writes = std::thread::spawn(move || input.write_all(much.as_bytes()).unwrap());
    assert_eq!(err.rest().len(), 300_000);
    writes.join().unwrap();
    assert_eq!(code(ended).await, 7);
    assert_eq!(out.rest(), "");
    pod.end().await;
}

/// Who takes his time gets all of it, and the answer waits for him; who reads nothing any
/// more ends neither the command's answer nor another's.
pub(crate) async fn slow_readers_of_commands_get_all(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let (ended, _input, out, _err) = piped(&pod, &container, "seq 1 20000; exit 3");
    let (left, _input2, gone, _err2) = piped(&pod, &container, "seq 1 20000; exit 4");
    drop(gone);
    assert_eq!(code(left).await, 4);
    // Longer than a command's output that is collected may be on its way.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!ended.is_finished());
    let text = tokio::task::spawn_blocking(move || out.rest())
        .await
        .unwrap();
    assert_eq!(text.lines().count(), 20_000);
    assert_eq!(code(ended).await, 3);
    pod.end().await;
}

/// A command with a terminal has all of one, and its size can be changed.
pub(crate) async fn commands_have_terminals(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let script = "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; (exec 3</dev/tty) && echo controlling; \
                  read line; stty size; exit 5";
    let (ended, master) = with_terminal(&pod, &container, script);
    terminal::resize(master.as_fd(), 33, 77).unwrap();
    let reader = Reader(rustix::io::dup(&master).unwrap());
    let said = reader.until("controlling");
    assert!(
        said.starts_with("/dev/pts/") && said.contains("all\r\n"),
        "{said}"
    );
    rustix::io::write(&master, b"go\n").unwrap();
    reader.until("33 77");
    assert_eq!(code(ended).await, 5);
    pod.end().await;
}

/// A terminal of a command is a terminal for its signals, too, and closing it is heard.
pub(crate) async fn terminals_carry_signals(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let (ended, master) = with_terminal(&pod, &container, script);
    let reader = Reader(rustix::io::dup(&master).unwrap());
    reader.until("ready");
    rustix::io::write(&master, b"\x03").unwrap();
    reader.until("caught");
    assert_eq!(code(ended).await, 9);
    drop((reader, master));
    let (ended, master) = with_terminal(&pod, &container, "echo ready; sleep 1000");
    let reader = Reader(master);
    reader.until("ready");
    drop(reader);
    assert_eq!(code(ended).await, 129);
    pod.end().await;
}

/// A container without terminals refuses one by name, and so does one whose devpts is
/// something else.
pub(crate) async fn false_terminals_are_refused(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::new(&["sleep", "1000"]);
    let tmpfs = volume("/dev/pts", detached_tmpfs(), &["rw"]);
    let request = |request: &mut runtime::client::CreateContainer| {
        request.spec.mounts.push(tmpfs);
    };
    let container = pod.create_with(&spec, request).await.unwrap();
    pod.start(&container).await;
    let (receives, sends) = terminal::pair().unwrap();
    let spec = TestSpec::shell("true");
    let request = self::request(&container, &spec, ExecStreams::Terminal(sends));
    let refused = pod.monitor.exec(request).await.unwrap_err();
    let is_named =
        matches!(&refused, MonitorError::Launch { step, .. } if step == "open its terminal");
    assert!(is_named, "{refused:?}");
    assert!(terminal::receive(receives.as_fd()).is_err());
    pod.end().await;
}

fn attachment(container: &TestContainer) -> Attachment {
    Attachment {
        container: container.id.clone(),
        stdin: None,
        stdout: None,
        stderr: None,
        terminal: None,
    }
}

/// A client that reads what a container writes, and writes to it.
pub(crate) async fn attached(pod: &Pod, container: &TestContainer) -> (Reader, File) {
    let (out, stdout) = Reader::pair();
    let (stdin, input) = rustix::pipe::pipe().unwrap();
    let client = Attachment {
        stdin: Some(stdin),
        stdout: Some(stdout),
        ..attachment(container)
    };
    pod.monitor.attach(client).await.unwrap();
    (out, input.into())
}

/// Clients read what is written from then on, each for itself; the log has all of it.
pub(crate) async fn attached_clients_read_along(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell("echo before; read wait; echo out; echo err >&2; exit 2");
    let container = pod
        .create_with(&spec, |request| request.stdin = true)
        .await
        .unwrap();
    pod.start(&container).await;
    container.logged("before");
    let (out, stdout) = Reader::pair();
    let (err, stderr) = Reader::pair();
    let (stdin, mut input) = rustix::pipe::pipe()
        .map(|(r, w)| (r, File::from(w)))
        .unwrap();
    let first = Attachment {
        stdin: Some(stdin),
        stdout: Some(stdout),
        stderr: Some(stderr),
        ..attachment(&container)
    };
    pod.monitor.attach(first).await.unwrap();
    let (other, stdout) = Reader::pair();
    let second = Attachment {
        stdout: Some(stdout),
        ..attachment(&container)
    };
    pod.monitor.attach(second).await.unwrap();
    input.write_all(b"go\n").unwrap();
    assert_eq!(pod.exit(&container).await.exit_code, 2);
    assert_eq!(out.rest(), "out\n");
    assert_eq!(err.rest(), "err\n");
    assert_eq!(other.rest(), "out\n");
    let log = container.log();
    assert!(
        log.contains(&"stdout F before".to_owned()) && log.contains(&"stderr F err".to_owned())
    );
    let late = pod.monitor.attach(attachment(&container)).await;
    assert!(matches!(late, Err(MonitorError::NotRunning(_))), "{late:?}");
    pod.end().await;
}

/// A client that does not read keeps neither the log, nor the container, nor another
/// client waiting.
pub(crate) async fn clients_that_do_not_read_hold_up_nobody(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell("read wait; seq 1 50000; echo done");
    let container = pod
        .create_with(&spec, |request| request.stdin = true)
        .await
        .unwrap();
    pod.start(&container).await;
    let (idle, stdout) = Reader::pair();
    let lazy = Attachment {
        stdout: Some(stdout),
        ..attachment(&container)
    };
    pod.monitor.attach(lazy).await.unwrap();
    let (gone, stdout) = Reader::pair();
    let left = Attachment {
        stdout: Some(stdout),
        ..attachment(&container)
    };
    pod.monitor.attach(left).await.unwrap();
    drop(gone);
    let (stdin, mut input) = rustix::pipe::pipe()
        .map(|(r, w)| (r, File::from(w)))
        .unwrap();
    let writer = Attachment {
        stdin: Some(stdin),
        ..attachment(&container)
    };
    pod.monitor.attach(writer).await.unwrap();
    input.write_all(b"go\n").unwrap();
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    assert_eq!(container.log().len(), 50_001);
    assert!(idle.rest().starts_with("1\n2\n"));
    pod.end().await;
}

/// An input closes with its first client where that was asked for, and stays open else.
pub(crate) async fn input_closes_once_or_stays(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    for once in [true, false] {
        let spec = TestSpec::shell("cat; echo end");
        let container = pod
            .create_with(&spec, |request| {
                request.stdin = true;
                request.stdin_once = once;
            })
            .await
            .unwrap();
        pod.start(&container).await;
        for word in ["one", "two"] {
            let (stdin, mut input) = rustix::pipe::pipe()
                .map(|(r, w)| (r, File::from(w)))
                .unwrap();
            let client = Attachment {
                stdin: Some(stdin),
                ..attachment(&container)
            };
            pod.monitor.attach(client).await.unwrap();
            input.write_all(format!("{word}\n").as_bytes()).unwrap();
            drop(input);
            container.logged(word);
            if once {
                break;
            }
        }
        if !once {
            pod.monitor.signal(&container.id, 9).await.unwrap();
        }
        let code = if once { 0 } else { 137 };
        assert_eq!(pod.exit(&container).await.exit_code, code, "once: {once}");
    }
    pod.end().await;
}

/// Whoever attaches to a terminal has it: he writes, and changes its size.
pub(crate) async fn attached_clients_have_the_terminal(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell("read line; echo got $line; read line; stty size; exit 4");
    let container = pod
        .create_with(&spec, |request| request.spec.process.terminal = true)
        .await
        .unwrap();
    pod.start(&container).await;
    let (out, stdout) = Reader::pair();
    let (receives, sends) = terminal::pair().unwrap();
    let client = Attachment {
        stdout: Some(stdout),
        terminal: Some(sends),
        ..attachment(&container)
    };
    pod.monitor.attach(client).await.unwrap();
    let master = received(&receives);
    rustix::io::write(&master, b"hello\n").unwrap();
    out.until("got hello\r\n");
    terminal::resize(master.as_fd(), 11, 22).unwrap();
    rustix::io::write(&master, b"go\n").unwrap();
    out.until("11 22");
    drop(master);
    assert_eq!(pod.exit(&container).await.exit_code, 4);
    pod.end().await;
}

/// What a client writes to a container that does not read keeps nobody waiting, and goes
/// with the client.
pub(crate) async fn clients_that_write_in_vain_hold_up_nobody(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let (ended, mut input, _out, _err) = piped(&pod, &container, "sleep 1000");
    let much = vec![b'x'; 1 << 20];
    // More than the pipes on the way hold.
    let writes = std::thread::spawn(move || input.write_all(&much));
    let (quick, _input, out, _err2) = piped(&pod, &container, "echo quick");
    out.until("quick");
    assert_eq!(code(quick).await, 0);
    assert!(!writes.is_finished(), "somebody read it");
    ended.abort();
    // It fails, or what is left is thrown away while the command ends.
    assert!(wait_until(|| writes.is_finished()), "it waits for ever");
    pod.end().await;
}

/// What it reads is the whole of a file, byte by byte.
pub(crate) async fn bytes_pass_unchanged(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let container = sleeper(&mut pod).await;
    let (ended, mut input, out, _err) = piped(&pod, &container, "cat");
    let bytes: Vec<u8> = (0..4_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let sent = bytes.clone();
    let writes = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let mut got = Vec::new();
    File::from(out.0).read_to_end(&mut got).unwrap();
    writes.join().unwrap();
    assert!(got == bytes, "{} bytes", got.len());
    assert_eq!(code(ended).await, 0);
    pod.end().await;
}
