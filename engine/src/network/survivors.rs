//! Ends processes of plugins that nobody waits for any more.
//!
//! A plugin outlives an engine that is killed, and what a plugin started, its IPAM plugin
//! most of all, outlives a plugin that ran out of time. An ADD that goes on beside the
//! DEL makes an attachment that nobody knows of.
//!
//! Knows them by `CNI_CONTAINERID` in their environment. Never looks at processes of
//! another PID namespace: plugins run in the engine's, and a process of a container can
//! have whoever reads its environment wait for memory that never comes. A crash leaves
//! nothing: whoever gives the network back later looks again.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::NetworkError;

/// More than the kernel lets a program be started with.
const MOST_ENVIRONMENT: u64 = 8 << 20;

/// Kills all processes of plugins of a pod, and returns when they are gone.
pub(super) fn end(pod: &str, patience: Duration) -> Result<(), NetworkError> {
    let until = Instant::now() + patience;
    let variable = format!("CNI_CONTAINERID={pod}");
    // Again until there are none: one may start another before it is killed.
    loop {
        let found = find(variable.as_bytes()).map_err(NetworkError::Processes)?;
        if found.is_empty() {
            return Ok(());
        }
        for (pid, process) in &found {
            tracing::info!(pod, pid = pid.as_raw_nonzero(), "ending a plugin's process");
            match pidfd_send_signal(process, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(NetworkError::Processes(error.into())),
            }
        }
        for (pid, process) in &found {
            if !gone(process, until).map_err(NetworkError::Processes)? {
                let pid = pid.as_raw_nonzero().get();
                return Err(NetworkError::Survivor { pid });
            }
        }
    }
}

/// The processes that have a variable in their environment.
fn find(variable: &[u8]) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let own = getpid();
    // With a /proc of another PID namespace the numbers would be those of others.
    if std::fs::read_link("/proc/self")? != Path::new(&own.to_string()) {
        return Err(io::Error::other("/proc is of another PID namespace"));
    }
    let namespace = pid_namespace(own)?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw).filter(|pid| *pid != own) else {
            continue;
        };
        if matches(pid, namespace, variable)?
            && let Some(process) = unless_gone(pidfd_open(pid, PidfdFlags::empty()))?
            // If the number is another's by now, the descriptor is of a process that is gone.
            && matches(pid, namespace, variable)?
        {
            found.push((pid, process));
        }
    }
    Ok(found)
}

/// Whether a process of the namespace has the variable.
fn matches(pid: Pid, namespace: (u64, u64), variable: &[u8]) -> io::Result<bool> {
    if unless_gone(pid_namespace(pid))? != Some(namespace) {
        return Ok(false);
    }
    let Some(file) = unless_gone(File::open(format!("/proc/{pid}/environ")))? else {
        return Ok(false);
    };
    let mut environment = Vec::new();
    let read = file.take(MOST_ENVIRONMENT).read_to_end(&mut environment);
    if unless_gone(read)?.is_none() {
        return Ok(false);
    }
    Ok(environment
        .split(|byte| *byte == 0)
        .any(|one| one == variable))
}

fn pid_namespace(pid: Pid) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::stat(format!("/proc/{pid}/ns/pid"))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// `None` for a process that has ended, that is one of the kernel's or has no memory for
/// its environment, or that the engine, as which plugins run, may not look at.
fn unless_gone<T, E: Into<io::Error>>(result: Result<T, E>) -> io::Result<Option<T>> {
    let error = match result {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error.into(),
    };
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM | Errno::IO) => Ok(None),
        _ => Err(error),
    }
}

/// Waits until a process is gone; false if it is not in time.
fn gone(process: &OwnedFd, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;
    use crate::ids::PodId;

    fn sleeper(name: &str, value: &str) -> Child {
        let mut command = Command::new("sleep");
        command.env_clear().env("FIRST", "1").env(name, value);
        command.arg("1000").spawn().expect("a process")
    }

    #[test]
    fn processes_of_plugins_of_one_pod_end_and_no_others() {
        let pod = PodId::random().to_string();
        let mut own = [
            sleeper("CNI_CONTAINERID", &pod),
            sleeper("CNI_CONTAINERID", &pod),
        ];
        let mut others = [
            sleeper("CNI_CONTAINERID", &format!("{pod}0")),
            sleeper("CNI_CONTAINERID", &pod[1..]),
            sleeper("XCNI_CONTAINERID", &pod),
            sleeper("NOTE", &format!("CNI_CONTAINERID={pod}")),
        ];
        let ended = end(&pod, Duration::from_secs(20));
        let lives = others.each_mut().map(|one| one.try_wait().expect("wait"));
        for one in &mut others {
            one.kill().expect("kill");
            one.wait().expect("wait");
        }
        ended.expect("ended");
        assert_eq!(lives, [None; 4]);
        for one in &mut own {
            let status = one.try_wait().expect("wait").expect("ended");
            assert_eq!(status.signal(), Some(9));
        }
        end(&pod, Duration::ZERO).expect("nothing to do");
    }
}
