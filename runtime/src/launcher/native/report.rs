//! What the child says before it waits: its terminal, a problem, or that it is
//! ready. Travels through a socket, by one packet each, which is closed before others
//! can see the process: whoever has a socket's end has a way to its other end.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::super::{LaunchError, links};
use crate::exec;
use crate::exec::steps::Honoured;
use crate::protocol::{Plan, Step, monotonic_now};

/// First byte of packets.
mod tag {
    pub(super) const CONSOLE: u8 = b'c';
    pub(super) const READY: u8 = b'r';
    pub(super) const PROBLEM: u8 = b'p';
}

/// Longest packet.
const MAX_PACKET: usize = 128;

/// Numbers of stages from here on are this launcher's own.
const FIRST_STAGE: u8 = 100;

/// What the child was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A step that processes which are run take, too.
    Process(exec::Step),
    /// One of its own.
    Own(Own),
}

/// Stages of first processes only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Own {
    /// Entering or making namespaces.
    Namespaces = FIRST_STAGE,
    /// Leaving the host's mounts.
    Root,
    /// Showing cgroups.
    Cgroups,
    /// A mount, by its index.
    Mount,
    /// A device, by its index.
    Device,
    /// The nodes and links of every /dev.
    Dev,
    /// The terminal.
    Terminal,
    /// Streams that were not given.
    Streams,
    /// The proc filesystem of a pid namespace that others live in.
    Procfs,
    /// A masked path, by its index.
    Mask,
    /// A read-only path, by its index.
    ReadOnly,
    /// Flags of the root.
    RootFlags,
    /// What shows the kernel itself, made in a user namespace.
    Kernels,
}

impl Own {
    const ALL: [Self; 13] = [
        Self::Namespaces,
        Self::Root,
        Self::Cgroups,
        Self::Mount,
        Self::Device,
        Self::Dev,
        Self::Terminal,
        Self::Streams,
        Self::Procfs,
        Self::Mask,
        Self::ReadOnly,
        Self::RootFlags,
        Self::Kernels,
    ];

    /// An errno on the way becomes a problem.
    pub(super) fn at<T>(self, index: usize, result: Result<T, Errno>) -> Result<T, Problem> {
        result.map_err(|errno| Problem {
            stage: Stage::Own(self),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            errno,
        })
    }
}

/// A stage that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Problem {
    stage: Stage,
    index: u32,
    errno: Errno,
}

impl From<exec::Problem> for Problem {
    fn from(problem: exec::Problem) -> Self {
        Self {
            stage: Stage::Process(problem.step),
            index: 0,
            errno: problem.errno,
        }
    }
}

impl Problem {
    fn to_bytes(self) -> [u8; 10] {
        let stage = match self.stage {
            Stage::Process(step) => step as u8,
            Stage::Own(own) => own as u8,
        };
        let [a, b, c, d] = self.index.to_ne_bytes();
        let [e, f, g, h] = self.errno.raw_os_error().to_ne_bytes();
        [tag::PROBLEM, stage, a, b, c, d, e, f, g, h]
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let &[stage, a, b, c, d, e, f, g, h] = bytes else {
            return None;
        };
        let own = || Own::ALL.into_iter().find(|known| *known as u8 == stage);
        let stage = match exec::Step::of(stage) {
            Some(step) => Stage::Process(step),
            None => Stage::Own(own()?),
        };
        Some(Self {
            stage,
            index: u32::from_ne_bytes([a, b, c, d]),
            errno: Errno::from_raw_os_error(i32::from_ne_bytes([e, f, g, h])),
        })
    }

    /// Words for it, with the path that it is about.
    pub(super) fn explain(self, plan: &Plan) -> LaunchError {
        let index = usize::try_from(self.index).unwrap_or(usize::MAX);
        let text = |path: Option<&Vec<u8>>| {
            path.map(|path| String::from_utf8_lossy(path).into_owned())
                .unwrap_or_default()
        };
        let step = match self.stage {
            Stage::Process(exec::Step::Cwd) => {
                let cwd = plan.process.as_ref().map(|process| &process.cwd);
                format!("{} {}", exec::Step::Cwd.name(), text(cwd))
            }
            Stage::Process(step) => step.name().to_owned(),
            Stage::Own(own) => match own {
                Own::Namespaces => "enter namespaces".to_owned(),
                Own::Root => "enter the root filesystem".to_owned(),
                Own::Cgroups => "show cgroups to the container".to_owned(),
                Own::Mount => {
                    let mount = plan.mounts.get(index).map(|mount| &mount.destination);
                    format!("mount {}", text(mount))
                }
                Own::Device => {
                    let device = plan.devices.get(index).map(|device| &device.path);
                    format!("make device {}", text(device))
                }
                Own::Dev => "fill /dev".to_owned(),
                Own::Terminal => "open the terminal".to_owned(),
                Own::Procfs => "take the proc filesystem of the pid namespace".to_owned(),
                Own::Streams => "open a null device".to_owned(),
                Own::Mask => format!("mask {}", text(plan.masked_paths.get(index))),
                Own::ReadOnly => {
                    format!("make {} read-only", text(plan.readonly_paths.get(index)))
                }
                Own::RootFlags => "set up the root".to_owned(),
                Own::Kernels => "make proc and sysfs, which takes those of the node as they are, \
                                 with nothing hidden in them"
                    .to_owned(),
            },
        };
        match self.lead_away(plan.mounts.get(index)) {
            Some(words) => LaunchError::failed(&step, words),
            None => LaunchError::failed(&step, self.errno),
        }
    }

    /// Words for an image's link that a mount would have followed.
    fn lead_away(self, mount: Option<&crate::protocol::Mount>) -> Option<String> {
        let path = mount.map(|mount| String::from_utf8_lossy(&mount.destination))?;
        match (self.stage, self.errno) {
            (Stage::Own(Own::Mount), Errno::LOOP) => Some(links::refused(&path)),
            (Stage::Own(Own::Mount), Errno::XDEV) => Some(links::into_the_kernels(&path)),
            _ => None,
        }
    }
}

/// When the child was done with what, for the step clock: in the order of its work.
/// Takes no memory. Its last mark comes before the filter of system calls, which
/// might not allow to ask for the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moments([u64; Self::NAMES.len()]);

impl Moments {
    /// What is done by the first, the second and so on.
    const NAMES: [&str; 5] = [
        "join cgroups",
        "enter namespaces",
        "enter the root",
        "mount",
        "fill /dev and mask",
    ];

    /// What comes next is done now.
    pub(super) fn mark(&mut self) {
        if let Some(next) = self.0.iter_mut().find(|moment| **moment == 0) {
            *next = monotonic_now();
        }
    }

    /// The same as steps.
    pub(super) fn steps(&self) -> Vec<Step> {
        let named = Self::NAMES.iter().zip(self.0).filter(|(_, at)| *at != 0);
        let step = |(name, at): (&&str, u64)| Step {
            name: (*name).to_owned(),
            at,
        };
        named.map(step).collect()
    }

    fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let mut bytes = [0; size_of::<Self>()];
        for (place, moment) in bytes.chunks_exact_mut(8).zip(self.0) {
            place.copy_from_slice(&moment.to_ne_bytes());
        }
        bytes
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; size_of::<Self>()] = bytes.try_into().ok()?;
        let mut moments = Self::default();
        for (moment, place) in moments.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *moment = u64::from_ne_bytes(place.try_into().ok()?);
        }
        Some(moments)
    }
}

/// What came.
#[derive(Debug)]
pub(super) enum Packet {
    /// The master side of its terminal.
    Console(OwnedFd),
    /// It waits for its start.
    Ready {
        /// What was honoured.
        honoured: Honoured,
        /// When it was done with what.
        moments: Moments,
    },
    /// It gave up.
    Problem(Problem),
}

/// Sends the terminal.
pub(super) fn send_console(socket: BorrowedFd<'_>, console: BorrowedFd<'_>) -> Result<(), Errno> {
    let fds = [console];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    let text = [IoSlice::new(&[tag::CONSOLE])];
    rustix::net::sendmsg(socket, &text, &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Says that all is done. By `write`: a filter is in force.
pub(super) fn send_ready(
    socket: BorrowedFd<'_>,
    honoured: Honoured,
    moments: &Moments,
) -> Result<(), Errno> {
    let mut packet = [0; 3 + size_of::<Moments>()];
    let Honoured { score, keyring } = honoured;
    packet[..3].copy_from_slice(&[tag::READY, u8::from(score), u8::from(keyring)]);
    packet[3..].copy_from_slice(&moments.to_bytes());
    rustix::io::write(socket, &packet).map(drop)
}

/// Says what went wrong. By `write`, for the same reason.
pub(super) fn send_problem(socket: BorrowedFd<'_>, problem: Problem) {
    // Its death tells as much, should this fail.
    let _lost = rustix::io::write(socket, &problem.to_bytes());
}

/// Takes the next packet, without waiting. `CONNRESET`: there will be none.
pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Packet, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MAX_PACKET];
    let received = {
        let mut text = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(socket, &mut text, &mut control, flags)?
    };
    let mut fds = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match bytes.get(..received.bytes) {
        Some([]) => Err(Errno::CONNRESET),
        Some([tag::CONSOLE]) => fds.next().map(Packet::Console).ok_or(Errno::BADMSG),
        Some([tag::READY, score, keyring, rest @ ..]) => Ok(Packet::Ready {
            honoured: Honoured {
                score: *score == 1,
                keyring: *keyring == 1,
            },
            moments: Moments::of(rest).ok_or(Errno::BADMSG)?,
        }),
        Some([tag::PROBLEM, rest @ ..]) => {
            Problem::of(rest).map(Packet::Problem).ok_or(Errno::BADMSG)
        }
        _ => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::protocol::one_way_pair;

    #[test]
    fn every_stage_survives_the_socket() {
        let own = Own::ALL.into_iter().map(Stage::Own);
        for stage in own.chain([Stage::Process(exec::Step::Cwd)]) {
            let (gate, socket) = one_way_pair().unwrap();
            let problem = Problem {
                stage,
                index: 7,
                errno: Errno::ACCESS,
            };
            send_problem(socket.as_fd(), problem);
            let Packet::Problem(got) = receive(gate.as_fd()).unwrap() else {
                panic!("another packet")
            };
            assert_eq!(got, problem);
        }
    }

    #[test]
    fn terminal_comes_before_ready_and_the_end_is_told() {
        let (gate, socket) = one_way_pair().unwrap();
        assert!(matches!(receive(gate.as_fd()), Err(Errno::AGAIN)));
        let mut moments = Moments::default();
        moments.mark();
        moments.mark();
        assert_eq!(moments.steps()[1].name, "enter namespaces");
        send_console(socket.as_fd(), gate.as_fd()).unwrap();
        let honoured = Honoured {
            score: false,
            keyring: true,
        };
        send_ready(socket.as_fd(), honoured, &moments).unwrap();
        drop(socket);
        assert!(matches!(receive(gate.as_fd()), Ok(Packet::Console(_))));
        assert!(matches!(
            receive(gate.as_fd()),
            Ok(Packet::Ready {
                honoured: got,
                moments: when,
            }) if got == honoured && when == moments
        ));
        assert!(matches!(receive(gate.as_fd()), Err(Errno::CONNRESET)));
    }

    #[test]
    fn problems_name_their_path() {
        let plan = Plan {
            masked_paths: vec![b"/a".to_vec(), b"/b".to_vec()],
            ..Plan::default()
        };
        let problem = Own::Mask.at::<()>(1, Err(Errno::IO)).unwrap_err();
        assert!(problem.explain(&plan).to_string().starts_with("mask /b: "));
    }
}
