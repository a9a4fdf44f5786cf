//! Sparse files: the maps of GNU tar's old format and of the PAX formats 0.0,
//! 0.1 and 1.0.
//!
//! A map says where the bytes that are stored belong; the rest of the file is a
//! hole. Owns the forms and the check that a map makes sense: parts in order,
//! none over another, all within the file and as many bytes as are stored.

use std::io::Read;

use super::{BLOCK, TarError, TarReader, parse_number, without_nul};

/// Parts of one file. GNU tar writes one for each stretch of data.
const MAX_SEGMENTS: usize = 1 << 18;

/// A part of a file that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

/// What PAX records say of a sparse file.
#[derive(Default)]
pub(super) struct Headers {
    /// The name, where `path` is one that other readers see.
    pub(super) name: Option<Vec<u8>>,
    /// Format 1: the map stands before the bytes.
    in_body: bool,
    size: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
    is_sparse: bool,
}

/// A map as it stands in the archive.
pub(super) struct Map {
    /// Bytes of the file, holes included.
    pub(super) size: u64,
    numbers: Vec<u64>,
}

impl Headers {
    /// Takes the record `GNU.sparse.KEY`; `None` when its value cannot be read.
    pub(super) fn apply(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let number = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        self.is_sparse = true;
        match key {
            b"name" => self.name = Some(without_nul(value)?),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"major" => self.in_body = number()? == 1,
            b"offset" | b"numbytes" => {
                // They come in turn, an offset first.
                let is_offset = self.numbers.len().is_multiple_of(2);
                if is_offset != (key == b"offset") {
                    return None;
                }
                push(&mut self.numbers, number()?)?;
            }
            b"map" => {
                for number in std::str::from_utf8(value).ok()?.split(',') {
                    push(&mut self.numbers, number.parse().ok()?)?;
                }
            }
            // The number of parts and the minor version say nothing more.
            _ => {}
        }
        Some(())
    }
}

fn push(numbers: &mut Vec<u64>, number: u64) -> Option<()> {
    if numbers.len() >= 2 * MAX_SEGMENTS {
        return None;
    }
    numbers.push(number);
    Some(())
}

impl Map {
    /// The parts, when they make sense and are `stored` bytes together.
    pub(super) fn segments(&self, stored: u64) -> Option<Vec<Segment>> {
        let mut out = Vec::with_capacity(self.numbers.len() / 2);
        let (mut end, mut sum) = (0u64, 0u64);
        let pairs = self.numbers.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return None;
        }
        for pair in pairs {
            let (offset, len) = (pair[0], pair[1]);
            if offset < end {
                return None;
            }
            end = offset.checked_add(len).filter(|end| *end <= self.size)?;
            sum += len;
            if len > 0 {
                out.push(Segment { offset, len });
            }
        }
        (sum == stored).then_some(out)
    }
}

impl<R: Read> TarReader<R> {
    /// The map of an old GNU header, and of the blocks that carry it on.
    pub(super) fn gnu_map(&mut self, block: &[u8; BLOCK]) -> Result<Map, TarError> {
        let size = parse_number(&block[483..495]).and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or_else(|| self.bad("bad size of a sparse file"))?;
        let mut numbers = Vec::new();
        let mut more = self.gnu_pairs(&block[386..482], block[482], &mut numbers)?;
        while more {
            let mut next = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                let n = self.read_some(&mut next[filled..])?;
                if n == 0 {
                    return Err(TarError::Truncated {
                        name: self.current.clone(),
                    });
                }
                filled += n;
            }
            more = self.gnu_pairs(&next[..504], next[504], &mut numbers)?;
            // A chain of blocks with nothing in them would have no end.
            self.headers += 1;
            if self.headers > self.max_headers {
                return Err(self.bad("too many maps of sparse files"));
            }
        }
        Ok(Map { size, numbers })
    }

    /// Takes pairs of 12-byte fields, up to one that is not filled in.
    fn gnu_pairs(&self, fields: &[u8], more: u8, numbers: &mut Vec<u64>) -> Result<bool, TarError> {
        let bad = || self.bad("bad map of a sparse file");
        for field in fields.chunks_exact(12) {
            if field[0] == 0 {
                break;
            }
            let number = parse_number(field).and_then(|n| u64::try_from(n).ok());
            push(numbers, number.ok_or_else(bad)?).ok_or_else(bad)?;
        }
        Ok(more != 0)
    }

    /// The map that PAX records give, or say to be in the body. The body has
    /// begun.
    pub(super) fn pax_map(&mut self, said: Headers) -> Result<Option<Map>, TarError> {
        if !said.is_sparse {
            return Ok(None);
        }
        let size = said
            .size
            .ok_or_else(|| self.bad("a sparse file without its size"))?;
        let numbers = if said.in_body {
            self.map_in_body()?
        } else {
            said.numbers
        };
        Ok(Some(Map { size, numbers }))
    }

    /// Decimal numbers, one a line, the first the number of parts; up to the end
    /// of a block.
    fn map_in_body(&mut self) -> Result<Vec<u64>, TarError> {
        let bad = |this: &Self| this.bad("bad map of a sparse file");
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut number: Option<u64> = None;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0; BLOCK];
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_body(&mut block[filled..])? {
                    0 => return Err(bad(self)),
                    n => filled += n,
                }
            }
            for &byte in &block {
                if wanted.is_some_and(|wanted| numbers.len() == wanted) {
                    break;
                }
                match (byte, number) {
                    (b'0'..=b'9', so_far) => {
                        let grown = so_far.unwrap_or(0).checked_mul(10);
                        let grown = grown.and_then(|n| n.checked_add((byte - b'0').into()));
                        number = Some(grown.ok_or_else(|| bad(self))?);
                    }
                    (b'\n', Some(done)) => {
                        number = None;
                        if wanted.is_some() {
                            numbers.push(done);
                        } else if done <= MAX_SEGMENTS as u64 {
                            wanted = usize::try_from(done * 2).ok();
                        } else {
                            return Err(bad(self));
                        }
                    }
                    _ => return Err(bad(self)),
                }
            }
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(size: u64, numbers: &[u64]) -> Map {
        Map {
            size,
            numbers: numbers.to_vec(),
        }
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        assert_eq!(map(10, &[0, 2, 4, 2, 10, 0]).segments(4).unwrap().len(), 2);
        assert_eq!(map(1 << 40, &[]).segments(0).unwrap(), []);
        for (size, numbers, stored) in [
            (10, &[4, 2, 0, 2][..], 4),
            (10, &[0, 5, 4, 2], 7),
            (10, &[8, 3], 3),
            (10, &[0, 2], 3),
            (10, &[0, 2, 3], 2),
            (10, &[u64::MAX, 2], 2),
        ] {
            assert_eq!(map(size, numbers).segments(stored), None, "{numbers:?}");
        }
    }

    proptest! {
        #[test]
        fn records_of_any_kind_never_panic(
            records in prop::collection::vec(
                ("(name|size|realsize|major|offset|numbytes|map|x)", "[0-9,a]{0,30}"), 0..12),
            body in prop::collection::vec(any::<u8>(), 0..1200),
        ) {
            let mut said = Headers::default();
            for (key, value) in records {
                if said.apply(key.as_bytes(), value.as_bytes()).is_none() {
                    return Ok(());
                }
            }
            let mut reader = TarReader::new(&body[..], 10);
            reader.begin_body(body.len() as u64);
            if let Ok(Some(map)) = reader.pax_map(said) {
                drop(map.segments(reader.body));
            }
        }
    }
}
