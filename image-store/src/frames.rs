//! The frames of a zstd stream, one after the other.
//!
//! Owns the decoder, and sees each frame's header before the decoder takes the
//! memory that the header asks for; frames of one stream may ask for different
//! windows. Never looks inside of frames. A large window is given back when the
//! next frame can do with less.

use std::io;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer, WriteBuf};

use crate::windows::{Purse, Taken};

/// The largest window that a frame may ask for, as a power of two: a decoder
/// keeps it in memory. What `zstd` writes below its `--ultra` levels needs
/// 8 MiB; builders of images stay below that.
const WINDOW_LOG: u32 = 26;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A decoder that asks before it takes large windows.
pub(crate) struct Frames<'a> {
    decoder: Decoder<'static>,
    /// `None` where one stream is read at a time.
    purse: Option<Purse<'a>>,
    taken: Option<Taken<'a>>,
    /// No frame has begun, or the last one has ended.
    between: bool,
    /// The beginning of a header that comes in pieces.
    head: Vec<u8>,
}

impl<'a> Frames<'a> {
    pub(crate) fn new(purse: Option<Purse<'a>>) -> io::Result<Self> {
        Ok(Self {
            decoder: decoder()?,
            purse,
            taken: None,
            between: true,
            head: Vec::new(),
        })
    }

    /// Makes sure of the memory for a window of so many bytes.
    fn provide(&mut self, window: u64) -> io::Result<()> {
        // The decoder refuses it by itself, and takes nothing.
        let refused = window > 1 << WINDOW_LOG;
        let Some(purse) = self.purse.as_ref().filter(|_| !refused) else {
            return Ok(());
        };
        if let Some(taken) = &self.taken {
            if taken.suits(window) {
                return Ok(());
            }
            // It keeps the largest window that it has had.
            self.decoder = decoder()?;
            self.taken = None;
        }
        self.taken = purse.take(window)?;
        Ok(())
    }

    /// Reads the header that comes next. True when it is there as a whole, and
    /// the decoder may have it: first what is in `head`, if anything.
    fn begin(&mut self, input: &mut InBuffer<'_>) -> io::Result<bool> {
        let rest = &input.src[input.pos..];
        if self.head.is_empty()
            && let Some(window) = window_of(rest)
        {
            self.provide(window)?;
            return Ok(true);
        }
        for byte in rest {
            self.head.push(*byte);
            input.pos += 1;
            if let Some(window) = window_of(&self.head) {
                self.provide(window)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Operation for Frames<'_> {
    fn run<C: WriteBuf + ?Sized>(
        &mut self,
        input: &mut InBuffer<'_>,
        output: &mut OutBuffer<'_, C>,
    ) -> io::Result<usize> {
        if self.between {
            if !self.begin(input)? {
                // More is needed; how much is a hint only.
                return Ok(1);
            }
            self.between = false;
            let head = std::mem::take(&mut self.head);
            let mut first = InBuffer::around(&head);
            while first.pos < head.len() {
                let hint = self.decoder.run(&mut first, output)?;
                self.between = hint == 0;
            }
            if self.between {
                return Ok(0);
            }
        }
        let hint = self.decoder.run(input, output)?;
        self.between = hint == 0;
        Ok(hint)
    }

    fn reinit(&mut self) -> io::Result<()> {
        self.decoder.reinit()
    }

    fn finish<C: WriteBuf + ?Sized>(
        &mut self,
        output: &mut OutBuffer<'_, C>,
        finished_frame: bool,
    ) -> io::Result<usize> {
        self.decoder.finish(output, finished_frame)
    }
}

fn decoder() -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
    Ok(decoder)
}

/// The bytes that a decoder keeps for a frame that begins so (RFC 8878, 3.1.1.1);
/// nothing for what is skipped or no frame. `None` when more of it is needed.
fn window_of(bytes: &[u8]) -> Option<u64> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Some(0);
    }
    let (&flags, rest) = bytes.get(MAGIC.len()..)?.split_first()?;
    let single = flags & 0x20 != 0;
    let (window, rest) = if single {
        (u64::MAX, rest)
    } else {
        let (&byte, rest) = rest.split_first()?;
        let base = 1u64 << (10 + (byte >> 3));
        (base + base / 8 * u64::from(byte & 7), rest)
    };
    let dictionary = [0, 1, 2, 4][usize::from(flags & 3)];
    let (width, offset) = match (flags >> 6, single) {
        (0, false) => return rest.get(..dictionary).map(|_| window),
        (0, true) => (1, 0),
        (1, _) => (2, 256),
        (2, _) => (4, 0),
        _ => (8, 0),
    };
    let size = rest.get(dictionary..dictionary + width)?;
    let size = size.iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b));
    // Where the content is smaller than the window, it needs no more than that.
    Some(window.min(size.saturating_add(offset)))
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use zstd::stream::zio::Reader;

    use super::*;
    use crate::windows::tests::{in_use, layer_of, windows};

    /// A frame of so many equal bytes with a window of two to this power.
    fn frame(log: u8, byte: u8, len: u32) -> Vec<u8> {
        let block = (1 | 1 << 1 | len << 3).to_le_bytes();
        [&MAGIC[..], &[0, (log - 10) << 3], &block[..3], &[byte]].concat()
    }

    const SKIPPED: [u8; 10] = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7];
    const MIB: u64 = 1 << 20;

    #[test]
    fn each_frame_has_the_window_that_its_header_asks_for() {
        let stream = [
            frame(20, b'a', 1000),
            SKIPPED.to_vec(),
            frame(24, b'b', 1000),
            frame(25, b'c', 1000),
            frame(24, b'd', 1000),
            frame(23, b'e', 1000),
            SKIPPED.to_vec(),
        ]
        .concat();
        for piece in [1, 2, 3, 5, 7, 1 << 10] {
            let budget = windows(Duration::from_secs(20));
            let (transfer, stop) = (layer_of("a"), AtomicBool::new(false));
            let purse = Purse {
                windows: &budget,
                transfer: &transfer,
                stop: &stop,
            };
            let source = BufReader::with_capacity(piece, &stream[..]);
            let mut reader = Reader::new(source, Frames::new(Some(purse)).unwrap());
            // A smaller one goes into the larger that is there.
            for (byte, taken) in [(b'a', 0), (b'b', 16), (b'c', 32), (b'd', 32), (b'e', 0)] {
                let mut plain = [0; 1000];
                reader.read_exact(&mut plain).unwrap();
                assert_eq!(plain, [byte; 1000]);
                assert_eq!(in_use(&budget), taken * MIB, "{}", char::from(byte));
            }
            assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
        }
    }

    #[test]
    fn what_the_decoder_refuses_takes_nothing_and_fails() {
        let budget = windows(Duration::from_secs(20));
        let (transfer, stop) = (layer_of("a"), AtomicBool::new(false));
        let good = frame(20, b'a', 10);
        for behind in [
            &frame(27, b'b', 10)[..],
            &frame(26, b'b', 10)[..5],
            b"garbage",
            b"\x28",
        ] {
            let purse = Purse {
                windows: &budget,
                transfer: &transfer,
                stop: &stop,
            };
            let stream = [&good[..], behind].concat();
            let mut reader = Reader::new(&stream[..], Frames::new(Some(purse)).unwrap());
            assert!(reader.read_to_end(&mut Vec::new()).is_err(), "{behind:x?}");
            assert_eq!(in_use(&budget), 0);
        }
    }

    #[test]
    fn headers_of_every_form_tell_what_the_decoder_keeps() {
        let header = |rest: &[u8]| [&MAGIC[..], rest].concat();
        for (rest, want) in [
            // A window alone; with an eighth more; with a dictionary's number.
            (&[0, 16 << 3][..], 64 * MIB),
            (&[0, 10 << 3 | 1], MIB + MIB / 8),
            (&[3, 16 << 3, 1, 2, 3, 4], 64 * MIB),
            // The content is smaller than the window.
            (&[0x40, 16 << 3, 1, 0], 257),
            (&[0x81, 16 << 3, 9, 0, 0, 16, 0], MIB),
            (&[0xc0, 16 << 3, 0, 0, 0, 0, 1, 0, 0, 0], 64 * MIB),
            // The content is the window.
            (&[0x20, 77], 77),
            (&[0xa0, 0, 0, 0, 4], 64 * MIB),
            (&[0xe0, 255, 255, 255, 255, 255, 255, 255, 255], u64::MAX),
        ] {
            let whole = header(rest);
            for n in 0..whole.len() {
                assert_eq!(window_of(&whole[..n]), None, "{rest:x?}");
            }
            assert_eq!(window_of(&whole), Some(want), "{rest:x?}");
            assert_eq!(window_of(&[&whole[..], &[1; 9]].concat()), Some(want));
        }
        assert_eq!(window_of(&SKIPPED[..1]), Some(0));
        assert_eq!(window_of(b"(garbage"), Some(0));
    }
}
