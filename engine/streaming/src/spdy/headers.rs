//! The header blocks of frames.
//!
//! Owns the connection's inflater: blocks are one zlib stream, so each must be
//! inflated, also that of a stream which is then refused. A block inflates to
//! at most [`BLOCK`] bytes; a broken one ends the connection, as nothing after
//! it can be read.

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// What one block may inflate to.
pub(crate) const BLOCK: usize = 64 * 1024;

/// The names and values of a stream, at most [`BLOCK`] bytes of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(Vec<u8>, Vec<u8>)>);

impl Headers {
    /// The value of a name in lower case; the first where SPDY joined several
    /// by zero bytes; `None` also for one that is not UTF-8.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .0
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))?;
        let first = value.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(first).ok()
    }
}

/// Why a block cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadersError {
    /// Not zlib, or not against SPDY's dictionary.
    #[error("inflate a header block")]
    Inflate(#[source] flate2::DecompressError),
    /// The zlib stream ended or stopped inside a block.
    #[error("a header block is not whole")]
    Cut,
    /// More than [`BLOCK`].
    #[error("a header block inflates to more than {BLOCK} bytes")]
    Large,
    /// Lengths that do not add up.
    #[error("a header block is malformed")]
    Malformed,
}

/// Reads the blocks of one connection.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of the next block.
    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Headers, HeadersError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeadersError> {
        let mut text = Vec::new();
        let mut space = [0; 4096];
        loop {
            let (taken, given) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut space, FlushDecompress::Sync);
            let taken = advanced(taken, self.0.total_in());
            let given = advanced(given, self.0.total_out());
            block = block.get(taken..).unwrap_or_default();
            text.extend_from_slice(space.get(..given).unwrap_or_default());
            if text.len() > BLOCK {
                return Err(HeadersError::Large);
            }
            match result {
                Ok(Status::StreamEnd) => return Err(HeadersError::Cut),
                Ok(Status::Ok | Status::BufError) => {
                    // A full space may hide more.
                    if block.is_empty() && given < space.len() {
                        return Ok(text);
                    }
                    if taken == 0 && given == 0 {
                        return Err(HeadersError::Cut);
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(HeadersError::Inflate)?;
                }
                Err(error) => return Err(HeadersError::Inflate(error)),
            }
        }
    }
}

fn advanced(before: u64, after: u64) -> usize {
    usize::try_from(after - before).unwrap_or(usize::MAX)
}

/// Takes the pairs of a block apart: a count, then each name and value behind
/// its length.
fn parse(text: &[u8]) -> Result<Headers, HeadersError> {
    fn number(text: &mut &[u8]) -> Option<usize> {
        let (number, rest) = text.split_first_chunk()?;
        *text = rest;
        usize::try_from(u32::from_be_bytes(*number)).ok()
    }
    fn string(text: &mut &[u8]) -> Option<Vec<u8>> {
        let length = number(text)?;
        let (string, rest) = text.split_at_checked(length)?;
        *text = rest;
        Some(string.to_vec())
    }
    fn pairs(mut text: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let count = number(&mut text)?;
        // Each pair takes 8 bytes at least, so a lie ends with the text.
        let mut pairs = Vec::new();
        for _ in 0..count {
            pairs.push((string(&mut text)?, string(&mut text)?));
        }
        text.is_empty().then_some(pairs)
    }
    pairs(text).map(Headers).ok_or(HeadersError::Malformed)
}

/// Writes the empty blocks of replies.
///
/// As stored blocks of a zlib stream without dictionary, which every inflater
/// takes: a deflater would keep 256 KiB a connection for the sake of four
/// zero bytes.
#[derive(Debug, Default)]
pub(crate) struct EmptyBlocks {
    begun: bool,
}

impl EmptyBlocks {
    /// The next block.
    pub(crate) fn next(&mut self) -> Bytes {
        let mut block = BytesMut::with_capacity(16);
        if !self.begun {
            self.begun = true;
            // Deflate with a window of 32 KiB, and the check of both bytes.
            block.put_slice(&[0x78, 0x01]);
        }
        // Stored, not the last, four bytes and their complement; then a count
        // of no headers.
        block.put_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        // Stored and empty, as a flush ends: Go's inflater gives nothing out
        // before it has seen one.
        block.put_slice(&[0, 0, 0, 0xff, 0xff]);
        block.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Deflater;
    use super::*;

    #[test]
    fn blocks_of_one_stream_are_read_in_turn() {
        let mut deflater = Deflater::new();
        let mut inflater = Inflater::new();
        for stream in ["stdin", "stdout", "error"] {
            let block = deflater.block(&[("streamtype", stream), ("port", "80")]);
            let headers = inflater.read(&block).unwrap();
            assert_eq!(headers.get("streamtype"), Some(stream));
            assert_eq!(headers.get("requestid"), None);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let mut deflater = Deflater::new();
        let block = deflater.block(&[("streamtype", &"0".repeat(BLOCK))]);
        assert!(block.len() < 1024);
        assert!(matches!(
            Inflater::new().read(&block),
            Err(HeadersError::Large)
        ));
    }

    #[test]
    fn empty_blocks_are_read_by_an_inflater() {
        let (mut blocks, mut inflater) = (EmptyBlocks::default(), Inflater::new());
        for _ in 0..3 {
            assert_eq!(inflater.read(&blocks.next()).unwrap(), Headers::default());
        }
    }

    #[test]
    fn empty_blocks_end_as_a_flush_does() {
        let mut blocks = EmptyBlocks::default();
        for _ in 0..2 {
            assert!(blocks.next().ends_with(&[0, 0, 0, 0xff, 0xff]));
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for text in [&[0, 0, 0, 1][..], &[0xff; 8], &[0, 0, 0, 0, 0], &[0; 3]] {
            assert!(
                matches!(parse(text), Err(HeadersError::Malformed)),
                "{text:?}"
            );
        }
    }
}
