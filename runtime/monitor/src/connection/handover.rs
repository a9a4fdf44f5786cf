//! What a connection hands over: its socket and what waits for it.

use std::os::fd::AsFd;

use runtime::protocol::{Envelope, HandoverConnection, HandoverReply};
use runtime::sys::fds::Inherited;
use rustix::io::Errno;

use super::{Connection, MAX_QUEUED, ReplyTo};
use crate::handover::Kept;
use crate::reactor::{Reactor, Source};

impl ReplyTo {
    /// The place, for the next program.
    pub(crate) fn hand_over(&self) -> HandoverReply {
        HandoverReply {
            connection: self.connection,
            request: self.request,
            received_at: self.received_at,
            steps: self.steps.clone(),
        }
    }

    /// The place that the program before gave.
    pub(crate) fn resume(reply: HandoverReply) -> Self {
        let HandoverReply {
            connection,
            request,
            received_at,
            steps,
        } = reply;
        Self {
            connection,
            request,
            received_at,
            steps,
        }
    }
}

impl Connection {
    /// The connection, for the next program.
    pub(crate) fn hand_over(&self, number: u64, kept: &mut Kept) -> HandoverConnection {
        HandoverConnection {
            number,
            socket: kept.add(&self.socket),
            queue: self.queue.iter().map(Envelope::to_bytes).collect(),
        }
    }

    /// The connection that the program before gave.
    pub(crate) fn resume(
        connection: &HandoverConnection,
        fds: &mut Inherited,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        let socket = fds.take(connection.socket)?;
        let token = reactor.watch(socket.as_fd(), Source::Connection(connection.number))?;
        let mut resumed = Self::new(socket, token);
        for envelope in connection.queue.iter().take(MAX_QUEUED) {
            let envelope = Envelope::from_bytes(envelope).map_err(|_| Errno::BADMSG)?;
            resumed.queue.push_back(envelope);
        }
        if !resumed.queue.is_empty() {
            reactor.want_room(resumed.socket.as_fd(), token, true)?;
        }
        Ok(resumed)
    }
}
