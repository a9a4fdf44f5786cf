//! A veth between the host and a container.
//!
//! Owns how it is made: its other end is born in the container's namespace.

use crate::netlink::{Namespace, NetlinkError, Socket};
use crate::rtnl::address;
use crate::rtnl::link::{self, Link, Mac, Veth};
use crate::{Error, Invocation, guest, namespace, outside, sysctl};

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// A random name that is taken is tried again so many times.
const TRIES: usize = 10;

/// What a new veth is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Name of the container's end.
    pub(crate) inside: &'a str,
    /// Where the container's end is; `None` = here.
    pub(crate) pod: Option<&'a Namespace>,
    /// The bridge of the host's end; 0 = none.
    pub(crate) master: u32,
    /// MTU of both ends; 0 = the kernel's choice.
    pub(crate) mtu: u32,
    /// Hardware address of the container's end.
    pub(crate) mac: Option<Mac>,
}

/// Makes a veth and answers the host's end, which is up.
pub(crate) fn add(socket: &mut Socket, wanted: &Wanted<'_>) -> Result<Link, Error> {
    for _ in 0..TRIES {
        let name = random_name()?;
        let message = link::add_veth(&Veth {
            name: &name,
            master: wanted.master,
            peer: wanted.inside,
            namespace: wanted.pod,
            mtu: wanted.mtu,
            peer_mac: wanted.mac,
        });
        let answers = socket.exchange(vec![message]).map_err(failed)?;
        match answers.refusal(0).map(|refusal| refusal.errno) {
            None => {
                let link = match answers.reply(0).and_then(Link::parse) {
                    Some(link) => link,
                    // Kernels before 6.2 do not send it back.
                    None => guest::find(socket, &name)?,
                };
                // The routes of this interface are ours; without IPv6 there are none.
                let parameter = format!("net/ipv6/conf/{name}/accept_ra");
                let _without_ipv6 = sysctl::write(&parameter, "0");
                return Ok(link);
            }
            // Somebody has the random name.
            Some(Errno::EXIST) if link::find(socket, &name).map_err(failed)?.is_some() => {}
            Some(Errno::EXIST) => {
                let inside = wanted.inside;
                let msg = format!("the container has an interface {inside:?} already");
                return Err(Error::internal(msg));
            }
            Some(_) => {
                let refused = answers.complete().err();
                let missing = NetlinkError::NoAnswer("add a veth");
                return Err(failed(refused.unwrap_or(missing)));
            }
        }
    }
    Err(Error::internal("failed to find a unique veth name"))
}

/// DEL of an attachment's veth, before its addresses are given back. A namespace or an
/// interface that is gone is no error. Where the namespace goes, it takes the veth with
/// it; but somebody else may hold it, and its addresses must answer no more.
pub(crate) fn delete(call: &Invocation<'_>) -> Result<(), Error> {
    if call.netns_will_go && outside::set_down(call)? {
        return Ok(());
    }
    let Some(pod) = namespace::open_if_there(call)? else {
        return Ok(());
    };
    if call.netns_will_go {
        return namespace::run(&pod, || withdraw(call.interface));
    }
    let failed = |error| Error::because(format!("failed to delete {:?}", call.interface), error);
    namespace::run(&pod, || {
        let mut socket = guest::socket()?;
        let Some(inside) = link::find(&mut socket, call.interface).map_err(failed)? else {
            return Ok(());
        };
        let deleted = socket
            .exchange(vec![link::delete(inside.index)])
            .map_err(failed)?;
        match deleted.refusal(0).map(|refusal| refusal.errno) {
            // Somebody was faster.
            Some(Errno::NODEV) => Ok(()),
            _ => deleted.complete().map(drop).map_err(failed),
        }
    })
}

/// Takes all addresses from a link.
fn withdraw(name: &str) -> Result<(), Error> {
    let failed = |error| Error::because(format!("failed to take addresses from {name:?}"), error);
    let mut socket = guest::socket()?;
    let Some(link) = link::find(&mut socket, name).map_err(failed)? else {
        return Ok(());
    };
    let held = address::list(&mut socket, link.index).map_err(failed)?;
    let remove = |held: &address::Assigned| address::remove(link.index, &held.prefix);
    let done = socket.exchange(held.iter().map(remove).collect());
    for refusal in done.map_err(failed)?.refusals {
        // The first of a network takes the others with it.
        if !matches!(refusal.errno, Errno::ADDRNOTAVAIL | Errno::NODEV) {
            return Err(failed(NetlinkError::Refused(refusal)));
        }
    }
    Ok(())
}

fn failed(error: NetlinkError) -> Error {
    Error::because("failed to make veth pair", error)
}

fn random_name() -> Result<String, Error> {
    let mut bytes = [0; 4];
    getrandom(bytes.as_mut_slice(), GetRandomFlags::empty())
        .map_err(|error| Error::because("failed to generate random veth name", error))?;
    Ok(format!("veth{:08x}", u32::from_be_bytes(bytes)))
}

/// Whether a link may have its name from here.
pub(crate) fn is_random_name(name: &str) -> bool {
    name.strip_prefix("veth")
        .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
