//! Loading a compiled seccomp filter.

#![expect(unsafe_code, reason = "bare system calls")]

use rustix::io::Errno;

/// Longest program that the kernel takes.
const MAX_INSTRUCTIONS: usize = 4096;
/// Bytes of one instruction.
const INSTRUCTION: usize = 8;

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

    /// Loads it with these of the kernel's flags.
    #[must_use]
    pub fn with_flags(self, flags: u32) -> Self {
        Self {
            flags: flags.into(),
            ..self
        }
    }

    /// Puts the filter on this thread, for ever. Needs no new privileges to be
    /// off limits already, or `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// The kernel's answer: `EACCES` without that, `EINVAL` for no program.
    pub fn load(&self) -> Result<(), Errno> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).map_err(|_| Errno::INVAL)?,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: `program` describes the array that `self` owns; the kernel
        // copies it and never writes to it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                self.flags,
                std::ptr::from_ref(&program),
            )
        };
        super::check(result).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_programs_are_taken() {
        assert!(Filter::parse(&[]).is_none());
        assert!(Filter::parse(&[0; 7]).is_none());
        assert!(Filter::parse(&[0; 12]).is_none());
        assert!(Filter::parse(&[0; 16]).is_some());
        assert!(Filter::parse(&vec![0; (MAX_INSTRUCTIONS + 1) * INSTRUCTION]).is_none());
    }
}
