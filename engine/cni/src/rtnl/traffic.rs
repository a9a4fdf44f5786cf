//! Traffic control: queues that limit a rate, and sending what comes in elsewhere.
//!
//! Owns the messages; what a rate means is the caller's.

use crate::netlink::{Message, NetlinkError, Reply, Socket, attributes, flag};

const NEW_QDISC: u16 = libc::RTM_NEWQDISC;
const DELETE_QDISC: u16 = libc::RTM_DELQDISC;
const GET_QDISC: u16 = libc::RTM_GETQDISC;
const NEW_FILTER: u16 = libc::RTM_NEWTFILTER;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// `struct tcmsg`.
const FIXED: usize = 20;
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
/// `1:`, the queue of a link.
const FIRST: u32 = 0x0001_0000;
/// `ffff:`, where what comes in can be looked at.
const INCOMING: u32 = 0xffff_0000;
const TBF_PARAMETERS: u16 = 1;
const TBF_RATE64: u16 = 4;
const U32_CLASS: u16 = 1;
const U32_SELECTOR: u16 = 5;
const U32_ACTIONS: u16 = 7;
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const MIRRED_PARAMETERS: u16 = 2;

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Bytes per second.
    pub(crate) rate: u64,
    /// Bytes that may wait.
    pub(crate) limit: u32,
    /// How long a full bucket lasts, in the kernel's ticks.
    pub(crate) buffer: u32,
}

fn start(what: &'static str, kind: u16, flags: u16, place: [u32; 4]) -> Message {
    let mut message = Message::new(what, kind, flags);
    let mut fixed = [0; FIXED];
    for (slot, number) in fixed[4..].chunks_exact_mut(4).zip(place) {
        slot.copy_from_slice(&number.to_ne_bytes());
    }
    message.raw(&fixed);
    message
}

/// Limits what leaves by a link.
pub(crate) fn add_bucket(link: u32, bucket: &Bucket) -> Message {
    let flags = flag::CREATE | flag::EXCL;
    let place = [link, FIRST, ROOT, 0];
    let mut message = start("add a token bucket", NEW_QDISC, flags, place);
    // struct tc_tbf_qopt: rate and peak rate (struct tc_ratespec, whose last field
    // is the rate), limit, buffer, mtu.
    let mut parameters = [0; 36];
    parameters[8..12].copy_from_slice(&(bucket.rate as u32).to_ne_bytes());
    parameters[24..28].copy_from_slice(&bucket.limit.to_ne_bytes());
    parameters[28..32].copy_from_slice(&bucket.buffer.to_ne_bytes());
    message.text(KIND, "tbf").nested_plain(OPTIONS, |options| {
        options.attribute(TBF_PARAMETERS, &parameters);
        if bucket.rate > u64::from(u32::MAX) {
            options.u64(TBF_RATE64, bucket.rate);
        }
    });
    message
}

/// Lets what comes in by a link be looked at.
pub(crate) fn add_incoming(link: u32) -> Message {
    let flags = flag::CREATE | flag::EXCL;
    let place = [link, INCOMING, INGRESS, 0];
    let mut message = start("add an ingress queue", NEW_QDISC, flags, place);
    message.text(KIND, "ingress").nested_plain(OPTIONS, |_| {});
    message
}

/// Takes the queue of a link away, and what looks at what comes in.
pub(crate) fn remove(link: u32) -> [Message; 2] {
    [[link, FIRST, ROOT, 0], [link, INCOMING, INGRESS, 0]]
        .map(|place| start("remove a queue", DELETE_QDISC, 0, place))
}

/// Sends what comes in by a link to another one. The plugin has the same action in
/// it twice, of which the first takes every packet; so has this.
pub(crate) fn redirect(link: u32, to: u32) -> Message {
    const PRIORITY: u32 = 1 << 16;
    const CLASS: u32 = FIRST | 1;
    const TERMINAL: u8 = 1;
    const OK: i32 = 0;
    const STOLEN: i32 = 4;
    let flags = flag::CREATE | flag::EXCL;
    let all = u32::from((libc::ETH_P_ALL as u16).to_be());
    let place = [link, 0, INCOMING, PRIORITY | all];
    let mut message = start("redirect what comes in", NEW_FILTER, flags, place);
    // struct tc_u32_sel with one key, which matches everything.
    let mut selector = [0; 32];
    selector[0] = TERMINAL;
    selector[2] = 1;
    message.text(KIND, "u32").nested_plain(OPTIONS, |options| {
        options.attribute(U32_SELECTOR, &selector);
        options.u32(U32_CLASS, CLASS);
        options.nested_plain(U32_ACTIONS, |actions| {
            for (place, verdict) in [(1, STOLEN), (2, OK)] {
                actions.nested_plain(place, |action| {
                    action.text(ACTION_KIND, "mirred");
                    action.nested_plain(ACTION_OPTIONS, |options| {
                        options.attribute(MIRRED_PARAMETERS, &mirred(verdict, to));
                    });
                });
            }
        });
    });
    message
}

/// `struct tc_mirred`: index, capabilities, verdict, two counts, what to do, where.
fn mirred(verdict: i32, to: u32) -> [u8; 28] {
    const REDIRECT: i32 = 1;
    let mut parameters = [0; 28];
    parameters[8..12].copy_from_slice(&verdict.to_ne_bytes());
    parameters[20..24].copy_from_slice(&REDIRECT.to_ne_bytes());
    parameters[24..28].copy_from_slice(&to.to_ne_bytes());
    parameters
}

/// The token bucket that a link has.
pub(crate) fn bucket(socket: &mut Socket, link: u32) -> Result<Option<Bucket>, NetlinkError> {
    let message = start("list queues", GET_QDISC, 0, [link, 0, 0, 0]);
    let queues = socket.dump(&message)?;
    Ok(queues.iter().find_map(|queue| read(queue, link)))
}

fn read(reply: &Reply, link: u32) -> Option<Bucket> {
    let number = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    // Kernels list the queues of all links.
    if number(&reply.body, 4)? != link {
        return None;
    }
    let find = |kind| attributes(reply.body.get(FIXED..)?).find(|one| one.kind == kind);
    if find(KIND)?.text() != Some("tbf") {
        return None;
    }
    let options = find(OPTIONS)?;
    let option = |kind| options.nested().find(|one| one.kind == kind);
    let parameters = option(TBF_PARAMETERS)?.value;
    let rate = option(TBF_RATE64).and_then(|rate| rate.u64());
    Some(Bucket {
        rate: rate.or(number(parameters, 8).map(u64::from))?,
        limit: number(parameters, 24)?,
        buffer: number(parameters, 28)?,
    })
}
