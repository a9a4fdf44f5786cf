//! The client's half of the framing, for tests.

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};

use super::dictionary::DICTIONARY;
use super::frame;

/// Deflates header blocks as the Go client does.
pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&DICTIONARY).unwrap();
        Self(compress)
    }

    pub(crate) fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut text = Vec::new();
        text.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for part in [name, value] {
                text.put_u32(part.len() as u32);
                text.put_slice(part.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(text.len() + 1024);
        self.0
            .compress_vec(&text, &mut block, FlushCompress::Sync)
            .unwrap();
        assert!(block.len() < block.capacity());
        block
    }
}

/// Frames of a client, one after the other.
pub(crate) struct Encoding {
    deflater: Deflater,
    bytes: BytesMut,
}

impl Encoding {
    pub(crate) fn new() -> Self {
        Self {
            deflater: Deflater::new(),
            bytes: BytesMut::new(),
        }
    }

    pub(crate) fn take(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }

    pub(crate) fn open(&mut self, id: u32, headers: &[(&str, &str)], fin: bool) {
        let block = self.deflater.block(headers);
        self.bytes.put_slice(&[0x80, 3, 0, 1]);
        self.bytes
            .put_u32(u32::from(fin) << 24 | (10 + block.len() as u32));
        self.bytes.put_u32(id);
        self.bytes.put_u32(0);
        self.bytes.put_u16(0);
        self.bytes.put_slice(&block);
    }

    pub(crate) fn data(&mut self, id: u32, bytes: &[u8], fin: bool) {
        frame::data(id, bytes, fin, &mut self.bytes);
    }

    pub(crate) fn ping(&mut self, id: u32) {
        frame::ping(id, &mut self.bytes);
    }

    pub(crate) fn reset(&mut self, id: u32) {
        frame::reset(id, 5, &mut self.bytes);
    }

    pub(crate) fn leave(&mut self) {
        frame::leave(0, &mut self.bytes);
    }
}
