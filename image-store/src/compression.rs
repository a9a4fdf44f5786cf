//! How a stream is compressed, told by its first bytes: media types are often
//! wrong.
//!
//! Owns the magic numbers, for layers and for archives that are imported, and
//! the decoders; their bounds are in `frames` and `windows`. A stream is judged by as many bytes as the
//! longest magic number needs, however few of them come at a time. Never looks
//! at what is inside.

use std::io::{self, BufRead, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::zio;

use crate::frames::Frames;
use crate::windows::Purse;

/// Bytes that tell all the formats apart.
const HEAD: usize = 10;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    None,
    Gzip,
    Zstd,
    /// In a way that is known and that layers must not be compressed with.
    Refused(&'static str),
}

/// A stream whose first bytes were looked at.
pub(crate) type Sniffed<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// Looks at the first bytes; the stream that is returned has them again.
pub(crate) fn sniff<R: Read>(mut stream: R) -> io::Result<(Compression, Sniffed<R>)> {
    let mut head = Vec::with_capacity(HEAD);
    (&mut stream).take(HEAD as u64).read_to_end(&mut head)?;
    Ok((Compression::of(&head), Cursor::new(head).chain(stream)))
}

impl Compression {
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one of those frames that a decoder skips.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            // Three letters alone may begin the name of an archive's first file.
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
            ] => Self::Refused("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Refused("xz"),
            _ => Self::None,
        }
    }
}

/// The plain bytes of a stream.
pub(crate) enum Decoder<'a, R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<zio::Reader<R, Frames<'a>>>),
}

impl<'a, R: BufRead> Decoder<'a, R> {
    /// Decodes what [`sniff`] found; bytes of a refused form come as they are.
    /// Memory for large windows is had from the purse, if there is one.
    pub(crate) fn new(
        compression: Compression,
        inner: R,
        purse: Option<Purse<'a>>,
    ) -> io::Result<Self> {
        Ok(match compression {
            Compression::None | Compression::Refused(_) => Self::Plain(inner),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(inner))),
            Compression::Zstd => Self::Zstd(Box::new(zio::Reader::new(inner, Frames::new(purse)?))),
        })
    }
}

impl<R: BufRead> Read for Decoder<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(r) => r.read(buf),
            Self::Gzip(r) => r.read(buf),
            Self::Zstd(r) => r.read(buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_magic_number_is_known_and_no_file_name_passes_for_one() {
        for (head, want) in [
            (&b"\x1f\x8b\x08"[..], Compression::Gzip),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x5a\x2a\x4d\x18", Compression::Zstd),
            (b"BZh91AY&SY", Compression::Refused("bzip2")),
            (b"\xfd7zXZ\0", Compression::Refused("xz")),
            (b"BZh-notes.txt", Compression::None),
            (b"Z*M", Compression::None),
            (b"", Compression::None),
        ] {
            assert_eq!(sniff(head).unwrap().0, want, "{head:x?}");
        }
    }
}
