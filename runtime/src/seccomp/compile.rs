//! From a profile to raw BPF, by libseccomp.
//!
//! libseccomp is told to build a binary tree over the call numbers; in front
//! goes a prologue of our own for calls that it does not know (`newer`). What comes out
//! is shortened (`compact`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use libseccomp::error::SeccompError as LibError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};

use super::SeccompError;
use super::compact::compact;
use super::newer;
use super::program::Program;

/// The kernel's BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;

/// Size of the kernel's `struct sock_filter`.
pub(super) const INSTRUCTION: usize = 8;

/// Compiles a profile for this machine into an array of `sock_filter`. The
/// profile's flags are for whoever loads the filter.
///
/// System calls that nobody knows are skipped. Numbers above every call that
/// the profile names answer ENOSYS unless the default action lets calls
/// through: they are newer than the profile, which cannot have meant to deny
/// them, and programs know what to do without a call that is missing.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, SeccompError> {
    let program = uncompacted(profile)?;
    let program = compact(&program).unwrap_or(program);
    let instructions = program.code.len();
    if instructions > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong { instructions });
    }
    Ok(program.bytes())
}

/// The filter as libseccomp writes it, and in front of it what libseccomp cannot know.
pub(super) fn uncompacted(profile: &LinuxSeccomp) -> Result<Program, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let arches = architectures(profile)?;
    let filter = build(profile, default, &arches)?;
    let mut program = newer::prologue(profile, default, &arches)?;
    program.code.extend(Program::parse(&export(&filter)?).code);
    Ok(program)
}

/// An architecture under both of its names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Architecture {
    pub(super) oci: Arch,
    pub(super) lib: ScmpArch,
}

/// The native architecture first, then those that the profile lists.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<Architecture>, SeccompError> {
    let native = ScmpArch::native();
    let mut arches: Vec<Architecture> = Vec::new();
    for &oci in profile.architectures().iter().flatten() {
        let name = oci.to_string();
        let mut lib = ScmpArch::from_str(&name)
            .map_err(|source| SeccompError::Arch { arch: name, source })?;
        if lib == ScmpArch::Native {
            lib = native;
        }
        if !arches.iter().any(|arch| arch.lib == lib) {
            arches.push(Architecture { oci, lib });
        }
    }
    arches.retain(|arch| arch.lib != native);
    arches.insert(
        0,
        Architecture {
            oci: Arch::ScmpArchNative,
            lib: native,
        },
    );
    Ok(arches)
}

fn build(
    profile: &LinuxSeccomp,
    default: ScmpAction,
    arches: &[Architecture],
) -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new(default).map_err(lib_error("new filter"))?;
    for arch in arches {
        // Adding the native one again is quietly accepted.
        filter.add_arch(arch.lib).map_err(|source| {
            let arch = arch.oci.to_string();
            SeccompError::Arch { arch, source }
        })?;
    }
    filter
        .set_ctl_optimize(2)
        .map_err(lib_error("choose the binary tree"))?;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // libseccomp refuses a rule that says what happens anyway.
        if action != default {
            add(&mut filter, rule, action)?;
        }
    }
    Ok(filter)
}

fn add(
    filter: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    action: ScmpAction,
) -> Result<(), SeccompError> {
    let names = rule.names();
    let args = match (rule.args(), names.first()) {
        (Some(args), Some(name)) => comparisons(name, args)?,
        _ => Vec::new(),
    };
    let indexes: BTreeSet<_> = rule
        .args()
        .iter()
        .flatten()
        .map(LinuxSeccompArg::index)
        .collect();
    for name in names {
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            continue;
        };
        let failed = |source| SeccompError::Rule {
            syscall: name.clone(),
            source,
        };
        if args.is_empty() {
            filter.add_rule(action, syscall).map_err(failed)?;
        } else if indexes.len() == args.len() {
            filter
                .add_rule_conditional(action, syscall, &args)
                .map_err(failed)?;
        } else {
            // One rule can look at an argument once. Profiles that name it
            // more often mean "any of these", as runc takes it.
            for arg in &args {
                filter
                    .add_rule_conditional(action, syscall, &[*arg])
                    .map_err(failed)?;
            }
        }
    }
    Ok(())
}

fn comparisons(name: &str, args: &[LinuxSeccompArg]) -> Result<Vec<ScmpArgCompare>, SeccompError> {
    let bad = |reason| SeccompError::Argument {
        syscall: name.into(),
        reason,
    };
    args.iter()
        .map(|arg| {
            let index = u32::try_from(arg.index()).ok().filter(|&index| index < 6);
            let index = index.ok_or_else(|| bad("a call has arguments 0 to 5"))?;
            let (operator, value) = match arg.op() {
                LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
                LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
                LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
                LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
                LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
                LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
                // The first value is the mask, the second what must be left.
                LinuxSeccompOperator::ScmpCmpMaskedEq => {
                    let masked = arg.value_two().unwrap_or(0);
                    (ScmpCompareOp::MaskedEqual(arg.value()), masked)
                }
            };
            Ok(ScmpArgCompare::new(index, operator, value))
        })
        .collect()
}

/// The action with its number, which is EPERM where none is given.
pub(super) fn action(
    action: LinuxSeccompAction,
    data: Option<u32>,
) -> Result<ScmpAction, SeccompError> {
    let value = data.unwrap_or(libc::EPERM.cast_unsigned());
    let data = u16::try_from(value).map_err(|_| SeccompError::ActionData { value })?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(data.into()),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(data),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, SeccompError> {
    let failed = |source: std::io::Error| SeccompError::Compile {
        step: "read the filter back",
        source: source.into(),
    };
    // libseccomp before 2.6 exports to a descriptor only.
    let memfd: OwnedFd =
        memfd_create("seccomp", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    filter
        .export_bpf(&memfd)
        .map_err(lib_error("generate the filter"))?;
    let mut file = File::from(memfd);
    let mut program = Vec::new();
    file.rewind().map_err(failed)?;
    file.read_to_end(&mut program).map_err(failed)?;
    Ok(program)
}

fn lib_error(step: &'static str) -> impl Fn(LibError) -> SeccompError {
    move |source| SeccompError::Compile {
        step,
        source: source.into(),
    }
}
