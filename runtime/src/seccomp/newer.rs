//! System calls that are newer than libseccomp or than the profile.
//!
//! Debian 12's libseccomp ends at Linux 5.17: names after that are unknown to
//! it and would fall to the profile's default action. This module writes a few
//! instructions that come before libseccomp's: they answer the newer calls
//! that the profile names, and ENOSYS to numbers above all that it names.

use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};
use oci_spec::runtime::LinuxSeccomp;

use super::SeccompError;
use super::compile::{Architecture, action};
use super::program::{
    ARCH, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_SET, LOAD, NUMBER, Program, RETURN, X32_BIT,
};

/// Calls since Linux 5.18. All architectures share these numbers.
const CALLS: [(&str, u32); 19] = [
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// Calls that x86-64 got out of turn; the kernel makes the program call them
/// where a probe sits, and kills it if they fail.
const X86_64_CALLS: [(&str, u32); 2] = [("uretprobe", 335), ("uprobe", 336)];

/// Instructions to run before libseccomp's own.
pub(super) fn prologue(
    profile: &LinuxSeccomp,
    default: ScmpAction,
    arches: &[Architecture],
) -> Result<Program, SeccompError> {
    let mut program = Program::default();
    let with_x32 = arches.iter().any(|arch| arch.lib == ScmpArch::X32);
    for arch in arches {
        let answers = answers(profile, default, arch.lib)?;
        let limit = limit(profile, default, arch.lib, &answers);
        let Some((token, numbers)) = token(arch.lib, with_x32) else {
            continue;
        };
        if answers.is_empty() && limit.is_none() && numbers != Numbers::LowOnly {
            continue;
        }
        let bit = if numbers == Numbers::High { X32_BIT } else { 0 };
        let mut block = Program::default();
        block.answer_calls(&answers, bit);
        if let Some(limit) = limit {
            block.answer_above(limit | bit);
        }
        program.guarded(token, numbers, &block);
    }
    Ok(program)
}

/// Which call numbers of a token belong to an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// All of them.
    All,
    /// Those without the x32 bit; the profile has x32 as well.
    Low,
    /// Those without the x32 bit. The others answer ENOSYS, as on most
    /// kernels, where x32 is switched off; libseccomp would kill.
    LowOnly,
    /// Those with the x32 bit.
    High,
}

/// The kernel's name of an architecture in a filter's input, and its numbers.
/// None for those that were never tried.
fn token(arch: ScmpArch, with_x32: bool) -> Option<(u32, Numbers)> {
    match arch {
        ScmpArch::X8664 if with_x32 => Some((0xc000_003e, Numbers::Low)),
        ScmpArch::X8664 => Some((0xc000_003e, Numbers::LowOnly)),
        ScmpArch::X32 => Some((0xc000_003e, Numbers::High)),
        ScmpArch::X86 => Some((0x4000_0003, Numbers::All)),
        ScmpArch::Aarch64 => Some((0xc000_00b7, Numbers::All)),
        ScmpArch::Arm => Some((0x4000_0028, Numbers::All)),
        _ => None,
    }
}

/// The newer calls that a rule names, with what to return for each. Rules that
/// look at arguments are for libseccomp alone: it has them when it is newer.
fn answers(
    profile: &LinuxSeccomp,
    default: ScmpAction,
    arch: ScmpArch,
) -> Result<Vec<(u32, u32)>, SeccompError> {
    let mut answers = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        if rule.args().as_ref().is_some_and(|args| !args.is_empty()) {
            continue;
        }
        let action = action(rule.action(), rule.errno_ret())?;
        for name in rule.names() {
            let known = ScmpSyscall::from_name_by_arch(name, arch).is_ok();
            if let Some(number) = number(name, arch).filter(|_| action != default && !known) {
                answers.push((number, raw(action)));
            }
        }
    }
    // The first rule for a call holds.
    answers.sort_by_key(|&(number, _)| number);
    answers.dedup_by_key(|&mut (number, _)| number);
    Ok(answers)
}

fn number(name: &str, arch: ScmpArch) -> Option<u32> {
    let own: &[(&str, u32)] = if arch == ScmpArch::X8664 {
        &X86_64_CALLS
    } else {
        &[]
    };
    CALLS
        .iter()
        .chain(own)
        .find(|(known, _)| *known == name)
        .map(|&(_, number)| number)
}

/// Whether this module knows the call.
#[cfg(test)]
pub(super) fn is_known(name: &str) -> bool {
    number(name, ScmpArch::X8664).is_some()
}

/// The highest number that the profile names, above which calls are newer.
/// None where such calls pass anyway or the profile says ENOSYS already.
fn limit(
    profile: &LinuxSeccomp,
    default: ScmpAction,
    arch: ScmpArch,
    answers: &[(u32, u32)],
) -> Option<u32> {
    match default {
        // A tracer answers for itself what it does not know.
        ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_) => return None,
        ScmpAction::Errno(libc::ENOSYS) => return None,
        _ => {}
    }
    let named = profile
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|rule| rule.names());
    let known = named.filter_map(|name| {
        let number = ScmpSyscall::from_name_by_arch(name, arch)
            .ok()?
            .as_raw_syscall();
        // Negative ones are libseccomp's names for calls of other machines.
        u32::try_from(number)
            .ok()
            .or(None)
            .map(|number| number & !X32_BIT)
    });
    known.chain(answers.iter().map(|&(number, _)| number)).max()
}

/// What the filter returns for an action.
fn raw(action: ScmpAction) -> u32 {
    match action {
        ScmpAction::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        ScmpAction::Trap => libc::SECCOMP_RET_TRAP,
        ScmpAction::Notify => libc::SECCOMP_RET_USER_NOTIF,
        ScmpAction::Errno(number) => libc::SECCOMP_RET_ERRNO | (number.cast_unsigned() & 0xffff),
        ScmpAction::Trace(number) => libc::SECCOMP_RET_TRACE | u32::from(number),
        ScmpAction::Log => libc::SECCOMP_RET_LOG,
        ScmpAction::Allow => libc::SECCOMP_RET_ALLOW,
        // KillThread, and whatever a later libseccomp adds: rather too strict.
        _ => libc::SECCOMP_RET_KILL_THREAD,
    }
}

/// The answer of a kernel that does not have the call.
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
impl Program {
    fn answer_calls(&mut self, answers: &[(u32, u32)], number_bit: u32) {
        for &(number, answer) in answers {
            self.push(JUMP_EQUAL, 0, 1, number | number_bit);
            self.push(RETURN, 0, 0, answer);
        }
    }

    fn answer_above(&mut self, limit: u32) {
        self.push(JUMP_GREATER, 0, 1, limit);
        self.push(RETURN, 0, 0, MISSING);
    }

    /// Runs `block` for the calls of one architecture, then goes on.
    fn guarded(&mut self, token: u32, numbers: Numbers, block: &Program) {
        let over = u32::try_from(block.code.len()).unwrap_or(u32::MAX);
        let mut select = Program::default();
        select.push(LOAD, 0, 0, NUMBER);
        match numbers {
            Numbers::All => {}
            Numbers::Low => {
                select.push(JUMP_SET, 0, 1, X32_BIT);
                select.push(JUMP, 0, 0, over);
            }
            Numbers::LowOnly => {
                select.push(JUMP_SET, 0, 1, X32_BIT);
                select.push(RETURN, 0, 0, MISSING);
            }
            Numbers::High => {
                select.push(JUMP_SET, 1, 0, X32_BIT);
                select.push(JUMP, 0, 0, over);
            }
        }
        let selecting = u32::try_from(select.code.len()).unwrap_or(u32::MAX);
        self.push(LOAD, 0, 0, ARCH);
        // A conditional jump spans 255 instructions only: let it step over a
        // plain jump, which spans any number.
        self.push(JUMP_EQUAL, 1, 0, token);
        self.push(JUMP, 0, 0, selecting.saturating_add(over));
        self.code.extend_from_slice(&select.code);
        self.code.extend_from_slice(&block.code);
    }
}
