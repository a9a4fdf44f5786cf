//! The node's ends of a pod's interfaces.
//!
//! A pod's network namespace takes both ends with it, unless somebody holds it: any
//! process of a container can hand its own to a process of another pod. So DEL sets the
//! node's end down, whatever the container has made of its own one, and what is left
//! after the namespace should be gone is deleted. Deleting at once would have each DEL
//! wait 16 ms for the kernel.

use rustix::io::Errno;
use serde_json::Value;

use crate::netlink::Socket;
use crate::result::Outcome;
use crate::rtnl::link::{self, Link};
use crate::{Error, Invocation, guest, veth};

/// Sets the node's ends of a veth down that the call's `prevResult` tells. `false`: it
/// tells of none that is there.
pub(crate) fn set_down(call: &Invocation<'_>) -> Result<bool, Error> {
    let Some(previous) = Outcome::previous(call.config)? else {
        return Ok(false);
    };
    let mut socket = guest::socket()?;
    let ends = ends(&mut socket, &previous)?;
    for end in &ends {
        change(&mut socket, end, link::set_down(end.index), "set down")?;
    }
    Ok(!ends.is_empty())
}

/// Deletes the node's ends of veths that a result of ADD tells, where they are still
/// there; answers their names.
///
/// # Errors
/// It is no result, or the kernel refused.
pub fn delete_ends(result: &Value) -> Result<Vec<String>, Error> {
    let mut socket = guest::socket()?;
    let ends = ends(&mut socket, &Outcome::parse(result)?)?;
    for end in &ends {
        change(&mut socket, end, link::delete(end.index), "delete")?;
    }
    Ok(ends.into_iter().map(|end| end.name).collect())
}

/// Those that are there. Their names are random, so that nobody else has one by now; their
/// hardware addresses are not theirs for long, where udev gives each link a lasting one.
fn ends(socket: &mut Socket, result: &Outcome) -> Result<Vec<Link>, Error> {
    let mut ends = Vec::new();
    for told in result
        .interfaces
        .iter()
        .filter(|told| told.sandbox.is_empty())
    {
        let failed = |error| Error::because(format!("failed to look for {:?}", told.name), error);
        let found = link::find(socket, &told.name).map_err(failed)?;
        let is_end = |link: &Link| link.kind == "veth" && veth::is_random_name(&link.name);
        ends.extend(found.filter(is_end));
    }
    Ok(ends)
}

fn change(
    socket: &mut Socket,
    end: &Link,
    message: crate::netlink::Message,
    what: &str,
) -> Result<(), Error> {
    let failed = |error| Error::because(format!("failed to {what} {:?}", end.name), error);
    let done = socket.exchange(vec![message]).map_err(failed)?;
    match done.refusal(0).map(|refusal| refusal.errno) {
        // It went meanwhile.
        Some(Errno::NODEV) => Ok(()),
        _ => done.complete().map(drop).map_err(failed),
    }
}
