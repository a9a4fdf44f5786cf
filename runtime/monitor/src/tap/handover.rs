//! What a tap hands over: its pipes and its relay, which goes on.

use runtime::protocol::HandoverTap;
use runtime::sys::fds::Inherited;
use rustix::io::Errno;
use rustix::process::Pid;

use super::{Direction, Relay, Stream, Tap};
use crate::handover::Kept;
use crate::process::raw;
use crate::reactor::Reactor;

impl Tap {
    /// The tap, for the next program.
    pub(crate) fn hand_over(&self, kept: &mut Kept) -> HandoverTap {
        let mut streams = Vec::with_capacity(2 * self.streams.len());
        for Stream { from, to, .. } in &self.streams {
            streams.push(kept.add(from));
            streams.push(kept.add(to));
        }
        let go_on = self.relay.as_ref().and_then(|relay| relay.go_on.as_ref());
        HandoverTap {
            key: self.key,
            streams,
            relay: self.relay.as_ref().map(|relay| raw(relay.pid)),
            go_on: go_on.map(|go_on| kept.add(go_on)),
            last_looks: self.last_looks.map(u32::from),
            is_input: self.direction == Direction::In,
        }
    }

    /// The tap that the program before gave.
    pub(crate) fn resume(
        tap: HandoverTap,
        fds: &mut Inherited,
        reactor: &mut Reactor,
    ) -> Result<Self, Errno> {
        let HandoverTap {
            key,
            streams,
            relay,
            go_on,
            last_looks,
            is_input,
        } = tap;
        let mut pairs = Vec::with_capacity(streams.len() / 2);
        for pair in streams.chunks(2) {
            let [from, to] = pair else {
                return Err(Errno::BADMSG);
            };
            pairs.push((fds.take(*from)?, fds.take(*to)?));
        }
        let go_on = go_on.map(|number| fds.take(number)).transpose()?;
        let direction = if is_input {
            Direction::In
        } else {
            Direction::Out
        };
        let mut resumed = Self::leading(direction, key, pairs, reactor)?;
        resumed.last_looks = last_looks.map(|looks| u8::try_from(looks).unwrap_or(u8::MAX));
        if let Some(pid) = relay.and_then(Pid::from_raw) {
            resumed.relay = Some(Relay { pid, go_on });
            resumed.unwatch(reactor);
        }
        Ok(resumed)
    }
}
