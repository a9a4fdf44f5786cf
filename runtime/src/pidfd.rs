//! Signals to processes whose numbers were read somewhere.
//!
//! The number of a process is given to another once it was reaped, and whoever lives in a
//! container can make that happen between the reading of a list and the signal. So a descriptor
//! of the process is opened first, then it is made sure that the number still is where
//! it was read, and the signal goes to the descriptor: either it is the process that
//! was meant, or that one is gone and nobody is signalled. Numbers alone are for children that
//! this process has not reaped. Holds nothing longer than a call lasts.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How many descriptors of processes are held at once.
pub const MOST: usize = 256;

/// A descriptor of the process that has the number now; `None` where none has it.
///
/// # Errors
/// There is no descriptor left.
pub fn open(pid: Pid) -> Result<Option<OwnedFd>, Errno> {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => Err(error),
        // Gone, or the number of a thread.
        Err(_) => Ok(None),
    }
}

/// Whether a process has ended with all of its threads, be it reaped or not.
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
    rustix::event::poll(&mut ended, Some(&Timespec::default())) == Ok(1)
}

/// Processes of a cgroup, by its `cgroup.procs`: none where there is no cgroup.
///
/// # Errors
/// The list cannot be read.
pub fn listed(procs: &Path) -> io::Result<Vec<Pid>> {
    let text = match std::fs::read_to_string(procs) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        text => text?,
    };
    Ok(parsed(&text))
}

/// The processes of a list: those outside of this pid namespace, which stand there as 0,
/// are left out.
pub fn parsed(list: &str) -> Vec<Pid> {
    let numbers = list.lines().filter_map(|line| line.parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
}

/// Kills the processes of a list; `false`: it was empty.
///
/// # Errors
/// The list cannot be read.
pub fn kill_listed(list: impl Fn() -> io::Result<Vec<Pid>>) -> io::Result<bool> {
    let pids = list()?;
    for some in pids.chunks(MOST) {
        kill_those(some, &list)?;
    }
    Ok(!pids.is_empty())
}

/// Kills those that are still listed once they are held.
fn kill_those(pids: &[Pid], list: &impl Fn() -> io::Result<Vec<Pid>>) -> io::Result<()> {
    let held: Result<Vec<_>, Errno> = pids
        .iter()
        .filter_map(|pid| open(*pid).map(|it| Some((*pid, it?))).transpose())
        .collect();
    let still = held.map_err(io::Error::from).and_then(|held| {
        let still: HashSet<Pid> = list()?.into_iter().collect();
        Ok((held, still))
    });
    match still {
        Ok((held, still)) => {
            for (_, pidfd) in held.iter().filter(|(pid, _)| still.contains(pid)) {
                let _gone = pidfd_send_signal(pidfd, Signal::KILL);
            }
            Ok(())
        }
        // Fewer need fewer descriptors.
        Err(_) if pids.len() > 1 => {
            let (some, others) = pids.split_at(pids.len() / 2);
            kill_those(some, list)?;
            kill_those(others, list)
        }
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [libc::ENOENT, libc::ENODEV];
    error
        .raw_os_error()
        .is_some_and(|errno| gone.contains(&errno))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    use super::*;

    /// A process; killed with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _dead_already = self.0.kill();
            let _reaped = self.0.wait();
        }
    }

    /// What a number that was given to another looks like: it is listed no more once
    /// its new process is held.
    #[test]
    fn a_number_that_left_the_list_is_not_killed() {
        let (mut member, mut stranger) = (Sleeper::new(), Sleeper::new());
        let readings = Cell::new(0);
        let list = || {
            readings.set(readings.get() + 1);
            let all = [member.pid(), stranger.pid()];
            Ok(all[..if readings.get() == 1 { 2 } else { 1 }].to_vec())
        };
        assert!(kill_listed(list).unwrap());
        assert_eq!(member.0.wait().unwrap().signal(), Some(libc::SIGKILL));
        // What it ends by tells whether it was killed before.
        pidfd_send_signal(open(stranger.pid()).unwrap().unwrap(), Signal::TERM).unwrap();
        assert_eq!(stranger.0.wait().unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn a_number_that_nobody_has_is_nobody() {
        let mut child = Sleeper::new();
        let pid = child.pid();
        let pidfd = open(pid).unwrap().unwrap();
        assert!(!has_ended(&pidfd));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        assert!(has_ended(&pidfd));
        assert!(kill_listed(|| Ok(vec![pid])).unwrap());
        assert!(!kill_listed(|| Ok(Vec::new())).unwrap());
    }
}
