//! Packets: an envelope and its descriptors over a `SOCK_SEQPACKET` socket.
//!
//! Owns the limits of a packet and the spill into a memfd. Never blocks unless
//! the socket does, never keeps a descriptor that nobody took, never believes
//! a length: a packet is measured, a spilled envelope is counted while read.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::Envelope;

/// Most descriptors of one packet: the kernel's limit.
pub const MAX_FDS: usize = 253;
/// How often, and how far apart, a memfd is sealed of which the kernel has a page.
const SEAL_TRIES: u32 = 50;
const SEAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(4);

/// Largest envelope that travels in the packet itself.
pub const MAX_INLINE: usize = 32 * 1024;
/// Largest envelope that travels in a memfd.
pub const MAX_SPILLED: u64 = 16 * 1024 * 1024;

/// Memory that can be sealed.
const SEALABLE: MemfdFlags = MemfdFlags::CLOEXEC.union(MemfdFlags::ALLOW_SEALING);

/// What can go wrong with a packet.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The socket failed.
    #[error("{step} on a monitor's socket")]
    Socket {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// The packet holds more than one may.
    #[error("packet of {got} {what}, at most {limit} are allowed")]
    TooLarge {
        /// Bytes or descriptors.
        what: &'static str,
        /// How many.
        got: u64,
        /// How many may be.
        limit: u64,
    },
    /// Descriptors were lost on the way: the table of this process is full.
    #[error("descriptors of a packet were lost: too many open files")]
    LostDescriptors,
    /// The bytes are no envelope.
    #[error("packet is no message")]
    Malformed(#[from] prost::DecodeError),
    /// The spilled envelope is not what its announcement says.
    #[error("spilled message: {0}")]
    BadSpill(&'static str),
    /// A slot points nowhere, or at a descriptor that was taken already.
    #[error("message lacks the descriptor for {0}")]
    NoDescriptor(&'static str),
}

/// Descriptors of a packet. Those that nobody takes are closed.
#[derive(Debug, Default)]
pub struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    /// Descriptors as a packet would bring them.
    #[must_use]
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// Takes the descriptor of a slot that must be there.
    ///
    /// # Errors
    /// The slot is missing, out of range or taken.
    pub fn take(
        &mut self,
        slot: Option<u32>,
        what: &'static str,
    ) -> Result<OwnedFd, ProtocolError> {
        self.take_optional(slot, what)?
            .ok_or(ProtocolError::NoDescriptor(what))
    }

    /// Takes the descriptor of a slot that may be missing.
    ///
    /// # Errors
    /// The slot is out of range or taken.
    pub fn take_optional(
        &mut self,
        slot: Option<u32>,
        what: &'static str,
    ) -> Result<Option<OwnedFd>, ProtocolError> {
        let Some(slot) = slot else { return Ok(None) };
        let index = usize::try_from(slot).map_err(|_| ProtocolError::NoDescriptor(what))?;
        match self.0.get_mut(index).and_then(Option::take) {
            Some(fd) => Ok(Some(fd)),
            None => Err(ProtocolError::NoDescriptor(what)),
        }
    }

    /// Takes the descriptor of the last slot: those before it keep their numbers,
    /// and can still be forwarded.
    ///
    /// # Errors
    /// The slot is not the last one, or taken.
    pub fn pop(&mut self, slot: u32, what: &'static str) -> Result<OwnedFd, ProtocolError> {
        if usize::try_from(slot)
            .ok()
            .and_then(|slot| slot.checked_add(1))
            != Some(self.0.len())
        {
            return Err(ProtocolError::NoDescriptor(what));
        }
        let last = self.0.pop().flatten();
        last.ok_or(ProtocolError::NoDescriptor(what))
    }

    /// How many came, taken or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none came.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All descriptors, with the numbers of their slots kept. Fails when one
    /// was taken, since the slots behind it would shift.
    ///
    /// # Errors
    /// One was taken.
    pub fn into_all(self) -> Result<Vec<OwnedFd>, ProtocolError> {
        self.0
            .into_iter()
            .collect::<Option<_>>()
            .ok_or(ProtocolError::NoDescriptor("forwarding"))
    }
}

/// A packet that arrived.
#[derive(Debug)]
pub struct Incoming {
    /// What it says.
    pub envelope: Envelope,
    /// What it brings.
    pub fds: Fds,
    /// When it arrived, monotonic nanoseconds.
    pub at: u64,
}

/// What reading a socket gave.
#[derive(Debug)]
pub enum Received {
    /// A packet.
    Packet(Box<Incoming>),
    /// Nothing yet.
    Nothing,
    /// The peer is gone.
    Closed,
}

/// Makes a socket for packets that go one way: the end that receives, without waiting, and
/// the one that sends.
///
/// # Errors
/// The kernel's.
pub fn one_way_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (receives, sends) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&receives, true)?;
    Ok((receives, sends))
}

/// Sends one packet. `Ok(false)`: the socket is full, nothing was sent.
///
/// # Errors
/// See [`ProtocolError`]; `Socket` with `EPIPE` when the peer is gone.
pub fn send(
    socket: BorrowedFd<'_>,
    envelope: &Envelope,
    fds: &[BorrowedFd<'_>],
) -> Result<bool, ProtocolError> {
    check_fd_count(fds.len())?;
    let bytes = envelope.encode_to_vec();
    if bytes.len() <= MAX_INLINE {
        return send_packet(socket, &bytes, fds);
    }
    check_fd_count(fds.len() + 1)?;
    let length = bytes.len() as u64;
    if length > MAX_SPILLED {
        return Err(ProtocolError::TooLarge {
            what: "bytes",
            got: length,
            limit: MAX_SPILLED,
        });
    }
    let memfd = sealed_memfd("message", &bytes).map_err(|source| ProtocolError::Socket {
        step: "spill a message",
        source,
    })?;
    let announcement = Envelope {
        version: envelope.version,
        request: envelope.request,
        sent_at: envelope.sent_at,
        spilled: length,
        ..Envelope::default()
    };
    let mut all = Vec::with_capacity(fds.len() + 1);
    all.extend_from_slice(fds);
    all.push(memfd.as_fd());
    send_packet(socket, &announcement.encode_to_vec(), &all)
}

/// A memfd that holds these bytes and can never change.
///
/// # Errors
/// The kernel refuses the memory.
pub fn sealed_memfd(name: &str, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    seal(rustix::fs::memfd_create(name, SEALABLE)?, bytes)
}

fn seal(memfd: OwnedFd, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&memfd, rest))?;
        rest = rest.get(written..).unwrap_or_default();
    }
    add_seals(&memfd)?;
    Ok(memfd)
}

fn add_seals(memfd: &OwnedFd) -> Result<(), Errno> {
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let mut tries = 0;
    loop {
        match rustix::fs::fcntl_add_seals(memfd, seals) {
            // The kernel itself may hold a page for a moment, as when it compacts memory,
            // and cannot tell that from a write that is under way.
            Err(Errno::BUSY) if tries < SEAL_TRIES => {
                tries += 1;
                std::thread::sleep(SEAL_PAUSE);
            }
            sealed => return sealed,
        }
    }
}

/// Receives one packet, if there is one.
///
/// # Errors
/// See [`ProtocolError`]. The connection is of no use afterwards.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Received, ProtocolError> {
    let Some(length) = measure(socket)? else {
        return Ok(Received::Nothing);
    };
    if length > MAX_INLINE {
        return Err(ProtocolError::TooLarge {
            what: "bytes",
            got: length as u64,
            limit: MAX_INLINE as u64,
        });
    }
    // One byte more, so that a packet can be told from the end: an empty
    // buffer reads 0 bytes from either.
    let mut bytes = vec![0_u8; length + 1];
    let mut fds = Vec::new();
    let got = receive_packet(socket, &mut bytes, &mut fds)?;
    let at = super::monotonic_now();
    let Some(got) = got else {
        return Ok(Received::Nothing);
    };
    if got == 0 && fds.is_empty() {
        return Ok(Received::Closed);
    }
    let mut envelope = Envelope::decode(bytes.get(..got).unwrap_or_default())?;
    if envelope.spilled != 0 {
        let memfd = fds
            .pop()
            .ok_or(ProtocolError::NoDescriptor("a spilled message"))?;
        envelope = read_spilled(&memfd, envelope.spilled)?;
    }
    Ok(Received::Packet(Box::new(Incoming {
        envelope,
        fds: Fds::new(fds),
        at,
    })))
}

fn check_fd_count(count: usize) -> Result<(), ProtocolError> {
    if count > MAX_FDS {
        return Err(ProtocolError::TooLarge {
            what: "descriptors",
            got: count as u64,
            limit: MAX_FDS as u64,
        });
    }
    Ok(())
}

fn send_packet(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<bool, ProtocolError> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len().max(1)))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ProtocolError::BadSpill("no room for descriptors"));
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    });
    match sent {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(source) => Err(ProtocolError::Socket {
            step: "send",
            source,
        }),
    }
}

/// Length of the next packet; `None`: there is none yet.
fn measure(socket: BorrowedFd<'_>) -> Result<Option<usize>, ProtocolError> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    match rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut [0_u8; 1], flags)) {
        Ok((_, length)) => Ok(Some(length)),
        Err(Errno::AGAIN) => Ok(None),
        // A peer that died with packets unread: the connection is over.
        Err(Errno::CONNRESET) => Ok(Some(0)),
        Err(source) => Err(ProtocolError::Socket {
            step: "measure a packet",
            source,
        }),
    }
}

fn receive_packet(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>, ProtocolError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        let mut iov = [IoSliceMut::new(bytes)];
        rustix::net::recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    let message = match message {
        Ok(message) => message,
        Err(Errno::AGAIN) => return Ok(None),
        Err(Errno::CONNRESET) => return Ok(Some(0)),
        Err(source) => {
            return Err(ProtocolError::Socket {
                step: "receive",
                source,
            });
        }
    };
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ProtocolError::LostDescriptors);
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(ProtocolError::BadSpill("packet grew while it was read"));
    }
    Ok(Some(message.bytes))
}

/// All that is in a memfd, within bounds.
pub(crate) fn read_memfd(memfd: &OwnedFd) -> Result<Vec<u8>, ProtocolError> {
    let stat = rustix::fs::fstat(memfd).map_err(|source| ProtocolError::Socket {
        step: "measure a spilled message",
        source,
    })?;
    let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if length > MAX_SPILLED {
        return Err(ProtocolError::TooLarge {
            what: "bytes",
            got: length,
            limit: MAX_SPILLED,
        });
    }
    let length = usize::try_from(length).map_err(|_| ProtocolError::BadSpill("length"))?;
    let mut bytes = vec![0_u8; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let read =
            rustix::io::retry_on_intr(|| rustix::io::pread(memfd, &mut *rest, filled as u64))
                .map_err(|source| ProtocolError::Socket {
                    step: "read a spilled message",
                    source,
                })?;
        if read == 0 {
            return Err(ProtocolError::BadSpill("it shrank while it was read"));
        }
        filled += read;
    }
    Ok(bytes)
}

fn read_spilled(memfd: &OwnedFd, length: u64) -> Result<Envelope, ProtocolError> {
    if length > MAX_SPILLED {
        return Err(ProtocolError::TooLarge {
            what: "bytes",
            got: length,
            limit: MAX_SPILLED,
        });
    }
    let bytes = read_memfd(memfd)?;
    if bytes.len() as u64 != length {
        return Err(ProtocolError::BadSpill(
            "its length is not what was announced",
        ));
    }
    let envelope = Envelope::decode(bytes.as_slice())?;
    if envelope.spilled != 0 {
        return Err(ProtocolError::BadSpill("it announces another one"));
    }
    Ok(envelope)
}

#[cfg(test)]
mod tests;
