//! System calls by strace: how many, of whom, and what they started and wrote.
//!
//! One file a thread, so that no line is torn. A thread's calls belong to the
//! program that it runs: a child's belong to its parent's program until it executes
//! one. What depends on the scheduler is left out: waits, wake-ups, memory and the
//! birth of threads, and whatever was answered "try again".

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually;

const DEADLINE: Duration = Duration::from_secs(20);

/// Calls that depend on the scheduler and the allocator.
const NOISE: [&str; 28] = [
    "brk",
    "clock_nanosleep",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "exit",
    "exit_group",
    "futex",
    "getpid",
    "gettid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "poll",
    "ppoll",
    "prctl",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
];

/// A running strace.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    dir: PathBuf,
    /// Threads that were there before, by their program.
    known: BTreeMap<i32, Program>,
}

/// Whose calls they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Program {
    Engine,
    Monitor,
    /// Anything else of the engine's or the node's, such as a network plugin.
    Other,
    /// The container's own; nobody's cost.
    Container,
}

impl Program {
    const fn word(self) -> Option<&'static str> {
        match self {
            Self::Engine => Some("engine"),
            Self::Monitor => Some("monitor"),
            Self::Other => Some("other programs"),
            Self::Container => None,
        }
    }

    /// By the line of an `execve`.
    fn executed(line: &str) -> Self {
        let is = |name: &str| line.contains(&format!("[\"{name}\""));
        if is("slipway-monitor") || is("slipway-init") {
            Self::Monitor
        } else if is("/bin/sleep") || is("/bin/true") {
            Self::Container
        } else {
            Self::Other
        }
    }
}

impl Tracer {
    /// Attaches to an engine and its idle monitors.
    ///
    /// # Errors
    /// strace is not installed or may not trace.
    pub async fn attach(dir: &Path, engine: u32) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let engine = i32::try_from(engine)?;
        let mut known = BTreeMap::new();
        let mut command = Command::new("strace");
        command.args(["-f", "-ff", "-y", "-s", "64", "-e", "signal=none", "-o"]);
        command.arg(dir.join("t"));
        for (pid, program) in [(engine, Program::Engine)]
            .into_iter()
            .chain(children(engine).map(|pid| (pid, Program::Monitor)))
        {
            command.arg("-p").arg(pid.to_string());
            known.extend(threads(pid).map(|thread| (thread, program)));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::File::create(dir.join("log"))?;
        let child = command.stderr(log).spawn().context("run strace")?;
        let mut tracer = Self {
            child,
            dir: dir.to_owned(),
            known,
        };
        let all = || tracer.known.keys().all(|thread| is_traced(*thread));
        if eventually(DEADLINE, async || all().then_some(()))
            .await
            .is_none()
        {
            tracer.stop()?;
            let said = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            bail!("strace does not attach: {said}");
        }
        Ok(tracer)
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGINT,
        )
        .context("end strace")?;
        self.child.wait().context("end strace")?;
        Ok(())
    }

    /// Detaches and counts.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn end(mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        self.stop()?;
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let thread = path
                .extension()
                .and_then(|text| text.to_str()?.parse::<i32>().ok());
            if let Some(thread) = thread {
                let bytes = std::fs::read(&path)?;
                files.insert(thread, String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        ensure!(!files.is_empty(), "strace wrote nothing");
        Ok(count(&files, &self.known))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Only after a failure; it has ended otherwise.
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn children(pid: i32) -> impl Iterator<Item = i32> {
    let threads = threads(pid).map(move |thread| format!("/proc/{pid}/task/{thread}/children"));
    let lists = threads.filter_map(|path| std::fs::read_to_string(path).ok());
    let lists: Vec<String> = lists.collect();
    let pids = lists.into_iter().flat_map(|list| {
        let words = list.split_whitespace();
        words
            .filter_map(|word| word.parse().ok())
            .collect::<Vec<i32>>()
    });
    pids.collect::<Vec<_>>().into_iter()
}

fn threads(pid: i32) -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Whether strace follows it; one that has ended needs no following.
fn is_traced(thread: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else {
        return true;
    };
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|pid| pid.trim() != "0")
}

/// One call: its name, its text and what it answered.
struct Line<'a> {
    call: &'a str,
    text: &'a str,
    answer: Option<i64>,
}

fn parse(line: &str) -> Option<Line<'_>> {
    let (call, _) = line.split_once('(')?;
    if !call
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    {
        return None;
    }
    let answer = line.rsplit_once(" = ").map_or("", |(_, answer)| answer);
    let number = answer.split([' ', '<']).next().unwrap_or_default();
    Some(Line {
        call,
        text: line,
        answer: number.parse().ok(),
    })
}

impl Line<'_> {
    fn is_noise(&self) -> bool {
        NOISE.contains(&self.call)
            || self.text.contains("CLONE_THREAD")
            || self.text.contains("= -1 EAGAIN")
            || self.text.contains("[eventfd]>")
            || self.text.ends_with("<unfinished ...>")
    }

    /// The thread or process that it gave birth to.
    fn born(&self) -> Option<i32> {
        let gives = matches!(self.call, "clone" | "clone3" | "fork" | "vfork");
        let answer = self.answer.filter(|answer| gives && *answer > 0)?;
        i32::try_from(answer).ok()
    }

    /// Bytes that it wrote to a file which is no window to the kernel.
    fn written(&self) -> u64 {
        let writes = ["write", "writev", "pwrite64", "pwritev", "pwritev2"];
        if !writes.contains(&self.call) {
            return 0;
        }
        let path = self.text.split_once('<').map_or("", |(_, rest)| rest);
        let kernels = ["/proc/", "/sys/", "/dev/", "/memfd:"];
        if !path.starts_with('/') || kernels.iter().any(|dir| path.starts_with(dir)) {
            return 0;
        }
        self.answer
            .and_then(|answer| u64::try_from(answer).ok())
            .unwrap_or(0)
    }
}

/// Counts the lines of all threads.
fn count(files: &BTreeMap<i32, String>, known: &BTreeMap<i32, Program>) -> BTreeMap<String, u64> {
    let mut programs = known.clone();
    let mut todo: Vec<i32> = known.keys().copied().collect();
    let mut counts = BTreeMap::new();
    // What is there at all is counted from nought, so that nothing goes missing.
    for name in ["processes started", "programs executed"] {
        counts.insert(name.to_owned(), 0);
    }
    while let Some(thread) = todo.pop() {
        let Some(text) = files.get(&thread) else {
            continue;
        };
        let mut program = programs.get(&thread).copied().unwrap_or(Program::Other);
        for line in text.lines().filter_map(parse) {
            if let Some(born) = line.born() {
                programs.insert(born, program);
                todo.push(born);
                if !line.text.contains("CLONE_THREAD") && program.word().is_some() {
                    *counts.entry("processes started".to_owned()).or_default() += 1;
                }
            }
            let (Some(word), false) = (program.word(), line.is_noise()) else {
                continue;
            };
            *counts.entry(format!("{word}: system calls")).or_default() += 1;
            *counts.entry(format!("{word}: bytes to files")).or_default() += line.written();
            if matches!(line.call, "execve" | "execveat") && line.answer == Some(0) {
                *counts.entry("programs executed".to_owned()).or_default() += 1;
                program = Program::executed(line.text);
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_calls_are_its_parents_until_it_executes_a_program() {
        let files = BTreeMap::from([
            (10, "openat(AT_FDCWD, \"/a\", O_RDONLY) = 3</a>\nclone3({flags=CLONE_VM|CLONE_VFORK}, 88) = 11\nfutex(0x1) = 0\n".to_owned()),
            (11, "setsid() = 11\nexecve(\"/proc/self/fd/5\", [\"slipway-monitor\"], 0x7 /* 0 vars */) = 0\nread(0, \"\", 1) = -1 EAGAIN (Resource temporarily unavailable)\nclone3({flags=CLONE_NEWPID}, 88) = 12\n".to_owned()),
            (12, "mount(\"a\") = 0\nexecve(\"/bin/sleep\", [\"/bin/sleep\", \"1\"], 0x7) = 0\nopenat(AT_FDCWD, \"/b\") = 3\n".to_owned()),
        ]);
        let counts = count(&files, &BTreeMap::from([(10, Program::Engine)]));
        assert_eq!(
            counts["engine: system calls"], 4,
            "openat, clone3, setsid, execve"
        );
        assert_eq!(counts["monitor: system calls"], 3, "clone3, mount, execve");
        assert_eq!(counts["processes started"], 2);
        assert_eq!(counts["programs executed"], 2);
        assert!(!counts.keys().any(|name| name.starts_with("other")));
    }

    #[test]
    fn only_bytes_that_reach_files_are_counted() {
        let written = |line: &str| parse(line).expect("a call").written();
        assert_eq!(written("write(7</var/lib/x/pod.json>, \"{\", 1) = 1"), 1);
        assert_eq!(written("pwrite64(7</a>, \"..\"..., 4096, 0) = 4096"), 4096);
        assert_eq!(
            written("write(7</sys/fs/cgroup/a/cgroup.procs>, \"0\", 1) = 1"),
            0
        );
        assert_eq!(written("write(7<socket:[1]>, \"0\", 1) = 1"), 0);
        assert_eq!(
            written("write(7</a>, \"0\", 1) = -1 ENOSPC (No space left on device)"),
            0
        );
    }

    #[test]
    fn what_the_scheduler_decides_is_no_call() {
        let noise = |line: &str| parse(line).expect("a call").is_noise();
        assert!(noise("futex(0x7f, FUTEX_WAKE_PRIVATE, 1) = 1"));
        assert!(noise("write(5<anon_inode:[eventfd]>, \"\\1\", 8) = 8"));
        assert!(noise("clone3({flags=CLONE_VM|CLONE_THREAD}, 88) = 9"));
        assert!(!noise(
            "openat(AT_FDCWD, \"/a\") = -1 ENOENT (No such file or directory)"
        ));
        assert!(parse("+++ exited with 0 +++").is_none());
    }
}
