//! One layer's way from bytes to files: digest, decompress, DiffID, unpack.
//!
//! Owns the chain of readers and the checks at its end. Works on one blocking
//! thread and knows neither where the bytes come from nor where the directory
//! will live. Nothing is trusted before both digests are verified; on any
//! failure the caller throws the directory away.

use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};

use crate::compression::{self, Compression, Decoder};
use crate::digest::{DiffId, Digest, Hasher, HashingReader, LayerDigest};
use crate::places::Transfer;
use crate::tar::TarError;
use crate::unpack::{Limits, UnpackError, Unpacked, unpack};
use crate::windows::{Purse, WindowError, Windows};

const BUFFER: usize = 128 * 1024;
/// Layers from this size on are decompressed beside making their files.
const WORTH_A_THREAD: u64 = 1 << 20;
/// One piece between the two threads, small enough for malloc's fast path.
const PIECE: usize = 64 * 1024;
const PIECES: usize = 16;

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
    /// The memory for decompressing it did not become free.
    #[error("decompress the layer")]
    Window(#[source] WindowError),
    /// The bytes stopped coming.
    #[error("read the layer")]
    Source(#[source] io::Error),
    /// The archive was refused or could not be written.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// How a layer is received.
pub(crate) struct Receiving<'a> {
    /// What it may hold.
    pub(crate) limits: &'a Limits,
    /// Set when nobody wants it any more.
    pub(crate) stop: &'a AtomicBool,
    /// Where the memory for large windows comes from, and on whose account;
    /// `None` where one layer is received at a time.
    pub(crate) budget: Option<(&'a Windows, &'a Arc<Transfer>)>,
}

/// Reads a layer from `source` and unpacks it into the open directory `dir`.
pub(crate) fn receive<R: Read + Send>(
    source: R,
    wanted: &Wanted,
    dir: OwnedFd,
    how: &Receiving<'_>,
) -> Result<Unpacked, LayerError> {
    let mut metered = Metered::new(source, wanted.size);
    let result = decode_and_unpack(&mut metered, wanted, dir, how);
    if let Some(error) = metered.failure.take() {
        return Err(LayerError::Source(error));
    }
    // Neither is a matter of the bytes.
    if matches!(
        result,
        Err(LayerError::Unpack(UnpackError::Io { .. }) | LayerError::Window(_))
    ) {
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

fn decode_and_unpack<R: Read + Send>(
    metered: &mut Metered<R>,
    wanted: &Wanted,
    dir: OwnedFd,
    how: &Receiving<'_>,
) -> Result<Unpacked, LayerError> {
    let (compression, source) = compression::sniff(metered).map_err(LayerError::Decompress)?;
    if let Compression::Refused(name) = compression {
        return Err(LayerError::Compression { name });
    }
    let purse = how.budget.map(|(windows, transfer)| Purse {
        windows,
        transfer,
        stop: how.stop,
    });
    let source = BufReader::with_capacity(BUFFER, source);
    let decoder = Decoder::new(compression, source, purse).map_err(LayerError::Decompress)?;
    let plain = HashingReader::new(Watched {
        inner: decoder,
        stop: how.stop,
    });
    let (unpacked, hashed) = if wanted.size.is_none_or(|size| size >= WORTH_A_THREAD) {
        side_by_side(plain, dir, how.limits)
    } else {
        one_after_the_other(plain, dir, how.limits)
    };
    // Where decompression fails, the archive ends early: name the cause.
    let got = hashed.transpose().map_err(undecoded)?.map(DiffId);
    let unpacked = unpacked?;
    match got {
        Some(got) if got == wanted.diff_id => Ok(unpacked),
        Some(got) => Err(LayerError::DiffId {
            want: wanted.diff_id,
            got,
        }),
        None => Err(LayerError::Source(io::Error::from(
            io::ErrorKind::BrokenPipe,
        ))),
    }
}

fn undecoded(error: io::Error) -> LayerError {
    match error.downcast() {
        Ok(no_window) => LayerError::Window(no_window),
        Err(error) => LayerError::Decompress(error),
    }
}

/// What unpacking gave; and the digest of the plain archive, the failure of
/// reading it, or nothing when it was not read to its end.
type Halves = (Result<Unpacked, UnpackError>, Option<io::Result<Digest>>);

/// Bytes that may follow the end of the archive: writers fill a last block. What is more
/// keeps a processor and a place busy with nothing.
const AFTER_END: u64 = 16 << 20;

fn too_much_follows() -> io::Error {
    let text = format!("more than {AFTER_END} bytes follow the end of the archive");
    io::Error::other(text)
}

/// The digest of the plain archive, with what follows its end.
fn drained<R: Read>(mut plain: HashingReader<R>) -> io::Result<Digest> {
    let mut rest = plain.by_ref().take(AFTER_END + 1);
    if io::copy(&mut rest, &mut io::sink())? > AFTER_END {
        return Err(too_much_follows());
    }
    plain.drain().map(|(digest, _)| digest)
}

fn one_after_the_other<R: Read>(
    mut plain: HashingReader<R>,
    dir: OwnedFd,
    limits: &Limits,
) -> Halves {
    match unpack(&mut plain, dir, limits) {
        Ok(unpacked) => (Ok(unpacked), Some(drained(plain))),
        Err(UnpackError::Tar(TarError::Read(error))) => {
            let ended = TarError::Truncated {
                name: b"the archive".to_vec(),
            };
            (Err(UnpackError::Tar(ended)), Some(Err(error)))
        }
        Err(error) => (Err(error), None),
    }
}

/// Decompresses and hashes on a thread of its own while this one makes files:
/// for a single big layer these are the two halves of the work.
fn side_by_side<R: Read + Send>(plain: HashingReader<R>, dir: OwnedFd, limits: &Limits) -> Halves {
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(PIECES);
        let decoding = scope.spawn(move || decode(plain, &sender));
        let mut pieces = Pieces {
            receiver,
            piece: Vec::new(),
            at: 0,
        };
        let unpacked = unpack(&mut pieces, dir, limits);
        let mut rest = 0;
        if unpacked.is_ok() {
            // What follows the end mark counts for the digest.
            while rest <= AFTER_END
                && let Ok(piece) = pieces.receiver.recv()
            {
                rest += piece.len() as u64;
            }
        }
        drop(pieces);
        match decoding.join() {
            Ok(_) if rest > AFTER_END => (unpacked, Some(Err(too_much_follows()))),
            Ok(hashed) => (unpacked, hashed),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Sends the plain archive piece by piece; nothing when the taker is gone.
fn decode<R: Read>(
    mut plain: HashingReader<R>,
    sender: &SyncSender<Vec<u8>>,
) -> Option<io::Result<Digest>> {
    loop {
        let mut piece = vec![0; PIECE];
        let mut filled = 0;
        while filled < PIECE {
            match plain.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Some(Err(e)),
            }
        }
        if filled == 0 {
            return Some(plain.drain().map(|(digest, _)| digest));
        }
        piece.truncate(filled);
        sender.send(piece).ok()?;
    }
}

/// The taking end; reads as ended when the other thread ends.
struct Pieces {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.receiver.recv() {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.piece[self.at..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}

/// Ends when told to: what is left to decompress can be much, even when no
/// more bytes come.
struct Watched<'a, R> {
    inner: R,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody wants the layer any more"));
        }
        self.inner.read(buf)
    }
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

    static GO: AtomicBool = AtomicBool::new(false);

    fn how() -> Receiving<'static> {
        static LIMITS: std::sync::LazyLock<Limits> = std::sync::LazyLock::new(Limits::default);
        Receiving {
            limits: &LIMITS,
            stop: &GO,
            budget: None,
        }
    }

    fn wanted(blob: &[u8], plain: &[u8]) -> Wanted {
        Wanted {
            diff_id: DiffId(Digest::of(plain)),
            blob: Some(LayerDigest(Digest::of(blob))),
            size: Some(blob.len() as u64),
        }
    }

    fn run(bytes: &[u8], wanted: &Wanted) -> (tempfile::TempDir, Result<Unpacked, LayerError>) {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let result = receive(bytes, wanted, fd, &how());
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
            assert_eq!(result.unwrap().occupied.inodes, 3);
            assert_eq!(
                std::fs::read(dir.path().join("dir/file")).unwrap(),
                b"hello"
            );
        }
    }

    /// Gives at most so many bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(buf.len());
            self.0.read(&mut buf[..n])
        }
    }

    #[test]
    fn bytes_that_come_one_by_one_are_as_good_as_one_piece() {
        let plain = archive();
        let skippable = [
            &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3],
            &zstd(&plain)[..],
        ]
        .concat();
        for blob in [plain.clone(), gzip(&plain), zstd(&plain), skippable] {
            for piece in (1..=16).chain([100, 511, 512, 513]) {
                let dir = tempfile::tempdir().unwrap();
                let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
                let drip = Drip(&blob, piece);
                let occupied = receive(drip, &wanted(&blob, &plain), fd, &how())
                    .unwrap_or_else(|e| panic!("{:x?} in pieces of {piece}: {e:?}", &blob[..4]));
                assert_eq!(occupied.occupied.inodes, 3);
            }
        }
        for refused in [&b"BZh91AY&SY....."[..], b"\xfd7zXZ\0..."] {
            let dir = tempfile::tempdir().unwrap();
            let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
            let result = receive(Drip(refused, 1), &wanted(refused, b""), fd, &how());
            assert!(
                matches!(result, Err(LayerError::Compression { .. })),
                "{result:?}"
            );
        }
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    /// An archive above the size from which two threads work.
    fn big_archive() -> Vec<u8> {
        let mut state = 1u32;
        let body: Vec<u8> = (0..2_000_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        let mut b = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(body.len() as u64);
        h.set_mode(0o644);
        b.append_data(&mut h, "big", &body[..]).unwrap();
        b.into_inner().unwrap()
    }

    #[test]
    fn big_layers_on_two_threads_are_checked_alike() {
        let plain = big_archive();
        let blob = gzip(&plain);
        assert!(blob.len() as u64 > WORTH_A_THREAD);
        let (dir, result) = run(&blob, &wanted(&blob, &plain));
        assert_eq!(result.unwrap().occupied.inodes, 2);
        assert_eq!(
            std::fs::metadata(dir.path().join("big")).unwrap().len(),
            2_000_000
        );
        let mut bad = blob.clone();
        bad[1_000_000] ^= 1;
        assert!(matches!(
            run(&bad, &wanted(&blob, &plain)).1,
            Err(LayerError::Digest { .. })
        ));
        assert!(matches!(
            run(&bad, &wanted(&bad, &plain)).1,
            Err(LayerError::Decompress(_))
        ));
        let other = Wanted {
            diff_id: DiffId(Digest::of(b"x")),
            ..wanted(&blob, &plain)
        };
        assert!(matches!(
            run(&blob, &other).1,
            Err(LayerError::DiffId { .. })
        ));
        let longer = Wanted {
            size: Some(blob.len() as u64 + 1),
            ..wanted(&blob, &plain)
        };
        assert!(matches!(
            run(&blob, &longer).1,
            Err(LayerError::Size { .. })
        ));
        let hostile = b"../x\0".to_vec();
        let mut evil = plain.clone();
        evil[..hostile.len()].copy_from_slice(&hostile);
        let sum: u32 = evil[..512]
            .iter()
            .enumerate()
            .map(|(i, b)| u32::from(if (148..156).contains(&i) { b' ' } else { *b }))
            .sum();
        evil[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let blob = gzip(&evil);
        let result = run(&blob, &wanted(&blob, &evil)).1;
        assert!(
            matches!(result, Err(LayerError::Unpack(UnpackError::Hostile { .. }))),
            "{result:?}"
        );
    }

    #[test]
    fn unwanted_layers_end_although_bytes_are_there() {
        let plain = archive();
        let blob = gzip(&plain);
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let stop = AtomicBool::new(true);
        let how = Receiving {
            limits: &Limits::default(),
            stop: &stop,
            budget: None,
        };
        assert!(receive(&blob[..], &wanted(&blob, &plain), fd, &how).is_err());
        assert!(!dir.path().join("dir").exists());
    }

    #[test]
    fn without_memory_for_its_window_a_layer_fails_at_once_and_is_named() {
        use crate::windows::tests::{layer_of, windows};
        struct Unread;
        impl Read for Unread {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("the rest is of no use");
            }
        }
        // A frame with a window of 64 MiB, which is more than one registry gets.
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, 16 << 3, 1, 0, 0, 0, 0, 0];
        let (windows, transfer) = (windows(std::time::Duration::ZERO), layer_of("r.example"));
        let how = Receiving {
            budget: Some((&windows, &transfer)),
            ..how()
        };
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let wanted = wanted(&head, b"");
        let error = receive(head.chain(Unread), &wanted, fd, &how).unwrap_err();
        assert!(matches!(error, LayerError::Window(_)), "{error:?}");
        let error = crate::error::PullError::layer(wanted.diff_id, dir.path(), error);
        let cause = std::error::Error::source(&error).unwrap();
        let cause = std::error::Error::source(cause).unwrap().to_string();
        assert!(error.to_string().contains(&wanted.diff_id.to_string()));
        assert!(cause.contains("67108864"), "{cause}");
    }

    #[test]
    fn what_follows_the_end_of_the_archive_is_bounded() {
        for (rest, fits) in [(1 << 20, true), (AFTER_END as usize + (1 << 20), false)] {
            let mut plain = archive();
            plain.resize(plain.len() + rest, 0);
            for at_once in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
                let reader = HashingReader::new(&plain[..]);
                let (unpacked, hashed) = match at_once {
                    true => side_by_side(reader, fd, &Limits::default()),
                    false => one_after_the_other(reader, fd, &Limits::default()),
                };
                assert!(unpacked.is_ok());
                let hashed = hashed.unwrap();
                assert_eq!(hashed.is_ok(), fits, "{hashed:?}");
                assert!(hashed.is_err() || hashed.unwrap() == Digest::of(&plain));
            }
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
        let result = receive(source, &wanted(&blob, &plain), fd, &how());
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
        for (head, name) in [
            (&b"BZh91AY&SY....."[..], "bzip2"),
            (&b"\xfd7zXZ\0..."[..], "xz"),
        ] {
            match run(head, &wanted(head, b"")).1 {
                Err(LayerError::Compression { name: got }) => assert_eq!(got, name),
                other => panic!("{other:?}"),
            }
        }
    }
}
