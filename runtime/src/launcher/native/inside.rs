//! The way into a pod's user namespace.
//!
//! ```text
//! monitor ─clone─▶ outside: cgroups, limits, /dev with its nodes, owners of pipes
//!    │               │ enters the user namespace as its root
//!    │               ├──clone(CLONE_PARENT | NEWPID | NEWNS)──▶ first process: all the rest
//!    │               └──or, where others live in the pid namespace: NEWNS, all the rest,
//!    │                  and then a birth as for any (`exec::birth`)
//!    ◀──note "born N"
//! ```
//! Namespaces are owned by the user namespace that their maker is in, so that mounts and
//! processes are made behind the entry. What takes rights over the node comes before it:
//! none are left behind it, whatever the container's capabilities.

use nix::sched::CloneFlags;
use rustix::io::Errno;

use super::child::{Handshake, Left, give_up, go_on};
use super::dev;
use super::prepare::Prepared;
use super::report::{Moments, Own, Problem};
use crate::exec::steps;
use crate::sys::fork;
use crate::user_space::UserSpace;

/// The life of the process outside.
pub(super) fn run(
    prepared: &Prepared,
    space: &UserSpace,
    handshake: Handshake<'_>,
    (mut left, moments): (Left, Moments),
) -> u8 {
    if let Err(problem) = enter(prepared, space, &mut left) {
        return give_up(handshake.socket, problem);
    }
    if prepared.pid_namespace.is_some() {
        let made = nix::sched::unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|errno| Errno::from_raw_os_error(errno as i32));
        return match Own::Namespaces.at(0, made) {
            Ok(()) => go_on(prepared, handshake, (left, moments), false),
            Err(problem) => give_up(handshake.socket, problem),
        };
    }
    let Some(note) = handshake.note else {
        return 1;
    };
    let first = Handshake {
        note: None,
        ..handshake
    };
    let life = || go_on(prepared, first, (left, moments), true);
    match Own::Namespaces.at(0, fork::spawn_noted_sibling(prepared.new, note, life)) {
        Ok(_) => 0,
        Err(problem) => give_up(handshake.socket, problem),
    }
}

/// Does what takes rights over the node, and gives them up.
fn enter(prepared: &Prepared, space: &UserSpace, left: &mut Left) -> Result<(), Problem> {
    let process = &prepared.process;
    let stdio = prepared.stdio.iter();
    let streams = stdio.flat_map(|stdio| [&stdio.stdin, &stdio.stdout, &stdio.stderr]);
    let streams = streams.flatten().map(std::os::fd::AsFd::as_fd);
    let streams: Vec<_> = streams.collect();
    steps::prepare_to_enter(process, space, &streams)?;
    left.taken.dev = Some(Own::Dev.at(0, dev::make_outside(prepared, space))?);
    Own::Namespaces.at(0, space.enter())?;
    left.honoured.keyring = steps::join_keyring(process)?;
    Ok(())
}
