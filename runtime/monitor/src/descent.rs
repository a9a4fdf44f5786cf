//! Everything that descends from a process.
//!
//! Owns looking for it and killing it. A process that is a reaper of its own keeps
//! all of its descendants as long as it lives, whatever sessions they began; so they are
//! stopped before any is killed, from the top: what is stopped neither makes others nor
//! ends and leaves them to somebody else. Others in its container may wake what is
//! stopped, so a number that was seen may be anybody's a moment later: a descendant is
//! signalled by a descriptor that was opened before it was made sure whose child it is
//! (`runtime::pidfd`). What is too many to be held at once is killed in parts, and
//! what outruns all rounds is left to the end of the container.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use runtime::pidfd::{self, has_ended};
use runtime::procfs::{Stat, is_in_cgroup};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, pidfd_send_signal};

use crate::process::{raw, send_signal};

/// SIGSTOP.
const STOP: i32 = 19;
/// How often descendants are looked for: each round stops what was born meanwhile.
const ROUNDS: usize = 64;
/// How long they are looked for: the monitor does nothing else meanwhile.
const TIME: Duration = Duration::from_millis(300);

/// Kills what descends from a child of this process that is not reaped, but not the
/// child itself. Children of this process that it does not know were made by one of the
/// container with `CLONE_PARENT`: those of this container that are no older descend, too.
/// Not where the container has the node's PID namespace, whose orphans come to this process;
/// nor without `known`.
pub(crate) fn kill(ancestor: Pid, known: Option<&[i32]>, container: &str) {
    let until = Instant::now() + TIME;
    let _gone = send_signal(ancestor, STOP);
    let made = Stat::of(raw(ancestor)).map_or(u64::MAX, |stat| stat.made);
    let strangers = known.map(|known| Strangers {
        known,
        container,
        made,
    });
    let mut family = Family {
        strangers: strangers.filter(|_| !is_among_the_nodes(ancestor)),
        ..Family::new(ancestor)
    };
    for _ in 0..ROUNDS {
        if !family.take(&family.descendants()) || Instant::now() > until {
            break;
        }
    }
    family.kill();
}

/// Whether a process is in the PID namespace of this one.
fn is_among_the_nodes(pid: Pid) -> bool {
    let namespace = |process: &str| {
        let stat = rustix::fs::stat(format!("/proc/{process}/ns/pid"));
        stat.map(|stat| (stat.st_dev, stat.st_ino))
    };
    namespace(&raw(pid).to_string()) == namespace("self")
}

/// How children of this process that it does not know are told to be a command's.
struct Strangers<'a> {
    /// The children that this process knows.
    known: &'a [i32],
    /// The id that is in the name of the container's cgroups.
    container: &'a str,
    /// When the command was made.
    made: u64,
}

impl Strangers<'_> {
    fn has(&self, pid: Pid, stat: Stat) -> bool {
        let may_be = stat.made >= self.made && !self.known.contains(&raw(pid));
        may_be && is_in_cgroup(raw(pid), self.container).unwrap_or(false)
    }
}

/// A process and those of its descendants that are held and stopped.
struct Family<'a> {
    /// Not reaped before its parent, which is this process, does it: its number is its own.
    ancestor: i32,
    held: BTreeMap<i32, OwnedFd>,
    strangers: Option<Strangers<'a>>,
}

impl Family<'_> {
    fn new(ancestor: Pid) -> Self {
        Self {
            ancestor: raw(ancestor),
            held: BTreeMap::new(),
            strangers: None,
        }
    }

    /// Holds and stops those of the processes seen that belong to it, parents first.
    /// `false`: there was no other.
    fn take(&mut self, seen: &[Pid]) -> bool {
        let mut grown = false;
        for pid in seen {
            if self.is_held(raw(*pid)) {
                continue;
            }
            if self.held.len() >= pidfd::MOST {
                // Their children come to the ancestor and are seen there.
                grown |= self.kill();
            }
            match self.hold(*pid) {
                Ok(Some(pidfd)) => {
                    let _gone = pidfd_send_signal(&pidfd, Signal::STOP);
                    self.held.insert(raw(*pid), pidfd);
                    grown = true;
                }
                Ok(None) => {}
                // No descriptor is left: those that are held make room.
                Err(_) => grown |= self.kill(),
            }
        }
        grown
    }

    /// The process that has a number, if it belongs to the family and lives.
    fn hold(&self, pid: Pid) -> Result<Option<OwnedFd>, Errno> {
        let Some(pidfd) = pidfd::open(pid)? else {
            return Ok(None);
        };
        // Read after the descriptor was opened: they are this process's, or this one
        // is gone. And the parent has not ended after that: its number was its own.
        let belongs = Stat::of(raw(pid)).is_ok_and(|stat| {
            let is_child = stat.parent == self.ancestor || self.is_held(stat.parent);
            is_child || self.is_sibling(pid, stat)
        });
        Ok((belongs && !has_ended(&pidfd)).then_some(pidfd))
    }

    /// Whether the number is that of a process that is held and lives.
    fn is_held(&self, pid: i32) -> bool {
        self.held.get(&pid).is_some_and(|pidfd| !has_ended(pidfd))
    }

    /// Kills those that are held, and lets go of them; `false`: there was none.
    fn kill(&mut self) -> bool {
        let held = std::mem::take(&mut self.held);
        for pidfd in held.values() {
            let _gone = pidfd_send_signal(pidfd, Signal::KILL);
        }
        !held.is_empty()
    }

    /// All that are seen to descend from the ancestor, parents first; be they dead: the
    /// first thread of one that lives may have ended.
    fn descendants(&self) -> Vec<Pid> {
        let mut children: BTreeMap<i32, Vec<Pid>> = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            let Some(pid) = number.and_then(Pid::from_raw) else {
                continue;
            };
            let Ok(stat) = Stat::of(raw(pid)) else {
                continue;
            };
            let parent = match self.is_sibling(pid, stat) {
                true => self.ancestor,
                false => stat.parent,
            };
            children.entry(parent).or_default().push(pid);
        }
        let mut found = Vec::new();
        let mut next = vec![self.ancestor];
        while let Some(parent) = next.pop() {
            let Some(of_parent) = children.remove(&parent) else {
                continue;
            };
            next.extend(of_parent.iter().copied().map(raw));
            found.extend(of_parent);
        }
        found
    }

    /// Whether a process was made to be this process's child by one of the family:
    /// `CLONE_PARENT`.
    fn is_sibling(&self, pid: Pid, stat: Stat) -> bool {
        if stat.parent != raw(rustix::process::getpid()) || raw(pid) == self.ancestor {
            return false;
        }
        let strangers = self.strangers.as_ref();
        stat.session == self.ancestor || strangers.is_some_and(|all| all.has(pid, stat))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process of a test; killed with it, and with all that descends from it.
    struct Process(Child);

    impl Process {
        fn new(script: &str) -> Self {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", script])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            Self(shell.spawn().unwrap())
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }

        fn pidfd(&self) -> OwnedFd {
            pidfd::open(self.pid()).unwrap().unwrap()
        }

        fn end(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }

        /// Neither stopped nor killed: a request to end ends it.
        fn is_untouched(&mut self) -> bool {
            send_signal(self.pid(), 15).unwrap();
            let mut status = None;
            wait_until(|| {
                status = self.0.try_wait().unwrap();
                status.is_some()
            });
            status.is_some_and(|status| status.signal() == Some(15))
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            if let Ok(None) = self.0.try_wait() {
                kill(self.pid(), None, "none");
            }
            let _dead_already = self.0.kill();
            let _reaped = self.0.wait();
        }
    }

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
    }

    fn living(ancestor: Pid) -> usize {
        let lives = |pid: &&Pid| {
            pidfd::open(**pid)
                .unwrap()
                .is_some_and(|it| !has_ended(&it))
        };
        Family::new(ancestor)
            .descendants()
            .iter()
            .filter(lives)
            .count()
    }

    #[test]
    fn children_of_children_are_found_and_killed() {
        let shell = Process::new("setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000");
        wait_until(|| living(shell.pid()) == 4);
        kill(shell.pid(), None, "none");
        wait_until(|| living(shell.pid()) == 0);
    }

    #[test]
    fn a_descendant_is_found_whatever_it_calls_itself() {
        let named = r#"setsid sh -c 'printf "\377\376) Z" > /proc/$$/comm; sleep 1000; true'"#;
        let shell = Process::new(&format!("{named} & sleep 1000"));
        let is_named = |pid: &Pid| {
            let name = std::fs::read(format!("/proc/{}/comm", raw(*pid)));
            name.is_ok_and(|name| name == b"\xff\xfe) Z\n")
        };
        wait_until(|| Family::new(shell.pid()).descendants().iter().any(is_named));
        wait_until(|| living(shell.pid()) == 3);
        kill(shell.pid(), None, "none");
        wait_until(|| living(shell.pid()) == 0);
    }

    #[test]
    fn more_than_can_be_held_are_killed_in_parts() {
        let shell = Process::new("for i in $(seq 300); do sleep 1000 & done; wait");
        wait_until(|| living(shell.pid()) == 300);
        let mut family = Family::new(shell.pid());
        assert!(family.take(&family.descendants()));
        assert!(family.held.len() <= pidfd::MOST);
        family.kill();
        kill(shell.pid(), None, "none");
        wait_until(|| living(shell.pid()) == 0);
    }

    /// A number that was a descendant's when it was seen, and another's when it is taken.
    #[test]
    fn a_number_that_was_given_to_another_is_not_signalled() {
        let ancestor = Process::new("sleep 1000; true");
        wait_until(|| living(ancestor.pid()) == 1);
        let mut stranger = Process::new("exec sleep 1000");
        let mut gone = Process::new("exec sleep 1000");
        gone.end();
        let mut family = Family::new(ancestor.pid());
        assert!(!family.take(&[gone.pid(), stranger.pid()]));
        family.kill();
        assert!(stranger.is_untouched());
    }

    /// The number of a descendant that ended is that of a stranger's parent now: here
    /// of this process.
    #[test]
    fn a_child_of_one_that_got_the_number_is_not_signalled() {
        let ancestor = Process::new("exec sleep 1000");
        let mut parent = Process::new("exec sleep 1000");
        let mut stranger = Process::new("exec sleep 1000");
        let mut family = Family::new(ancestor.pid());
        let own = raw(rustix::process::getpid());
        family.held.insert(own, parent.pidfd());
        assert!(family.hold(stranger.pid()).unwrap().is_some());
        parent.end();
        assert!(!family.take(&[stranger.pid()]));
        family.kill();
        assert!(stranger.is_untouched());
    }

    /// Who was held, has ended and was reaped keeps nobody from being taken.
    #[test]
    fn a_descendant_with_the_number_of_one_that_ended_is_taken() {
        let ancestor = Process::new("sleep 1000; true");
        wait_until(|| living(ancestor.pid()) == 1);
        let mut gone = Process::new("exec sleep 1000");
        let pidfd = gone.pidfd();
        gone.end();
        let seen = Family::new(ancestor.pid()).descendants();
        let mut family = Family::new(ancestor.pid());
        family.held.insert(raw(seen[0]), pidfd);
        assert!(family.take(&seen) && !family.take(&seen));
        family.kill();
        wait_until(|| living(ancestor.pid()) == 0);
    }
}
