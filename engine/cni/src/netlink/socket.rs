//! Talking to the kernel: several requests in one send, and dumps.
//!
//! The kernel works on a request before `send` returns and answers at once, so
//! nothing here ever waits: an answer that is not there never comes.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with,
};

use super::attribute::attributes;
use super::message::{Message, aligned, flag};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_BATCH_GENID: u16 = 1;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const HEADER: usize = 16;
/// Larger than any datagram of a dump (the kernel caps them at 32 KiB).
const BUFFER: usize = 64 * 1024;
/// What a socket takes in one send without being asked to take more.
const SEND_BUFFER: usize = 64 * 1024;
/// A dump that always changes under the reader is given up after so many tries.
const DUMP_TRIES: usize = 16;

/// A family of netlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, traffic control.
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

/// What the kernel says against one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its place among the messages of the call.
    pub index: usize,
    /// What the message asked for.
    pub what: &'static str,
    /// The error number.
    pub errno: Errno,
    /// The kernel's own words (extended ack), where it has some.
    pub text: Option<String>,
}

/// Why an exchange with the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket does not work.
    #[error("netlink: {step}")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refused a message.
    #[error("{}: {}{}", .0.what, io::Error::from(.0.errno), .0.text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused(Refusal),
    /// A message is longer than its format allows.
    #[error("{0}: the message is too long")]
    TooLong(&'static str),
    /// The kernel did not answer, or not all of it.
    #[error("{0}: the kernel's answer is missing or broken")]
    NoAnswer(&'static str),
    /// A dump changed under the reader every time.
    #[error("{0}: the list changes too quickly to be read")]
    Interrupted(&'static str),
}

impl NetlinkError {
    /// The kernel's error number, where it refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            _ => None,
        }
    }
}

/// A message from the kernel.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Which message of the call it answers.
    pub index: usize,
    /// Its kind.
    pub kind: u16,
    /// What follows its header.
    pub body: Vec<u8>,
}

/// What came back for a row of messages.
#[derive(Debug, Default)]
pub struct Answers {
    /// Objects that the kernel sent.
    pub replies: Vec<Reply>,
    /// Messages that it refused, in their order; the others were carried out.
    pub refusals: Vec<Refusal>,
}

impl Answers {
    /// What the kernel sent for one message.
    pub fn reply(&self, index: usize) -> Option<&Reply> {
        self.replies.iter().find(|reply| reply.index == index)
    }

    /// The refusal of one message.
    pub fn refusal(&self, index: usize) -> Option<&Refusal> {
        self.refusals.iter().find(|refusal| refusal.index == index)
    }

    /// The first refusal as an error.
    pub fn complete(self) -> Result<Vec<Reply>, NetlinkError> {
        match self.refusals.into_iter().next() {
            Some(refusal) => Err(NetlinkError::Refused(refusal)),
            None => Ok(self.replies),
        }
    }
}

/// A netlink socket of the network namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    family: Family,
    sequence: u32,
    buffer: Vec<u8>,
}

mod option {
    //! Options of netlink sockets that nix has no names for.
    use nix::{setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// Errors come with the kernel's own words.
        ExtAck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, bool);
    sockopt_impl!(
        /// Errors come without a copy of the request.
        CapAck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, bool);
    sockopt_impl!(
        /// Dumps are filtered by the fixed part of the request.
        StrictCheck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, bool);
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open(family: Family) -> Result<Self, NetlinkError> {
        let failed = |source: io::Error| NetlinkError::Socket {
            step: "open a socket",
            source,
        };
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        let fd = socket_with(AddressFamily::NETLINK, kind, flags, protocol)
            .map_err(|error| failed(error.into()))?;
        // All three are there since Linux 4.20; without them errors are terse
        // and dumps longer, nothing else.
        let _older = setsockopt(&fd, option::ExtAck, &true);
        let _older = setsockopt(&fd, option::CapAck, &true);
        if family == Family::Route {
            let _older = setsockopt(&fd, option::StrictCheck, &true);
        }
        // Room for the refusals of a long row; a lower limit only costs their number.
        let _smaller = setsockopt(&fd, sockopt::RcvBuf, &(1 << 20));
        Ok(Self {
            fd,
            family,
            sequence: 1,
            buffer: Vec::new(),
        })
    }

    /// Sends messages in one go; the kernel carries them out in their order,
    /// whether or not an earlier one was refused. Only where the socket itself
    /// fails is this an error.
    pub fn exchange(&mut self, messages: Vec<Message>) -> Result<Answers, NetlinkError> {
        let Some(last) = messages.last() else {
            return Ok(Answers::default());
        };
        let names: Vec<_> = messages.iter().map(Message::what).collect();
        let (last, first) = (last.what(), self.sequence);
        let mut bytes = Vec::new();
        self.pack(&mut bytes, messages)?;
        self.send(&bytes)?;
        self.gather(first, &names, last)
    }

    /// Sends messages in one go; the first refusal is the error. Those after
    /// it were carried out nevertheless.
    pub fn transact(&mut self, messages: Vec<Message>) -> Result<Vec<Reply>, NetlinkError> {
        self.exchange(messages)?.complete()
    }

    /// One message that is answered with one object; `None` where the kernel
    /// says that there is no such object.
    pub fn get(&mut self, message: Message) -> Result<Option<Reply>, NetlinkError> {
        let mut answers = self.exchange(vec![message])?;
        match answers.refusals.first().map(|refusal| refusal.errno) {
            Some(Errno::NODEV | Errno::NOENT | Errno::SRCH) => Ok(None),
            Some(_) => answers.complete().map(|_| None),
            None => Ok(answers.replies.pop()),
        }
    }

    /// Carries out messages of nftables as one transaction: all or nothing.
    pub fn batch(&mut self, messages: Vec<Message>) -> Result<Vec<Reply>, NetlinkError> {
        self.batch_on(None, messages)
    }

    /// The same, refused with `ERESTART` where the rules are not of this generation
    /// any more.
    pub fn batch_on(
        &mut self,
        generation: Option<u32>,
        messages: Vec<Message>,
    ) -> Result<Vec<Reply>, NetlinkError> {
        let first = self.sequence;
        let mut names = vec!["begin a transaction"];
        names.extend(messages.iter().map(Message::what));
        names.push("end a transaction");
        // A family of none, version 0, and the subsystem in network order.
        let subsystem = NFNL_SUBSYS_NFTABLES.to_be_bytes();
        let edge = |what, kind| {
            let mut message = Message::new(what, kind, 0);
            message.raw(&[0, 0, subsystem[0], subsystem[1]]);
            message
        };
        let mut bytes = Vec::new();
        let count = messages.len();
        let mut begin = edge("begin a transaction", NFNL_MSG_BATCH_BEGIN);
        if let Some(generation) = generation {
            begin.be32(NFNL_BATCH_GENID, generation);
        }
        self.append(&mut bytes, begin)?;
        self.pack(&mut bytes, messages)?;
        self.append(&mut bytes, edge("end a transaction", NFNL_MSG_BATCH_END))?;
        self.send(&bytes)?;
        let last = names.get(count).copied().unwrap_or("a transaction");
        let mut answers = self.gather(first, &names, last)?;
        // Callers count from their own first message.
        for reply in &mut answers.replies {
            reply.index = reply.index.saturating_sub(1);
        }
        for refusal in &mut answers.refusals {
            refusal.index = refusal.index.saturating_sub(1);
        }
        answers.complete()
    }

    /// All objects of a kind. Tries again where the list changed meanwhile.
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Reply>, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            if let Some(replies) = self.dump_once(message.clone())? {
                return Ok(replies);
            }
        }
        Err(NetlinkError::Interrupted(message.what()))
    }

    /// `None` where the list changed under the reader.
    fn dump_once(&mut self, mut message: Message) -> Result<Option<Vec<Reply>>, NetlinkError> {
        let (what, sequence) = (message.what(), self.sequence);
        message.flags(flag::DUMP);
        let mut bytes = Vec::new();
        self.append(&mut bytes, message)?;
        self.send(&bytes)?;
        let (mut replies, mut interrupted) = (Vec::new(), false);
        loop {
            let datagram = self.receive(what)?;
            for part in split(&datagram) {
                if part.sequence != sequence {
                    continue;
                }
                interrupted |= part.flags & NLM_F_DUMP_INTR != 0;
                match part.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match part.refusal(0, what) {
                            None => Ok((!interrupted).then_some(replies)),
                            Some(refusal) if refusal.errno == Errno::INTR => Ok(None),
                            Some(refusal) => Err(NetlinkError::Refused(refusal)),
                        };
                    }
                    kind => replies.push(Reply {
                        index: 0,
                        kind,
                        body: part.body.to_vec(),
                    }),
                }
            }
        }
    }

    /// Packs messages; only the last asks for an acknowledgement, refusals
    /// come all the same.
    fn pack(&mut self, bytes: &mut Vec<u8>, messages: Vec<Message>) -> Result<(), NetlinkError> {
        let count = messages.len();
        for (index, mut message) in messages.into_iter().enumerate() {
            if index + 1 == count {
                message.flags(flag::ACK);
            }
            self.append(bytes, message)?;
        }
        Ok(())
    }

    fn append(&mut self, bytes: &mut Vec<u8>, mut message: Message) -> Result<(), NetlinkError> {
        let what = message.what();
        let finished = message.finish(self.sequence);
        bytes.extend_from_slice(finished.ok_or(NetlinkError::TooLong(what))?);
        // Every message has its own number, so that answers find theirs.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = SocketAddrNetlink::new(0, 0);
        if bytes.len() > SEND_BUFFER {
            // Without the right to do so, the kernel's own limit stays.
            setsockopt(&self.fd, sockopt::SndBufForce, &(2 * bytes.len())).ok();
        }
        sendto(&self.fd, bytes, SendFlags::empty(), &kernel)
            .map(drop)
            .map_err(|error| NetlinkError::Socket {
                step: "send",
                source: error.into(),
            })
    }

    /// Reads until nothing more is there, or until the last acknowledgement.
    fn gather(
        &mut self,
        first: u32,
        names: &[&'static str],
        last: &'static str,
    ) -> Result<Answers, NetlinkError> {
        let mut answers = Answers::default();
        // In a transaction the acknowledgement is for the last but one.
        let edges = usize::from(self.family == Family::Netfilter && names.len() > 2);
        let closing = names.len() - 1 - edges;
        loop {
            let datagram = match self.receive(last) {
                Ok(datagram) => datagram,
                // A refused transaction has refusals and no acknowledgement.
                Err(NetlinkError::NoAnswer(_)) if !answers.refusals.is_empty() => {
                    return Ok(answers);
                }
                Err(error) => return Err(error),
            };
            for part in split(&datagram) {
                let index = part.sequence.wrapping_sub(first) as usize;
                let Some(what) = names.get(index) else {
                    continue;
                };
                match part.kind {
                    NLMSG_ERROR => match part.refusal(index, what) {
                        Some(refusal) => {
                            answers.refusals.push(refusal);
                            if index == closing && self.family == Family::Route {
                                return Ok(answers);
                            }
                        }
                        None if index >= closing => return Ok(answers),
                        None => {}
                    },
                    kind => answers.replies.push(Reply {
                        index,
                        kind,
                        body: part.body.to_vec(),
                    }),
                }
            }
        }
    }

    fn receive(&mut self, what: &'static str) -> Result<Vec<u8>, NetlinkError> {
        self.buffer.resize(BUFFER, 0);
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (_, length) = match recv(&self.fd, self.buffer.as_mut_slice(), flags) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Err(NetlinkError::NoAnswer(what)),
            Err(error) => {
                let (step, source) = ("receive", error.into());
                return Err(NetlinkError::Socket { step, source });
            }
        };
        let whole = self.buffer.get(..length).map(<[u8]>::to_vec);
        whole.ok_or(NetlinkError::NoAnswer(what))
    }
}

/// One message of a datagram.
struct Part<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Part<'_> {
    /// What an error or the end of a dump says; `None` = all is well.
    fn refusal(&self, index: usize, what: &'static str) -> Option<Refusal> {
        let number = self.body.get(..4).and_then(|bytes| bytes.try_into().ok());
        let number = number.map_or(0, i32::from_ne_bytes);
        if number == 0 {
            return None;
        }
        Some(Refusal {
            index,
            what,
            errno: Errno::from_raw_os_error(number.wrapping_neg()),
            text: self.words(),
        })
    }

    fn words(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        // The error number, then the request: its header only, or all of it.
        let skip = match self.kind {
            NLMSG_DONE => 4,
            _ if self.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
            _ => {
                let length = self.body.get(4..8)?.try_into().ok()?;
                4 + aligned(u32::from_ne_bytes(length) as usize)
            }
        };
        let text = attributes(self.body.get(skip..)?)
            .find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)?;
        text.text().map(str::to_owned)
    }
}

/// The messages of a datagram; a broken length ends the walk.
fn split(mut rest: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let part = Part {
            kind: u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?),
            flags: u16::from_ne_bytes(rest.get(6..8)?.try_into().ok()?),
            sequence: u32::from_ne_bytes(rest.get(8..12)?.try_into().ok()?),
            body: rest.get(HEADER..length)?,
        };
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(part)
    })
}

/// Reads a datagram as a socket would; for tests.
#[cfg(test)]
pub(super) fn read_all(datagram: &[u8]) -> usize {
    let parts = split(datagram);
    parts
        .filter(|part| part.refusal(0, "read").is_some())
        .count()
}
