//! Classic BPF as seccomp uses it.

use super::compile::INSTRUCTION;

// linux/bpf_common.h: load a word of the input, and, jump, return.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_AT_LEAST: u16 = 0x35;
pub(super) const JUMP_SET: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;
/// Offsets in the kernel's `struct seccomp_data`; what follows is the call's.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCH: u32 = 4;
/// The bit that tells x32 calls from x86-64 ones, which share one token.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// The kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) op: u16,
    /// How many are stepped over where the comparison holds.
    pub(super) if_true: u8,
    /// And where it does not.
    pub(super) if_false: u8,
    pub(super) value: u32,
}

impl Instruction {
    pub(super) fn new(op: u16, if_true: u8, if_false: u8, value: u32) -> Self {
        Self {
            op,
            if_true,
            if_false,
            value,
        }
    }
}

/// Classic BPF under construction.
#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) code: Vec<Instruction>,
}

impl Program {
    /// Reads an array of `struct sock_filter`; what is cut off at its end is left out.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let (all, _) = bytes.as_chunks::<INSTRUCTION>();
        let code = all
            .iter()
            .map(|&[a, b, if_true, if_false, k0, k1, k2, k3]| {
                let op = u16::from_ne_bytes([a, b]);
                let value = u32::from_ne_bytes([k0, k1, k2, k3]);
                Instruction::new(op, if_true, if_false, value)
            });
        Self {
            code: code.collect(),
        }
    }

    pub(super) fn push(&mut self, op: u16, if_true: u8, if_false: u8, value: u32) {
        self.code
            .push(Instruction::new(op, if_true, if_false, value));
    }

    /// As an array of `struct sock_filter`.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.code.len() * INSTRUCTION);
        for one in &self.code {
            bytes.extend_from_slice(&one.op.to_ne_bytes());
            bytes.extend_from_slice(&[one.if_true, one.if_false]);
            bytes.extend_from_slice(&one.value.to_ne_bytes());
        }
        bytes
    }
}
