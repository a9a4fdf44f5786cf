//! Seccomp profiles and the filters made of them.
//!
//! Owns the RuntimeDefault profile (`default.json`, in OCI form, and
//! `by-capability.json`, what a capability opens up) and the compiler to raw
//! BPF. Never loads a filter: who starts a process does. Keeps nothing on
//! disk, so a crash leaves nothing.
//!
//! The default profile allows by name, answers EPERM by name, and answers
//! ENOSYS to the rest, so that a program on a newer kernel falls back instead
//! of giving up, whichever launcher loads the profile. 32-bit x86 programs
//! open sockets through `socketcall`, whose arguments lie in memory where no
//! filter can look: the socket families are limited for direct calls only.

mod compact;
mod compile;
mod newer;
mod program;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use oci_spec::runtime::{Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

pub use compile::compile;

/// A failure of this module.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A profile is not what the OCI runtime specification describes. The
    /// message names an unknown action, operator or architecture and its place.
    #[error("parse the seccomp profile")]
    Parse {
        /// The cause.
        source: serde_json::Error,
    },
    /// A rule holds only under a condition that OCI profiles do not have.
    #[error("rule {rule} of the seccomp profile has {key:?}, which OCI profiles do not know")]
    Conditional {
        /// Its number, from 0.
        rule: usize,
        /// The key.
        key: &'static str,
    },
    /// An architecture that libseccomp cannot filter here.
    #[error("seccomp profile: architecture {arch}")]
    Arch {
        /// Its name.
        arch: String,
        /// The cause.
        source: libseccomp::error::SeccompError,
    },
    /// A rule that libseccomp refuses.
    #[error("seccomp profile: rule for {syscall}")]
    Rule {
        /// The system call.
        syscall: String,
        /// The cause.
        source: libseccomp::error::SeccompError,
    },
    /// An argument comparison without all of its values.
    #[error("seccomp profile: rule for {syscall}: {reason}")]
    Argument {
        /// The system call.
        syscall: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// An errno or trace number beyond 16 bits.
    #[error("seccomp profile: {value} does not fit an action's 16 bits")]
    ActionData {
        /// The number.
        value: u32,
    },
    /// Compiling failed as a whole.
    #[error("compile the seccomp profile: {step}")]
    Compile {
        /// What was tried.
        step: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel takes at most 4096 instructions.
    #[error("the seccomp profile compiles to {instructions} instructions, more than 4096")]
    TooLong {
        /// How many there are.
        instructions: usize,
    },
}

/// RuntimeDefault for a process without capabilities.
pub fn default_profile() -> &'static LinuxSeccomp {
    static PROFILE: OnceLock<LinuxSeccomp> = OnceLock::new();
    PROFILE.get_or_init(|| {
        // A test holds that the text parses. Should it ever not, nothing may
        // run rather than everything.
        let mut profile = parse(include_bytes!("default.json")).unwrap_or_else(|error| {
            tracing::error!(%error, "the built-in seccomp profile is broken");
            let mut closed = LinuxSeccomp::default();
            closed.set_default_action(LinuxSeccompAction::ScmpActKillProcess);
            closed
        });
        profile.set_architectures(Some(architectures()));
        profile
    })
}

/// RuntimeDefault for a process with these capabilities: what they are for is
/// allowed, the kernel checks them itself.
pub fn default_for(capabilities: &[Capability]) -> LinuxSeccomp {
    let mut profile = default_profile().clone();
    let table = by_capability();
    let opened: BTreeSet<&str> = capabilities
        .iter()
        // The crate writes capabilities without their prefix.
        .filter_map(|capability| table.get(&format!("CAP_{capability}")))
        .flatten()
        .map(String::as_str)
        .collect();
    if opened.is_empty() {
        return profile;
    }
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    for rule in &mut rules {
        let kept = rule
            .names()
            .iter()
            .filter(|name| !opened.contains(name.as_str()));
        let kept = kept.cloned().collect();
        rule.set_names(kept);
    }
    rules.retain(|rule| !rule.names().is_empty());
    let mut allowed = LinuxSyscall::default();
    allowed.set_names(opened.into_iter().map(str::to_owned).collect());
    allowed.set_action(LinuxSeccompAction::ScmpActAllow);
    rules.push(allowed);
    profile.set_syscalls(Some(rules));
    profile
}

/// Reads a profile in OCI form. Unknown actions, operators and architectures
/// are errors; unknown system calls are not, kernels differ.
pub fn parse(json: &[u8]) -> Result<LinuxSeccomp, SeccompError> {
    let failed = |source| SeccompError::Parse { source };
    let value: serde_json::Value = serde_json::from_slice(json).map_err(failed)?;
    // Docker's and Podman's own form looks alike. Taking its conditional rules
    // as unconditional would allow what they mean to allow to a few only.
    let rules = value.get("syscalls").and_then(|rules| rules.as_array());
    for (rule, entry) in rules.into_iter().flatten().enumerate() {
        for key in ["includes", "excludes"] {
            let condition = entry.get(key).and_then(|condition| condition.as_object());
            if condition.is_some_and(|condition| !condition.is_empty()) {
                return Err(SeccompError::Conditional { rule, key });
            }
        }
    }
    // From the text again: its errors name line and column.
    serde_json::from_slice(json).map_err(failed)
}

/// Compiled filters, so that each profile is compiled once. The key is the
/// whole profile: no two of them can be taken for each other.
#[derive(Debug, Default)]
pub struct Cache {
    filters: Mutex<HashMap<Vec<u8>, Arc<Vec<u8>>>>,
}

/// A node has a handful of profiles. Beyond this many, someone makes them up
/// per container, and the cache starts again rather than grow.
const CACHE_LIMIT: usize = 128;

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// The filter of this profile, compiled now if it was not yet. Blocks for
    /// some 20 ms then.
    pub fn get(&self, profile: &LinuxSeccomp) -> Result<Arc<Vec<u8>>, SeccompError> {
        let key = serde_json::to_vec(profile).map_err(|source| SeccompError::Parse { source })?;
        if let Some(filter) = self.lock().get(&key) {
            return Ok(Arc::clone(filter));
        }
        // Outside the lock: others need not wait for this profile.
        let filter = Arc::new(compile(profile)?);
        let mut filters = self.lock();
        if filters.len() >= CACHE_LIMIT {
            filters.clear();
        }
        Ok(Arc::clone(filters.entry(key).or_insert(filter)))
    }

    /// A panic elsewhere cannot leave a filter half inserted.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Arc<Vec<u8>>>> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// System calls by the capability that opens them.
fn by_capability() -> &'static BTreeMap<String, Vec<String>> {
    static TABLE: OnceLock<BTreeMap<String, Vec<String>>> = OnceLock::new();
    TABLE.get_or_init(|| {
        // A test holds that it parses; without it nothing is opened.
        serde_json::from_slice(include_bytes!("by-capability.json")).unwrap_or_default()
    })
}

/// The native architecture and the 32-bit one that its kernels run besides.
/// Not x32: kernels have it switched off, and it costs a third of the filter.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86]
    } else {
        vec![Arch::ScmpArchNative]
    }
}
