//! Building one netlink message.
//!
//! Owns lengths and padding; what the numbers mean is the caller's.

/// Flags of a message (`linux/netlink.h`).
pub mod flag {
    /// Every request has it; [`super::Message::new`] sets it.
    pub const REQUEST: u16 = 0x1;
    /// The kernel answers even if nothing is wrong; the socket sets it.
    pub const ACK: u16 = 0x4;
    /// The kernel answers with what it made.
    pub const ECHO: u16 = 0x8;
    /// All objects, not one; the socket sets it.
    pub const DUMP: u16 = 0x300;
    /// Of a NEW request: replace what is there.
    pub const REPLACE: u16 = 0x100;
    /// Of a NEW request: fail if it is there.
    pub const EXCL: u16 = 0x200;
    /// Of a NEW request: make it if it is not there.
    pub const CREATE: u16 = 0x400;
    /// Of a NEW request: at the end of a list.
    pub const APPEND: u16 = 0x800;
}

const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;

/// One request: header, the fixed part of its kind, attributes.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    what: &'static str,
}

impl Message {
    /// Begins a request. `what` names it in errors ("add a route").
    pub fn new(what: &'static str, kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]); // length, set in the end
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]); // sequence and port
        Self { bytes, what }
    }

    /// What the message asks for.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Appends raw bytes, such as the fixed part after the header; padded.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.begin(kind, ATTRIBUTE + value.len());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends an attribute of one byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.attribute(kind, &[value])
    }

    /// Appends a number in the machine's order.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a number in the machine's order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a number in the machine's order.
    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a number in network order.
    pub fn be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends a number in network order.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends a number in network order.
    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// Appends a text with the zero byte at its end.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.begin(kind, ATTRIBUTE + value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
        self
    }

    /// Appends an attribute made of attributes.
    pub fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.nested_plain(kind | NESTED, inside)
    }

    /// Like [`Message::nested`], without the flag: for attributes that begin
    /// with a fixed part, and for old ones that never had it.
    pub fn nested_plain(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.begin(kind, 0);
        inside(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Adds flags.
    pub fn flags(&mut self, flags: u16) {
        let now = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&now.to_ne_bytes());
    }

    /// The finished message; of an attribute too long for its length field,
    /// the kernel would see garbage, so `None` then.
    pub(super) fn finish(&mut self, sequence: u32) -> Option<&[u8]> {
        // An attribute's length has 16 bits, and none is longer than all of them.
        if self.bytes.len() > usize::from(u16::MAX) {
            return None;
        }
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        debug_assert!(self.bytes.len() >= HEADER);
        Some(&self.bytes)
    }

    fn begin(&mut self, kind: u16, length: usize) {
        self.bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }
}

/// Messages and attributes begin at multiples of four.
pub(super) fn aligned(length: usize) -> usize {
    (length + 3) & !3
}
