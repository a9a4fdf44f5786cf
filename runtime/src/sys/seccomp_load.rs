//! Loading a compiled seccomp filter.

#![expect(unsafe_code, reason = "bare system calls")]

use rustix::io::Errno;
use syscalls::Sysno;

use super::parcel::{self, Parcel};

/// Longest program that the kernel takes.
const MAX_INSTRUCTIONS: usize = 4096;
/// Bytes of one instruction.
const INSTRUCTION: usize = 8;

/// This machine's calls, as filters see them: `AUDIT_ARCH_X86_64` or its like.
const ARCH: u32 = if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else {
    0xc000_003e
};

/// Instructions of filters, and what they answer: linux/bpf_common.h and
/// linux/seccomp.h.
mod op {
    pub(super) const LOAD: u16 = 0x20;
    pub(super) const AND: u16 = 0x54;
    pub(super) const JUMP: u16 = 0x05;
    pub(super) const JUMP_EQUAL: u16 = 0x15;
    pub(super) const JUMP_GREATER: u16 = 0x25;
    pub(super) const JUMP_AT_LEAST: u16 = 0x35;
    pub(super) const JUMP_SET: u16 = 0x45;
    pub(super) const RETURN: u16 = 0x06;
    pub(super) const ACTION: u32 = 0xffff_0000;
    pub(super) const ALLOW: u32 = 0x7fff_0000;
    pub(super) const LOG: u32 = 0x7ffc_0000;
    /// `SECCOMP_RET_ERRNO` with `EPERM`.
    pub(super) const DENY: u32 = 0x0005_0001;
}

/// A compiled filter: classic BPF.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// Reads an array of `sock_filter` in this machine's byte order. `None`:
    /// it is empty, cut, or longer than the kernel takes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (instructions, rest) = bytes.as_chunks::<INSTRUCTION>();
        let fits = !instructions.is_empty() && instructions.len() <= MAX_INSTRUCTIONS;
        if !rest.is_empty() || !fits {
            return None;
        }
        let parsed = instructions
            .iter()
            .map(|&[a, b, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
                code: u16::from_ne_bytes([a, b]),
                jt,
                jf,
                k: u32::from_ne_bytes([k0, k1, k2, k3]),
            });
        Some(Self {
            program: parsed.collect(),
            flags: 0,
        })
    }

    /// One that lets this machine's calls of these numbers pass, and answers `EPERM` to
    /// all others.
    #[must_use]
    pub fn of_calls(numbers: &[libc::c_long]) -> Self {
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        // Behind each comparison the answer follows at once: no jump is too far.
        let mut program = vec![
            step(op::LOAD, 0, 0, 4),
            step(op::JUMP_EQUAL, 1, 0, ARCH),
            step(op::RETURN, 0, 0, op::DENY),
            step(op::LOAD, 0, 0, 0),
        ];
        for number in numbers
            .iter()
            .filter_map(|number| u32::try_from(*number).ok())
        {
            program.push(step(op::JUMP_EQUAL, 0, 1, number));
            program.push(step(op::RETURN, 0, 0, op::ALLOW));
        }
        program.push(step(op::RETURN, 0, 0, op::DENY));
        Self { program, flags: 0 }
    }

    /// The same, but calls of these numbers pass, and `clone` with exactly these flags.
    /// `None`: it is too long for that.
    #[must_use]
    pub fn widened(&self, numbers: &[libc::c_long], clone_flags: u32) -> Option<Self> {
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let number = |call: libc::c_long| u32::try_from(call).ok();
        let mut first = vec![step(op::LOAD, 0, 0, 0)];
        for call in numbers {
            first.push(step(op::JUMP_EQUAL, 0, 1, number(*call)?));
            first.push(step(op::RETURN, 0, 0, op::ALLOW));
        }
        let low_half = if cfg!(target_endian = "little") {
            16
        } else {
            20
        };
        first.push(step(op::JUMP_EQUAL, 0, 3, number(libc::SYS_clone)?));
        first.push(step(op::LOAD, 0, 0, low_half));
        first.push(step(op::JUMP_EQUAL, 0, 1, clone_flags));
        first.push(step(op::RETURN, 0, 0, op::ALLOW));
        let over = u8::try_from(first.len()).ok()?;
        let mut program = vec![step(op::LOAD, 0, 0, 4), step(op::JUMP_EQUAL, 0, over, ARCH)];
        program.extend(first);
        program.extend_from_slice(&self.program);
        let flags = self.flags;
        (program.len() <= MAX_INSTRUCTIONS).then_some(Self { program, flags })
    }

    /// Loads it with these of the kernel's flags.
    #[must_use]
    pub fn with_flags(self, flags: u32) -> Self {
        Self {
            flags: flags.into(),
            ..self
        }
    }

    /// Whether it lets this machine's call of this number pass, whatever its arguments
    /// are but for the first. What is not understood does not pass.
    #[must_use]
    pub fn allows(&self, number: libc::c_long, first: u64) -> bool {
        let [low, high] = [first, first >> 32].map(|word| word as u32);
        let input = |offset: u32| match offset {
            0 => u32::try_from(number).ok(),
            4 => Some(ARCH),
            16 => Some(if cfg!(target_endian = "little") {
                low
            } else {
                high
            }),
            20 => Some(if cfg!(target_endian = "little") {
                high
            } else {
                low
            }),
            _ => None,
        };
        let (mut at, mut word) = (0_usize, 0);
        // Jumps lead forward only: it ends.
        while let Some(one) = self.program.get(at) {
            let jump = |holds: bool| usize::from(if holds { one.jt } else { one.jf });
            at += 1;
            match one.code {
                op::LOAD => match input(one.k) {
                    Some(loaded) => word = loaded,
                    None => return false,
                },
                op::AND => word &= one.k,
                op::JUMP => at += usize::try_from(one.k).unwrap_or(usize::MAX / 2),
                op::JUMP_EQUAL => at += jump(word == one.k),
                op::JUMP_GREATER => at += jump(word > one.k),
                op::JUMP_AT_LEAST => at += jump(word >= one.k),
                op::JUMP_SET => at += jump(word & one.k != 0),
                op::RETURN => return matches!(one.k & op::ACTION, op::ALLOW | op::LOG),
                _ => return false,
            }
        }
        false
    }

    /// Puts the filter on this thread, for ever. Needs no new privileges to be
    /// off limits already, or `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// The kernel's answer: `EACCES` without that, `EINVAL` for no program.
    pub fn load(&self) -> Result<(), Errno> {
        self.borrow().load()
    }

    fn borrow(&self) -> Borrowed<'_> {
        Borrowed {
            program: &self.program,
            flags: self.flags,
        }
    }

    /// How much room it takes in a [`Parcel`].
    #[must_use]
    pub fn room(&self) -> usize {
        parcel::room(&self.program)
    }

    /// Packs it.
    ///
    /// # Errors
    /// `ENOMEM`: there is not as much room left.
    pub fn pack(&self, parcel: &mut Parcel) -> Result<Borrowed<'static>, Errno> {
        Ok(Borrowed {
            program: parcel.pack(&self.program)?,
            flags: self.flags,
        })
    }
}

/// A filter that is somewhere else.
#[derive(Debug, Clone, Copy)]
pub struct Borrowed<'a> {
    program: &'a [libc::sock_filter],
    flags: libc::c_ulong,
}

impl Borrowed<'_> {
    /// See [`Filter::load`]. Works in a process without thread-local storage
    /// ([`super::parcel`]).
    ///
    /// # Errors
    /// See there.
    pub fn load(&self) -> Result<(), Errno> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).map_err(|_| Errno::INVAL)?,
            filter: self.program.as_ptr().cast_mut(),
        };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let described = std::ptr::from_ref(&program);
        // SAFETY: `program` describes an array that is borrowed; the kernel copies it
        // and never writes to it.
        let result = unsafe { syscalls::syscall!(Sysno::seccomp, mode, self.flags, described) };
        result
            .map(drop)
            .map_err(|errno| Errno::from_raw_os_error(errno.into_raw()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_filter_lets_pass_is_told() {
        let program: [(u16, u8, u8, u32); 8] = [
            (op::LOAD, 0, 0, 4),
            (op::JUMP_EQUAL, 0, 5, ARCH),
            (op::LOAD, 0, 0, 0),
            (op::JUMP_EQUAL, 0, 2, 56),
            (op::LOAD, 0, 0, 16),
            (op::JUMP_SET, 1, 0, 0x7e02_0000),
            (op::RETURN, 0, 0, op::ALLOW),
            (op::RETURN, 0, 0, 0x0005_0001),
        ];
        let bytes = program.into_iter().flat_map(|(code, jt, jf, k)| {
            let ([a, b], k) = (code.to_ne_bytes(), k.to_ne_bytes());
            [a, b, jt, jf, k[0], k[1], k[2], k[3]]
        });
        let filter = Filter::parse(&bytes.collect::<Vec<_>>()).unwrap();
        assert!(filter.allows(56, 0x8000));
        assert!(!filter.allows(56, 0x1000_0000), "a namespace");
        assert!(filter.allows(1, 0));
        let odd = Filter::parse(&[0xff; 8]).unwrap();
        assert!(!odd.allows(1, 0));
    }

    #[test]
    fn only_calls_that_are_named_pass() {
        let filter = Filter::of_calls(&[1, 60]);
        assert!(filter.allows(1, 0) && filter.allows(60, 0));
        assert!(!filter.allows(0, 0) && !filter.allows(61, 0));
    }

    #[test]
    fn a_widened_filter_lets_more_pass_and_nothing_else() {
        let narrow = Filter::of_calls(&[libc::SYS_getpid]);
        let wide = narrow.widened(&[libc::SYS_setsid], 0x8000).unwrap();
        for (call, first, narrowly, widely) in [
            (libc::SYS_getpid, 0, true, true),
            (libc::SYS_setsid, 0, false, true),
            (libc::SYS_clone, 0x8000, false, true),
            (libc::SYS_clone, 0x1000_8000, false, false),
            (libc::SYS_unshare, 0x8000, false, false),
        ] {
            assert_eq!(narrow.allows(call, first), narrowly, "{call}");
            assert_eq!(wide.allows(call, first), widely, "{call}");
        }
        let long = Filter {
            program: vec![narrow.program[0]; MAX_INSTRUCTIONS],
            flags: 0,
        };
        assert!(long.widened(&[], 0).is_none());
    }

    #[test]
    fn only_whole_programs_are_taken() {
        assert!(Filter::parse(&[]).is_none());
        assert!(Filter::parse(&[0; 7]).is_none());
        assert!(Filter::parse(&[0; 12]).is_none());
        assert!(Filter::parse(&[0; 16]).is_some());
        assert!(Filter::parse(&vec![0; (MAX_INSTRUCTIONS + 1) * INSTRUCTION]).is_none());
    }
}
