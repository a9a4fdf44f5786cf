//! A process, prepared so that its child need not allocate.
//!
//! Owns the checks of what came from outside. Knows nothing of a container.

use std::ffi::{CString, NulError};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid};

use super::keyring::Keyring;
use super::program::Program;
use crate::joining::Joining;
use crate::protocol::{CapabilitySets, Process};
use crate::sys::seccomp_load::Filter;
use crate::user_space::UserSpace;

/// Capabilities by their numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The kernel's number of a capability, by its name with or without `CAP_`.
#[must_use]
pub fn capability_number(name: &str) -> Option<u32> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    let position = CAPABILITIES.iter().position(|known| *known == name)?;
    u32::try_from(position).ok()
}

/// A description that makes no process.
#[derive(Debug, thiserror::Error)]
pub enum BadProcess {
    /// It has no program.
    #[error("no program to execute")]
    NoProgram,
    /// A text holds a NUL.
    #[error("{what} holds a NUL")]
    Nul {
        /// Which text.
        what: &'static str,
        /// Where.
        source: NulError,
    },
    /// The kernel has no such limit.
    #[error("unknown resource limit {0}")]
    UnknownLimit(u32),
    /// An id is the kernel's word for "none".
    #[error("{0} is not a valid id")]
    BadId(u32),
    /// A cgroup is not there.
    #[error("join cgroup {dir}: {errno}")]
    Cgroup {
        /// Its directory.
        dir: String,
        /// Why it cannot be opened.
        errno: Errno,
    },
    /// The seccomp filter is no program.
    #[error("seccomp filter is not a BPF program")]
    BadFilter,
}

/// A security label to take on with the program.
#[derive(Debug)]
pub(super) struct Label {
    /// File to write, tried in order.
    pub(super) files: &'static [&'static std::ffi::CStr],
    /// What to write.
    pub(super) value: Vec<u8>,
}

/// A process, ready to be made.
#[derive(Debug)]
pub struct Plan {
    pub(crate) program: Program,
    pub(super) cwd: CString,
    pub(super) umask: Mode,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(super) groups: Vec<Gid>,
    pub(super) capabilities: CapabilitySets,
    pub(super) rlimits: Vec<(Resource, Rlimit)>,
    pub(super) no_new_privileges: bool,
    pub(super) labels: Vec<Label>,
    pub(crate) oom_score_adj: Option<String>,
    pub(crate) seccomp: Option<Filter>,
    /// The user namespace that it is made in; `None`: that of its maker.
    pub(crate) user_space: Option<UserSpace>,
    /// The session keyring to join, which is made where there is none.
    pub(super) keyring: Option<Keyring>,
    /// The cgroup to be born in.
    pub(crate) born_in: Option<OwnedFd>,
    /// Files of other cgroups, each to be joined.
    pub(super) joined: Vec<CString>,
}

impl Plan {
    /// Checks and prepares a process.
    ///
    /// # Errors
    /// See [`BadProcess`].
    pub fn new(
        process: &Process,
        cgroup_files: &[Vec<u8>],
        seccomp: Option<&[u8]>,
    ) -> Result<Self, BadProcess> {
        let nul = |what| move |source| BadProcess::Nul { what, source };
        let program = Program::new(&process.args, &process.env)
            .map_err(nul("argument or variable"))?
            .ok_or(BadProcess::NoProgram)?;
        let cwd = if process.cwd.is_empty() {
            b"/"
        } else {
            process.cwd.as_slice()
        };
        let Joining { born_in, joined } =
            Joining::new(cgroup_files).map_err(|(dir, errno)| BadProcess::Cgroup { dir, errno })?;
        let joined = joined.into_iter().map(CString::new);
        Ok(Self {
            program,
            cwd: CString::new(cwd).map_err(nul("working directory"))?,
            umask: Mode::from_raw_mode(process.umask.unwrap_or(0o022) & 0o777),
            uid: Uid::from_raw(valid_id(process.uid)?),
            gid: Gid::from_raw(valid_id(process.gid)?),
            groups: process
                .groups
                .iter()
                .map(|gid| valid_id(*gid).map(Gid::from_raw))
                .collect::<Result<_, _>>()?,
            capabilities: process.capabilities.unwrap_or_default(),
            rlimits: process
                .rlimits
                .iter()
                .map(rlimit)
                .collect::<Result<_, _>>()?,
            no_new_privileges: process.no_new_privileges,
            labels: labels(process),
            oom_score_adj: process.oom_score_adj.map(|score| score.to_string()),
            seccomp: seccomp
                .map(|bytes| Filter::parse(bytes).ok_or(BadProcess::BadFilter))
                .transpose()?,
            user_space: None,
            keyring: None,
            born_in,
            joined: joined
                .collect::<Result<_, _>>()
                .map_err(nul("cgroup path"))?,
        })
    }

    /// Joins the session keyring of a container: keys are told apart by nothing else,
    /// as long as containers have the same users.
    ///
    /// # Errors
    /// The container's id holds a NUL.
    pub fn with_keyring(
        mut self,
        container: &str,
        secret: &str,
        process: &Process,
    ) -> Result<Self, BadProcess> {
        let nul = |source| BadProcess::Nul {
            what: "container id",
            source,
        };
        self.keyring = Some(Keyring::of(container, secret, &process.selinux_label).map_err(nul)?);
        Ok(self)
    }

    /// Is made in this user namespace, whose ids its user and groups are.
    #[must_use]
    pub fn within(mut self, user_space: Option<UserSpace>) -> Self {
        self.user_space = user_space;
        self
    }

    /// Is born in the cgroup of the v2 tree that a process of the container is in, which
    /// must be one below that of the plan.
    ///
    /// # Errors
    /// Words for what is in the way.
    pub fn be_born_beside(&mut self, process: Pid) -> Result<(), String> {
        let place = self.born_in.as_ref().ok_or("it has no cgroup")?;
        self.born_in = Some(crate::joining::below(place.as_fd(), process)?);
        Ok(())
    }

    /// Loads the seccomp filter with these of the kernel's flags.
    #[must_use]
    pub fn with_seccomp_flags(mut self, flags: u32) -> Self {
        self.seccomp = self.seccomp.map(|filter| filter.with_flags(flags));
        self
    }

    /// Where it begins.
    pub(crate) fn cwd(&self) -> &std::ffi::CStr {
        &self.cwd
    }

    /// Words for a problem that the child reported, and whether it means that
    /// the program is missing or cannot be executed.
    #[must_use]
    pub fn explain(&self, problem: super::Problem) -> (String, bool) {
        match problem.step {
            super::Step::Exec => {
                let refused = self.program.command().refused(problem.errno);
                (refused.to_string(), refused.is_unusable())
            }
            _ => (format!("{}", problem.errno), false),
        }
    }
}

/// The kernel takes -1 as "leave as it is": that would keep root.
fn valid_id(id: u32) -> Result<u32, BadProcess> {
    if id == u32::MAX {
        Err(BadProcess::BadId(id))
    } else {
        Ok(id)
    }
}

fn labels(process: &Process) -> Vec<Label> {
    let mut labels = Vec::new();
    if !process.apparmor_profile.is_empty() {
        labels.push(Label {
            files: &[c"/proc/self/attr/apparmor/exec", c"/proc/self/attr/exec"],
            value: format!("exec {}", process.apparmor_profile).into_bytes(),
        });
    }
    if !process.selinux_label.is_empty() {
        let value = process.selinux_label.clone().into_bytes();
        labels.push(Label {
            files: &[c"/proc/self/attr/exec"],
            value,
        });
    }
    labels
}

fn rlimit(limit: &crate::protocol::Rlimit) -> Result<(Resource, Rlimit), BadProcess> {
    let resource = match limit.resource {
        0 => Resource::Cpu,
        1 => Resource::Fsize,
        2 => Resource::Data,
        3 => Resource::Stack,
        4 => Resource::Core,
        5 => Resource::Rss,
        6 => Resource::Nproc,
        7 => Resource::Nofile,
        8 => Resource::Memlock,
        9 => Resource::As,
        10 => Resource::Locks,
        11 => Resource::Sigpending,
        12 => Resource::Msgqueue,
        13 => Resource::Nice,
        14 => Resource::Rtprio,
        15 => Resource::Rttime,
        other => return Err(BadProcess::UnknownLimit(other)),
    };
    let value = |limit: u64| (limit != u64::MAX).then_some(limit);
    Ok((
        resource,
        Rlimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process {
            args: vec![b"sh".to_vec()],
            ..Process::default()
        }
    }

    #[test]
    fn capability_names_are_known_with_and_without_prefix() {
        assert_eq!(capability_number("CAP_CHOWN"), Some(0));
        assert_eq!(capability_number("SYS_ADMIN"), Some(21));
        assert_eq!(capability_number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(capability_number("CAP_NONSENSE"), None);
    }

    #[test]
    fn id_that_means_none_is_refused() {
        for bad in [
            Process {
                uid: u32::MAX,
                ..process()
            },
            Process {
                gid: u32::MAX,
                ..process()
            },
            Process {
                groups: vec![1, u32::MAX],
                ..process()
            },
        ] {
            assert!(matches!(
                Plan::new(&bad, &[], None),
                Err(BadProcess::BadId(_))
            ));
        }
    }

    #[test]
    fn missing_capabilities_are_none() {
        let plan = Plan::new(&process(), &[], None).unwrap();
        assert_eq!(plan.capabilities, CapabilitySets::default());
    }

    /// The kernel refuses a flag that it does not know before it looks at the program.
    #[test]
    fn flags_of_the_filter_reach_the_kernel() {
        let allow = [[6, 0, 0, 0], [0, 0, 0xff, 0x7f]].concat();
        let plan = Plan::new(&process(), &[], Some(&allow)).unwrap();
        let plan = plan.with_seccomp_flags(1 << 30);
        assert_eq!(plan.seccomp.unwrap().load(), Err(Errno::INVAL));
    }

    #[test]
    fn filter_that_is_no_program_is_refused() {
        assert!(matches!(
            Plan::new(&process(), &[], Some(&[1])),
            Err(BadProcess::BadFilter)
        ));
    }
}
