//! How a monitor comes into its pod's cgroups.
//!
//! A process joins a cgroup of version 1 at once. One in the v2 tree it would join by
//! waiting for a grace period of the kernel, some milliseconds; who is *born* there
//! (`CLONE_INTO_CGROUP`) waits for nothing. So where the v2 tree is the only one, the
//! idle monitor has a sibling born in the pod's cgroup, which has all of its memory and
//! descriptors, and ends:
//!
//! ```text
//! engine ──spawn──▶ idle monitor ──clone(CLONE_PARENT, CLONE_INTO_CGROUP)──┐
//!    │                   │ exit(0)                                         ▼
//!    └─ parent of both ──┴───────────────────────▶ its copy, in the pod's cgroup:
//!                                                  goes on, answers the Setup
//! ```
//!
//! Beside hierarchies of version 1 the v2 tree holds no limits and is left out: the
//! engine finds the monitor by the others. Where nobody can be born there, the monitor
//! joins after all. The copy's number reaches the engine with its answer; whoever dies
//! before it leaves the engine a connection that ended without one.

use std::os::fd::AsFd;

use runtime::joining::Joining;
use runtime::protocol::{Body, Failure, FailureKind, Fds, Setup};
use runtime::sys::fork::{self, NewNamespaces};

use crate::connection::ReplyTo;
use crate::monitor::Monitor;
use crate::process::{KILL, send_signal};
use crate::setup;

impl Monitor {
    /// Makes this monitor the pod's, in this process or in one that is born in the pod's
    /// cgroup. Answers when that is done.
    pub(crate) fn begin_setup(&mut self, mut setup: Setup, fds: Fds, reply: ReplyTo) {
        let Joining { born_in, joined } = match Joining::new(&setup.cgroup_files) {
            Ok(joining) => joining,
            Err((dir, errno)) => {
                let failure = setup::failed("join cgroup", format!("{dir}: {errno}"));
                return self.reply(reply, Err(failure));
            }
        };
        let place = born_in.filter(|_| joined.is_empty() && !self.setup_tried);
        if place.is_none() {
            setup.cgroup_files = joined;
        }
        let mut order = Some((setup, fds, reply));
        if let Some(place) = place {
            let life = || {
                let Some((setup, fds, reply)) = order.take() else {
                    return 1;
                };
                let born = Setup {
                    cgroup_files: Vec::new(),
                    ..setup
                };
                let lived = self.go_on().and_then(|()| {
                    self.set_up(&born, fds, reply);
                    self.live()
                });
                u8::from(lived.is_err())
            };
            let new = NewNamespaces::default();
            if fork::spawn_sibling_into(new, Some(place.as_fd()), life).is_ok() {
                // Nothing is given back: all that was here is the copy's.
                std::process::exit(0);
            }
        }
        // It joins like any other.
        if let Some((setup, fds, reply)) = order {
            self.set_up(&setup, fds, reply);
        }
    }

    fn set_up(&mut self, setup: &Setup, fds: Fds, mut reply: ReplyTo) {
        let result = self.setup(setup, fds, &mut reply);
        self.reply(reply, result);
    }

    fn setup(&mut self, setup: &Setup, fds: Fds, reply: &mut ReplyTo) -> Result<Body, Failure> {
        if self.setup_tried {
            return Err(Failure::new(
                FailureKind::Exists,
                "pod",
                "this monitor has had a setup",
            ));
        }
        self.setup_tried = true;
        let (pod, ready) = setup::set_up(setup, fds, &mut self.reactor, reply)?;
        if let Some(init) = pod.init {
            self.native.share_pids(init).map_err(|errno| {
                // It would outlive the monitor.
                let _gone = send_signal(init, KILL);
                setup::failed("share the pod's pid namespace", errno)
            })?;
        }
        self.pod = Some(pod);
        Ok(Body::PodReady(ready))
    }
}
