//! Runs the built crictl, with pipes or with a terminal of its own.
//!
//! A terminal is a pseudo-terminal whose controlling process is crictl, as a person's is:
//! so it hears of the window's changes and of keys that mean a signal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;

use crate::rig::{Rig, deadline};

/// crictl, and the engine that it is to speak to.
pub(crate) struct Crictl {
    program: PathBuf,
    options: Vec<String>,
}

/// What a command said, and its exit code.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

/// What was read so far, and whether that is all.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    ended: bool,
}

type Ear = Arc<Mutex<Heard>>;

/// A crictl that runs; it ends with this value.
pub(crate) struct Running {
    child: Child,
    stdout: Ear,
    stderr: Ear,
    input: Option<File>,
}

/// Where `conformance/critest/prepare` leaves crictl.
fn program() -> PathBuf {
    let built = "../target/conformance/bin/crictl";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(built);
    assert!(
        path.is_file(),
        "no crictl at {}; run conformance/critest/prepare crictl",
        path.display()
    );
    path
}

/// What crictl says of itself.
pub(crate) fn help() -> String {
    let output = Command::new(program()).arg("--help").output();
    String::from_utf8(output.expect("crictl").stdout).expect("text")
}

impl Crictl {
    pub(crate) fn of(rig: &Rig) -> Self {
        let endpoint = format!("unix://{}", rig.engine.socket().display());
        let options = ["--config", "/dev/null", "--timeout", "20s"].map(str::to_owned);
        let endpoint = ["--runtime-endpoint".to_owned(), endpoint];
        Self {
            program: program(),
            options: options.into_iter().chain(endpoint).collect(),
        }
    }

    /// Another configuration than none: `crictl config` reads and writes it.
    pub(crate) fn with_config(path: &str) -> Self {
        Self {
            program: program(),
            options: vec!["--config".to_owned(), path.to_owned()],
        }
    }

    /// Runs a command to its end, without input.
    pub(crate) fn run(&self, words: &[&str]) -> Said {
        self.with_pipes(words, Stdio::null()).ended()
    }

    /// What a command prints that has to succeed.
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert_eq!(said.code, Some(0), "crictl {words:?}: {said:?}");
        said.stdout
    }

    /// The same as JSON.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let text = self.ok(words);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
    }

    /// The words of each line that a command prints which has to succeed.
    pub(crate) fn lines(&self, words: &[&str]) -> Vec<String> {
        self.ok(words).lines().map(str::to_owned).collect()
    }

    /// What a command says that has to fail, with any code but that of success.
    pub(crate) fn fails(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert!(
            said.code.is_some_and(|code| code != 0),
            "crictl {words:?}: {said:?}"
        );
        said.stderr
    }

    /// Begins a command whose input is a pipe.
    pub(crate) fn begin(&self, words: &[&str]) -> Running {
        self.with_pipes(words, Stdio::piped())
    }

    fn with_pipes(&self, words: &[&str], input: Stdio) -> Running {
        let mut command = Command::new(&self.program);
        command.args(&self.options).args(words).stdin(input);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("crictl");
        let input = child.stdin.take().map(OwnedFd::from).map(File::from);
        let stdout = OwnedFd::from(child.stdout.take().expect("a pipe"));
        let stderr = OwnedFd::from(child.stderr.take().expect("a pipe"));
        Running {
            child,
            stdout: listen(File::from(stdout)),
            stderr: listen(File::from(stderr)),
            input,
        }
    }

    /// Begins a command with a terminal of 30 lines of 90 characters.
    pub(crate) fn in_terminal(&self, words: &[&str]) -> Running {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.expect("a terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).expect("its other side");
        let other = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(&self.program);
        command.args(&self.options).args(words);
        command.stdin(other()).stdout(other()).stderr(other());
        let master = File::from(master);
        set_size(&master, 30, 90);
        let child = command.spawn().expect("crictl in a session of its own");
        drop((command, slave));
        Running {
            child,
            stdout: listen(master.try_clone().expect("a descriptor")),
            stderr: Arc::new(Mutex::new(Heard {
                ended: true,
                ..Heard::default()
            })),
            input: Some(master),
        }
    }
}

fn set_size(terminal: &File, lines: u16, columns: u16) {
    let size = Winsize {
        ws_row: lines,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("a size");
}

/// Reads to the end on a thread of its own. A terminal's end is an error, EIO.
fn listen(mut file: File) -> Ear {
    let ear = Ear::default();
    let heard = Arc::clone(&ear);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = file.read(&mut buffer) {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.bytes.extend_from_slice(&buffer[..count]);
        }
        heard.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
    });
    ear
}

fn text(ear: &Ear) -> (String, bool) {
    let heard = ear.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&heard.bytes);
    (text.replace('\r', ""), heard.ended)
}

/// Waits until something is met, or fails with what was heard.
pub(crate) fn wait_for<T>(what: &str, mut met: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline();
    loop {
        if let Some(found) = met() {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        // Polled: it is about another process.
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Running {
    /// Waits until it has printed this; answers all that it has printed, without carriage
    /// returns.
    pub(crate) fn until(&self, wanted: &str) -> String {
        let end = Instant::now() + deadline();
        loop {
            let (said, ended) = text(&self.stdout);
            if said.contains(wanted) {
                return said;
            }
            let late = ended || Instant::now() > end;
            assert!(
                !late,
                "{wanted:?} is not in {said:?} ({:?})",
                text(&self.stderr).0
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has printed so far.
    pub(crate) fn said(&self) -> String {
        text(&self.stdout).0
    }

    /// Waits until it has complained of this.
    pub(crate) fn complains(&self, wanted: &str) -> String {
        wait_for(wanted, || {
            Some(text(&self.stderr).0).filter(|said| said.contains(wanted))
        })
    }

    /// Types, or sends to its input.
    pub(crate) fn types(&mut self, words: &str) {
        let input = self.input.as_mut().expect("an input");
        input.write_all(words.as_bytes()).expect("written");
    }

    /// Ends its input, which is a pipe.
    pub(crate) fn ends_input(&mut self) {
        self.input = None;
    }

    /// Changes the size of its terminal.
    pub(crate) fn resize(&self, lines: u16, columns: u16) {
        set_size(self.input.as_ref().expect("a terminal"), lines, columns);
    }

    /// Interrupts it, as a person does with a key.
    pub(crate) fn interrupt(&self) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("a process");
    }

    /// Interrupts it until it ends: while it reads a stream, it passes over the first time.
    pub(crate) fn interrupted(mut self) -> Said {
        wait_for("the end of what was interrupted", || {
            self.interrupt();
            self.child.try_wait().expect("a child")
        });
        self.ended()
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> Said {
        let end = Instant::now() + deadline();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(
                Instant::now() < end,
                "it does not end: {:?} {:?}",
                text(&self.stdout).0,
                text(&self.stderr).0
            );
            std::thread::sleep(Duration::from_millis(10));
        };
        for ear in [&self.stdout, &self.stderr] {
            wait_for("the end of its output", || text(ear).1.then_some(()));
        }
        Said {
            stdout: text(&self.stdout).0,
            stderr: text(&self.stderr).0,
            code: status.code(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already is not there to be killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
