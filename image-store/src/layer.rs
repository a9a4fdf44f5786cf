//! One layer's way from bytes to files: digest, decompress, DiffID, unpack.
//!
//! Owns the chain of readers and the checks at its end. Works on one blocking
//! thread and knows neither where the bytes come from nor where the directory
//! will live. Nothing is trusted before both digests are verified; on any
//! failure the caller throws the directory away.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;

use flate2::bufread::MultiGzDecoder;

use crate::digest::{DiffId, Digest, Hasher, HashingReader, LayerDigest};
use crate::unpack::{Limits, Occupied, UnpackError, unpack};

const BUFFER: usize = 128 * 1024;

/// What a layer has to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// The digest of the plain tar.
    pub diff_id: DiffId,
    /// The digest of the bytes as they come, where it is known.
    pub blob: Option<LayerDigest>,
    /// The number of bytes as they come, where it is declared.
    pub size: Option<u64>,
}

/// Why a layer was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    /// The bytes are not those asked for.
    #[error("the layer {want} arrived as {got}")]
    Digest {
        /// Asked for.
        want: LayerDigest,
        /// What came.
        got: Digest,
    },
    /// More or fewer bytes than declared.
    #[error("the layer {digest} has {got} bytes and not {declared}")]
    Size {
        /// The layer.
        digest: LayerDigest,
        /// As declared.
        declared: u64,
        /// What came.
        got: u64,
    },
    /// The plain tar is not the one that the configuration names.
    #[error("the layer {want} unpacked to {got}")]
    DiffId {
        /// Asked for.
        want: DiffId,
        /// What came.
        got: DiffId,
    },
    /// Compressed in a way that layers must not be.
    #[error("compressed with {name}")]
    Compression {
        /// The method.
        name: &'static str,
    },
    /// Decompression failed.
    #[error("decompress the layer")]
    Decompress(#[source] io::Error),
    /// The bytes stopped coming.
    #[error("read the layer")]
    Source(#[source] io::Error),
    /// The archive was refused or could not be written.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// Reads a layer from `source` and unpacks it into the open directory `dir`.
pub(crate) fn receive<R: Read>(
    source: R,
    wanted: &Wanted,
    dir: OwnedFd,
    limits: &Limits,
) -> Result<Occupied, LayerError> {
    let mut metered = Metered::new(source, wanted.size);
    let result = decode_and_unpack(&mut metered, wanted, dir, limits);
    if let Some(error) = metered.failure.take() {
        return Err(LayerError::Source(error));
    }
    if matches!(result, Err(LayerError::Unpack(UnpackError::Io { .. }))) {
        return result;
    }
    // Damage on the way shows up as nonsense further down. Read to the end to
    // tell it from an image that is broken (or hostile) at its origin.
    if io::copy(&mut metered, &mut io::sink()).is_err()
        && let Some(error) = metered.failure.take()
    {
        return Err(LayerError::Source(error));
    }
    metered.check(wanted)?;
    result
}

fn decode_and_unpack<R: Read>(
    metered: &mut Metered<R>,
    wanted: &Wanted,
    dir: OwnedFd,
    limits: &Limits,
) -> Result<Occupied, LayerError> {
    let decoder = Decoder::new(BufReader::with_capacity(BUFFER, metered))?;
    let mut plain = HashingReader::new(decoder);
    let unpacked = unpack(&mut plain, dir, limits);
    if let Some(error) = plain.get_mut().failure.take() {
        return Err(LayerError::Decompress(error));
    }
    let occupied = unpacked?;
    let (digest, _) = plain.drain().map_err(LayerError::Decompress)?;
    let got = DiffId(digest);
    if got != wanted.diff_id {
        return Err(LayerError::DiffId {
            want: wanted.diff_id,
            got,
        });
    }
    Ok(occupied)
}

/// Counts and hashes the bytes as they come, and stops at the declared size.
struct Metered<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
    declared: Option<u64>,
    too_long: bool,
    failure: Option<io::Error>,
}

impl<R: Read> Metered<R> {
    fn new(inner: R, declared: Option<u64>) -> Self {
        let hasher = Hasher::default();
        Self {
            inner,
            hasher,
            count: 0,
            declared,
            too_long: false,
            failure: None,
        }
    }

    fn check(&self, wanted: &Wanted) -> Result<(), LayerError> {
        let got = self.hasher.clone().finish();
        if let (Some(declared), Some(digest)) = (self.declared, wanted.blob)
            && (self.too_long || self.count != declared)
        {
            return Err(LayerError::Size {
                digest,
                declared,
                got: self.count,
            });
        }
        match wanted.blob {
            Some(want) if want.0 != got => Err(LayerError::Digest { want, got }),
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.too_long || buf.is_empty() {
            return Ok(0);
        }
        let n = match self.inner.read(buf) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                self.failure = Some(e);
                return Err(io::Error::other("the layer's bytes stopped coming"));
            }
        };
        self.hasher.update(&buf[..n]);
        self.count += n as u64;
        if self.declared.is_some_and(|declared| self.count > declared) {
            self.too_long = true;
            return Ok(0);
        }
        Ok(n)
    }
}

/// A decoder chosen by the first bytes: media types are often wrong.
struct Decoder<R: BufRead> {
    kind: Kind<R>,
    failure: Option<io::Error>,
}

enum Kind<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::Decoder<'static, R>),
}

impl<R: BufRead> Decoder<R> {
    fn new(mut inner: R) -> Result<Self, LayerError> {
        let head = inner.fill_buf().map_err(LayerError::Decompress)?;
        let kind = if head.starts_with(&[0x1f, 0x8b]) {
            Kind::Gzip(Box::new(MultiGzDecoder::new(inner)))
        } else if is_zstd(head) {
            Kind::Zstd(zstd::Decoder::with_buffer(inner).map_err(LayerError::Decompress)?)
        } else if head.starts_with(b"BZh") {
            return Err(LayerError::Compression { name: "bzip2" });
        } else if head.starts_with(b"\xfd7zXZ") {
            return Err(LayerError::Compression { name: "xz" });
        } else {
            Kind::Plain(inner)
        };
        Ok(Self {
            kind,
            failure: None,
        })
    }
}

/// A zstd frame, or one of those frames that a decoder skips.
fn is_zstd(head: &[u8]) -> bool {
    head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18]
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.kind {
            Kind::Plain(r) => r.read(buf),
            Kind::Gzip(r) => r.read(buf),
            Kind::Zstd(r) => r.read(buf),
        };
        read.map_err(|e| {
            if e.kind() == io::ErrorKind::Interrupted {
                return e;
            }
            let kind = e.kind();
            self.failure = Some(e);
            io::Error::new(kind, "decompression failed")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn archive() -> Vec<u8> {
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(5);
        h.set_mode(0o644);
        b.append_data(&mut h, "dir/file", &b"hello"[..]).unwrap();
        b.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    fn wanted(blob: &[u8], plain: &[u8]) -> Wanted {
        Wanted {
            diff_id: DiffId(Digest::of(plain)),
            blob: Some(LayerDigest(Digest::of(blob))),
            size: Some(blob.len() as u64),
        }
    }

    fn run(bytes: &[u8], wanted: &Wanted) -> (tempfile::TempDir, Result<Occupied, LayerError>) {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let result = receive(bytes, wanted, fd, &Limits::default());
        (dir, result)
    }

    #[test]
    fn every_compression_gives_the_same_files() {
        let plain = archive();
        let (front, back) = plain.split_at(700);
        let members = [gzip(front), gzip(back)].concat();
        let frames = [
            zstd::encode_all(front, 1).unwrap(),
            zstd::encode_all(back, 1).unwrap(),
        ]
        .concat();
        for blob in [plain.clone(), gzip(&plain), members, frames] {
            let (dir, result) = run(&blob, &wanted(&blob, &plain));
            assert_eq!(result.unwrap().inodes, 3);
            assert_eq!(
                std::fs::read(dir.path().join("dir/file")).unwrap(),
                b"hello"
            );
        }
    }

    #[test]
    fn flipped_bit_is_a_wrong_digest_and_no_format_error() {
        let plain = archive();
        let blob = gzip(&plain);
        for at in [0, 20, blob.len() - 6] {
            let mut bad = blob.clone();
            bad[at] ^= 0x10;
            let (_dir, result) = run(&bad, &wanted(&blob, &plain));
            assert!(
                matches!(result, Err(LayerError::Digest { .. })),
                "{at}: {result:?}"
            );
        }
    }

    #[test]
    fn other_plain_tar_is_a_wrong_diff_id() {
        let plain = archive();
        let blob = gzip(&plain);
        let mut want = wanted(&blob, &plain);
        want.diff_id = DiffId(Digest::of(b"other"));
        assert!(matches!(
            run(&blob, &want).1,
            Err(LayerError::DiffId { .. })
        ));
    }

    #[test]
    fn lying_size_is_refused_both_ways() {
        let plain = archive();
        let blob = gzip(&plain);
        for size in [blob.len() as u64 - 1, blob.len() as u64 + 1] {
            let want = Wanted {
                size: Some(size),
                ..wanted(&blob, &plain)
            };
            assert!(
                matches!(run(&blob, &want).1, Err(LayerError::Size { .. })),
                "{size}"
            );
        }
    }

    #[test]
    fn bytes_that_stop_coming_are_the_sources_fault() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from(io::ErrorKind::ConnectionReset))
            }
        }
        let plain = archive();
        let blob = gzip(&plain);
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let source = (&blob[..30]).chain(Broken);
        let result = receive(source, &wanted(&blob, &plain), fd, &Limits::default());
        assert!(
            matches!(result, Err(LayerError::Source(e)) if e.kind() == io::ErrorKind::ConnectionReset)
        );
    }

    #[test]
    fn garbage_behind_the_end_mark_counts_for_the_diff_id() {
        let mut plain = archive();
        plain.extend_from_slice(&[7; 3000]);
        let blob = gzip(&plain);
        assert!(run(&blob, &wanted(&blob, &plain)).1.is_ok());
    }

    #[test]
    fn bzip2_and_xz_are_refused_by_name() {
        for (head, name) in [(&b"BZh9....."[..], "bzip2"), (&b"\xfd7zXZ\0..."[..], "xz")] {
            match run(head, &wanted(head, b"")).1 {
                Err(LayerError::Compression { name: got }) => assert_eq!(got, name),
                other => panic!("{other:?}"),
            }
        }
    }
}
