//! BPF programs that decide about devices of a cgroup.

#![expect(unsafe_code, reason = "bare system calls")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Commands and constants of bpf(2).
mod constants {
    pub(super) const PROG_LOAD: libc::c_int = 5;
    pub(super) const PROG_ATTACH: libc::c_int = 8;
    pub(super) const TYPE_CGROUP_DEVICE: u32 = 15;
    pub(super) const ATTACH_CGROUP_DEVICE: u32 = 6;
    /// Beside programs of the parents: all of them have to agree.
    pub(super) const ALLOW_MULTI: u32 = 2;
}

/// Operations that device programs are made of.
mod code {
    pub(super) const LOAD_WORD: u8 = 0x61;
    pub(super) const AND: u8 = 0x57;
    pub(super) const SHIFT_RIGHT: u8 = 0x77;
    pub(super) const SET: u8 = 0xb7;
    pub(super) const COPY: u8 = 0xbf;
    pub(super) const JUMP_IF_EQUAL: u8 = 0x15;
    pub(super) const JUMP_UNLESS_EQUAL: u8 = 0x55;
    pub(super) const EXIT: u8 = 0x95;
}

/// One instruction, as the kernel reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

impl Instruction {
    fn new(code: u8, target: u8, source: u8, value: i32) -> Self {
        Self {
            code,
            registers: target | source << 4,
            offset: 0,
            value,
        }
    }

    /// Loads 32 bits from behind a pointer.
    pub(crate) fn load_word(target: u8, pointer: u8, offset: i16) -> Self {
        Self {
            offset,
            ..Self::new(code::LOAD_WORD, target, pointer, 0)
        }
    }

    /// Copies a register.
    pub(crate) fn copy(target: u8, source: u8) -> Self {
        Self::new(code::COPY, target, source, 0)
    }

    /// Sets a register.
    pub(crate) fn set(target: u8, value: i32) -> Self {
        Self::new(code::SET, target, 0, value)
    }

    /// Keeps the bits of a value.
    pub(crate) fn and(target: u8, value: i32) -> Self {
        Self::new(code::AND, target, 0, value)
    }

    /// Shifts to the right.
    pub(crate) fn shift_right(target: u8, bits: i32) -> Self {
        Self::new(code::SHIFT_RIGHT, target, 0, bits)
    }

    /// Jumps when a register has a value.
    pub(crate) fn jump_if_equal(register: u8, value: i32) -> Self {
        Self::new(code::JUMP_IF_EQUAL, register, 0, value)
    }

    /// Jumps when a register has another value.
    pub(crate) fn jump_unless_equal(register: u8, value: i32) -> Self {
        Self::new(code::JUMP_UNLESS_EQUAL, register, 0, value)
    }

    /// Ends the program.
    pub(crate) fn exit() -> Self {
        Self::new(code::EXIT, 0, 0, 0)
    }

    /// Sets how many instructions a jump skips.
    pub(crate) fn set_distance(&mut self, distance: i16) {
        self.offset = distance;
    }
}

/// The part of the kernel's `union bpf_attr` that loading needs.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part that attaching needs.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a program that decides about devices.
///
/// # Errors
/// The kernel's answer: `EPERM` without CAP_BPF, `EINVAL` for a bad program.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        kind: constants::TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes point to the program and to a text that ends with
    // a NUL, both alive through the call; the kernel only reads.
    let fd = unsafe { bpf(constants::PROG_LOAD, &attributes) }?;
    // SAFETY: the kernel opened this descriptor for the call above and nobody
    // else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a cgroup of the v2 tree, for as long as that lives.
///
/// # Errors
/// The kernel's answer.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: constants::ATTACH_CGROUP_DEVICE,
        flags: constants::ALLOW_MULTI,
    };
    // SAFETY: the attributes hold numbers only.
    unsafe { bpf(constants::PROG_ATTACH, &attributes) }.map(drop)
}

/// # Safety
/// `attributes` is what the command reads; pointers in it are valid for that.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<libc::c_int, Errno> {
    // SAFETY: the size is that of what is pointed to; the rest is promised by
    // the caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let result = super::check(result)?;
    libc::c_int::try_from(result).map_err(|_| Errno::INVAL)
}

/// Runs a program as the kernel would. Tests only.
#[cfg(test)]
pub(crate) fn interpret(program: &[Instruction], question: [u32; 3]) -> u64 {
    let mut registers = [0_u64; 11];
    let mut at = 0;
    loop {
        let Instruction {
            code: operation,
            registers: pair,
            offset,
            value,
        } = program[at];
        let (target, source) = (usize::from(pair & 15), usize::from(pair >> 4));
        let wide = i64::from(value).cast_unsigned();
        at += 1;
        match operation {
            code::LOAD_WORD => {
                let word = usize::try_from(offset).unwrap() / 4;
                registers[target] = question[word].into();
            }
            code::AND => registers[target] &= wide,
            code::SHIFT_RIGHT => registers[target] >>= wide,
            code::SET => registers[target] = wide,
            code::COPY => registers[target] = registers[source],
            code::JUMP_IF_EQUAL | code::JUMP_UNLESS_EQUAL => {
                if (registers[target] == wide) == (operation == code::JUMP_IF_EQUAL) {
                    at += usize::try_from(offset).unwrap();
                }
            }
            code::EXIT => return registers[0],
            other => panic!("unknown operation {other:#x}"),
        }
    }
}
