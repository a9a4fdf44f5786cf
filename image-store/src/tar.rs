//! A streaming reader of tar archives: ustar, PAX, GNU long names, sparse files.
//!
//! Owns the format and nothing else: names come out as the bytes that stand in
//! the archive, and whether they may be used is decided where files are made
//! (`unpack`). Never seeks, never keeps a body in memory, and bounds what it
//! keeps of headers, so a hostile archive costs no more than its own length.

mod sparse;

use std::io::{self, Read};

pub(crate) use sparse::Segment;

const BLOCK: usize = 512;
/// PAX headers and GNU long names of one entry above this are refused, however
/// many headers they come in.
const MAX_META: u64 = 1 << 20;
/// The same for all entries of an archive together.
const MAX_META_IN_ALL: u64 = 1 << 30;
/// More extended attributes than this of one entry are refused.
const MAX_XATTRS: usize = 1024;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file, followed by its bytes.
    File,
    /// Another name for a file of the same archive.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
}

/// One entry's header, with PAX and GNU extensions applied.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The name as it stands in the archive.
    pub name: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    /// What to make.
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of the file; 0 unless this is a file.
    pub size: u64,
    /// Where the bytes that follow belong, when they are not all of the file.
    pub sparse: Option<Vec<Segment>>,
    /// Device numbers: major and minor.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The archive ends inside a header or a body.
    #[error("the archive ends in the middle of {}", shown(name))]
    Truncated {
        /// The entry, or what stood there.
        name: Vec<u8>,
    },
    /// A header makes no sense.
    #[error("bad header at byte {offset}: {reason}")]
    Header {
        /// Where in the archive.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A format that is not read here (multi-volume archives).
    #[error("{} is a {what}, which is not supported", shown(name))]
    Unsupported {
        /// The entry.
        name: Vec<u8>,
        /// The kind of entry.
        what: &'static str,
    },
    /// More headers than allowed.
    #[error("more than {limit} headers, at {}", shown(name))]
    TooMany {
        /// The entry in hand.
        name: Vec<u8>,
        /// The bound.
        limit: u64,
    },
    /// The bytes below could not be read.
    #[error("read the archive")]
    Read(#[source] io::Error),
}

/// A name as people can read it, cut after 200 characters.
#[must_use]
pub(crate) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut out: String = text
        .chars()
        .flat_map(char::escape_debug)
        .take(200)
        .collect();
    if text.chars().count() > 200 {
        out.push_str("...");
    }
    format!("`{out}`")
}

/// Reads one archive from front to back.
pub(crate) struct TarReader<R> {
    inner: R,
    offset: u64,
    /// Bytes of the current body not yet read.
    body: u64,
    /// Zero bytes after the current body, up to the block's end.
    padding: u64,
    current: Vec<u8>,
    /// Bytes of metadata headers of the current entry, and of all.
    meta: u64,
    meta_in_all: u64,
    headers: u64,
    max_headers: u64,
    done: bool,
}

/// What the metadata headers before an entry said about it.
#[derive(Default)]
struct Overrides {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: sparse::Headers,
}

impl<R: Read> TarReader<R> {
    /// Reads from `inner`, and refuses more than `max_headers` headers.
    pub(crate) fn new(inner: R, max_headers: u64) -> Self {
        Self {
            inner,
            offset: 0,
            body: 0,
            padding: 0,
            current: Vec::new(),
            meta: 0,
            meta_in_all: 0,
            headers: 0,
            max_headers,
            done: false,
        }
    }

    /// The next entry; what was not read of the last one is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_body()?;
        self.meta = 0;
        let mut overrides = Overrides::default();
        loop {
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let flag = block[156];
            match flag {
                b'x' => self.read_pax(&block, &mut overrides)?,
                b'g' => drop(self.read_meta(&block)?),
                b'L' => overrides.name = Some(trim_nul(self.read_meta(&block)?)),
                b'K' => overrides.link = Some(trim_nul(self.read_meta(&block)?)),
                _ => return self.entry(&block, overrides).map(Some),
            }
        }
    }

    /// Bytes of the current entry's body.
    pub(crate) fn read_body(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        let want = usize::try_from(self.body)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.read_some(&mut buf[..want])?;
        if n == 0 {
            return Err(TarError::Truncated {
                name: self.current.clone(),
            });
        }
        self.body -= n as u64;
        Ok(n)
    }

    /// Where the next unread byte stands in the archive.
    pub(crate) fn position(&self) -> u64 {
        self.offset
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.inner.read(buf) {
                Ok(n) => {
                    self.offset += n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Read(e)),
            }
        }
    }

    fn skip_body(&mut self) -> Result<(), TarError> {
        let body = std::mem::take(&mut self.body);
        if self.skip(body)? < body {
            return Err(TarError::Truncated {
                name: self.current.clone(),
            });
        }
        // Some archives end with the last file's last byte.
        let padding = std::mem::take(&mut self.padding);
        self.skip(padding).map(drop)
    }

    /// Skips so many bytes, or as many as there are.
    fn skip(&mut self, count: u64) -> Result<u64, TarError> {
        let mut scratch = [0; 16 * 1024];
        let mut skipped = 0;
        while skipped < count {
            let want = usize::try_from(count - skipped)
                .unwrap_or(usize::MAX)
                .min(scratch.len());
            let n = self.read_some(&mut scratch[..want])?;
            if n == 0 {
                break;
            }
            skipped += n as u64;
        }
        Ok(skipped)
    }

    /// One header; `None` at the end mark or at the end of the bytes.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while !self.done && filled < BLOCK {
            let n = self.read_some(&mut block[filled..])?;
            if n == 0 {
                break;
            }
            filled += n;
        }
        if self.done || filled == 0 {
            self.done = true;
            return Ok(None);
        }
        if block.iter().all(|&b| b == 0) {
            self.done = true;
            return Ok(None);
        }
        if filled < BLOCK {
            return Err(TarError::Truncated {
                name: b"a header".to_vec(),
            });
        }
        self.headers += 1;
        self.current = name_of(&block);
        if self.headers > self.max_headers {
            return Err(TarError::TooMany {
                name: self.current.clone(),
                limit: self.max_headers,
            });
        }
        if !checksum_matches(&block) {
            return Err(self.bad("wrong checksum"));
        }
        Ok(Some(block))
    }

    fn bad(&self, reason: &'static str) -> TarError {
        TarError::Header {
            offset: self.offset.saturating_sub(BLOCK as u64),
            reason,
        }
    }

    fn number(&self, field: &[u8], reason: &'static str) -> Result<i64, TarError> {
        parse_number(field).ok_or_else(|| self.bad(reason))
    }

    fn size(&self, block: &[u8; BLOCK]) -> Result<u64, TarError> {
        u64::try_from(self.number(&block[124..136], "bad size")?).map_err(|_| self.bad("bad size"))
    }

    /// The whole body of a metadata header.
    fn read_meta(&mut self, block: &[u8; BLOCK]) -> Result<Vec<u8>, TarError> {
        let size = self.size(block)?;
        self.meta = self.meta.saturating_add(size);
        if self.meta > MAX_META {
            return Err(self.bad("PAX headers and long names of one entry above 1 MiB"));
        }
        self.meta_in_all += size;
        if self.meta_in_all > MAX_META_IN_ALL {
            return Err(self.bad("PAX headers and long names above 1 GiB in all"));
        }
        self.begin_body(size);
        let mut out = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < out.len() {
            filled += self.read_body(&mut out[filled..])?;
        }
        self.skip_body()?;
        Ok(out)
    }

    fn begin_body(&mut self, size: u64) {
        self.body = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn read_pax(&mut self, block: &[u8; BLOCK], out: &mut Overrides) -> Result<(), TarError> {
        let bytes = self.read_meta(block)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() && rest.iter().any(|&b| b != 0) {
            let (key, value, tail) = pax_record(rest).ok_or_else(|| self.bad("bad PAX record"))?;
            if out.apply(key, value).is_none() {
                return Err(self.bad("bad value in a PAX record"));
            }
            rest = tail;
        }
        Ok(())
    }

    fn entry(&mut self, block: &[u8; BLOCK], over: Overrides) -> Result<Entry, TarError> {
        let name = over
            .sparse
            .name
            .clone()
            .or(over.name)
            .unwrap_or_else(|| name_of(block));
        self.current.clone_from(&name);
        let what = |what| TarError::Unsupported {
            name: name.clone(),
            what,
        };
        let mut kind = match block[156] {
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            b'M' | b'V' => return Err(what("part of a multi-volume archive")),
            _ => return Err(what("entry of unknown type")),
        };
        // Archives from before ustar mark a directory by its name alone.
        if kind == Kind::File && name.ends_with(b"/") {
            kind = Kind::Dir;
        }
        let stored = match over.size {
            Some(size) => size,
            None => self.size(block)?,
        };
        let (size, sparse) = if kind == Kind::File {
            self.begin_file(block, over.sparse, stored)?
        } else {
            self.begin_body(0);
            (0, None)
        };
        let id = |field: &[u8]| {
            u32::try_from(self.number(field, "bad owner")?).map_err(|_| self.bad("bad owner"))
        };
        let entry = Entry {
            link: over
                .link
                .unwrap_or_else(|| until_nul(&block[157..257]).to_vec()),
            kind,
            mode: u32::try_from(self.number(&block[100..108], "bad mode")? & 0o7777).unwrap_or(0),
            uid: over.uid.map_or_else(|| id(&block[108..116]), Ok)?,
            gid: over.gid.map_or_else(|| id(&block[116..124]), Ok)?,
            mtime: over
                .mtime
                .map_or_else(|| Ok((self.number(&block[136..148], "bad time")?, 0)), Ok)?,
            size,
            sparse,
            device: self.device(block, kind)?,
            xattrs: over.xattrs,
            name,
        };
        Ok(entry)
    }

    /// Begins a file's body: how long the file is, and where its parts belong
    /// when it is sparse.
    fn begin_file(
        &mut self,
        block: &[u8; BLOCK],
        said: sparse::Headers,
        stored: u64,
    ) -> Result<(u64, Option<Vec<Segment>>), TarError> {
        let map = if block[156] == b'S' {
            let map = self.gnu_map(block)?;
            self.begin_body(stored);
            Some(map)
        } else {
            self.begin_body(stored);
            self.pax_map(said)?
        };
        let Some(map) = map else {
            return Ok((stored, None));
        };
        let segments = map
            .segments(self.body)
            .ok_or_else(|| self.bad("bad map of a sparse file"))?;
        Ok((map.size, Some(segments)))
    }

    fn device(&self, block: &[u8; BLOCK], kind: Kind) -> Result<(u32, u32), TarError> {
        if !matches!(kind, Kind::Char | Kind::Block) {
            return Ok((0, 0));
        }
        let part = |field: &[u8]| {
            u32::try_from(self.number(field, "bad device number")?)
                .map_err(|_| self.bad("bad device number"))
        };
        Ok((part(&block[329..337])?, part(&block[337..345])?))
    }
}

impl Overrides {
    /// Takes one PAX record; `None` when its value cannot be read.
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") {
            return Some(()); // an empty value means: as the plain header says
        }
        let text = || std::str::from_utf8(value).ok();
        match key {
            b"path" => self.name = Some(without_nul(value)?),
            b"linkpath" => self.link = Some(without_nul(value)?),
            b"size" => self.size = Some(text()?.parse().ok()?),
            b"uid" => self.uid = Some(text()?.parse().ok()?),
            b"gid" => self.gid = Some(text()?.parse().ok()?),
            b"mtime" => self.mtime = Some(parse_time(text()?)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.apply(key, value)?;
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if self.xattrs.len() >= MAX_XATTRS {
                        return None;
                    }
                    self.xattrs.push((without_nul(name)?, value.to_vec()));
                }
            }
        }
        Some(())
    }
}

fn without_nul(value: &[u8]) -> Option<Vec<u8>> {
    (!value.contains(&0)).then(|| value.to_vec())
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

fn trim_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = until_nul(&bytes).len();
    bytes.truncate(len);
    bytes
}

/// The plain header's name; POSIX archives put long ones' front into `prefix`.
fn name_of(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    if &block[257..263] != b"ustar\0" {
        return name.to_vec();
    }
    // The star variant keeps times in the prefix's last bytes.
    let end = if &block[508..512] == b"tar\0" {
        476
    } else {
        500
    };
    let prefix = until_nul(&block[345..end]);
    if prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let Some(want) = parse_number(&block[148..156]) else {
        return false;
    };
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (i, &b) in block.iter().enumerate() {
        let b = if (148..156).contains(&i) { b' ' } else { b };
        unsigned += i64::from(b);
        signed += i64::from(b.cast_signed());
    }
    want == unsigned || want == signed
}

/// Octal text, or a big-endian two's complement number when the first bit is set.
fn parse_number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        let mut value = start;
        for &b in rest {
            value = value.checked_mul(256)? + i128::from(b);
        }
        return i64::try_from(value).ok();
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_start_matches([' ', '\0']);
    let text = text.split([' ', '\0']).next().unwrap_or_default();
    if text.is_empty() {
        return Some(0);
    }
    if !text.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
        return None;
    }
    i64::from_str_radix(text, 8).ok()
}

/// Splits `LEN KEY=VALUE\n` off the front.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&b| b == b' ')?;
    let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..len)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&b| b == b'=')?;
    if equals == 0 {
        return None;
    }
    Some((&record[..equals], &record[equals + 1..], &bytes[len..]))
}

/// `-12.5` means half a second before -12: nanoseconds always count forward.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new(bytes, 1000);
        let mut out = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut body = Vec::new();
            let mut buf = [0; 100];
            loop {
                let n = reader.read_body(&mut buf)?;
                if n == 0 {
                    break;
                }
                body.extend_from_slice(&buf[..n]);
            }
            out.push((entry, body));
        }
        Ok(out)
    }

    fn header(name: &str, flag: u8, size: u64) -> tar::Header {
        let mut h = tar::Header::new_ustar();
        h.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        h.set_entry_type(tar::EntryType::new(flag));
        h.set_size(size);
        h.set_mode(0o644);
        h.set_uid(1000);
        h.set_gid(100);
        h.set_mtime(12345);
        h.set_cksum();
        h
    }

    fn with_pax(records: &[(&str, &[u8])], h: &tar::Header, body: &[u8]) -> Vec<u8> {
        let mut b = tar::Builder::new(Vec::new());
        b.append_pax_extensions(records.iter().copied()).unwrap();
        b.append(h, body).unwrap();
        b.into_inner().unwrap()
    }

    #[test]
    fn plain_entries_come_back_as_written() {
        let mut b = tar::Builder::new(Vec::new());
        b.append(&header("dir/a", b'0', 5), &b"hello"[..]).unwrap();
        b.append(&header("b", b'0', 0), &b""[..]).unwrap();
        let got = read_all(&b.into_inner().unwrap()).unwrap();
        assert_eq!(got.len(), 2);
        let (entry, body) = &got[0];
        assert_eq!(
            (entry.name.as_slice(), body.as_slice()),
            (&b"dir/a"[..], &b"hello"[..])
        );
        assert_eq!((entry.mode, entry.uid, entry.gid), (0o644, 1000, 100));
        assert_eq!(entry.mtime, (12345, 0));
    }

    #[test]
    fn gnu_and_pax_long_names_are_joined() {
        let long = "d/".repeat(150) + "file";
        for posix in [false, true] {
            let mut b = tar::Builder::new(Vec::new());
            if posix {
                b.append_pax_extensions([("path", long.as_bytes())])
                    .unwrap();
                b.append(&header("short", b'0', 1), &b"x"[..]).unwrap();
            } else {
                let mut h = tar::Header::new_gnu();
                h.set_size(1);
                h.set_entry_type(tar::EntryType::Regular);
                b.append_data(&mut h, &long, &b"x"[..]).unwrap();
            }
            let got = read_all(&b.into_inner().unwrap()).unwrap();
            assert_eq!(got.len(), 1);
            assert_eq!(got[0].0.name, long.as_bytes(), "posix: {posix}");
        }
    }

    #[test]
    fn pax_overrides_size_owner_time_and_xattrs() {
        let records: &[(&str, &[u8])] = &[
            ("size", b"3"),
            ("uid", b"4000000"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.k", b"v\0w"),
        ];
        let bytes = with_pax(records, &header("f", b'0', 3), b"abc");
        let (entry, body) = &read_all(&bytes).unwrap()[0];
        assert_eq!(body, b"abc");
        assert_eq!(entry.uid, 4_000_000);
        assert_eq!(entry.mtime, (-2, 750_000_000));
        assert_eq!(entry.xattrs, vec![(b"user.k".to_vec(), b"v\0w".to_vec())]);
    }

    #[test]
    fn an_archive_may_end_with_the_last_byte_of_its_last_file() {
        let mut bytes = header("a", b'0', 3).as_bytes().to_vec();
        bytes.extend_from_slice(b"abc");
        for more in [0, 1, 508, 509, 509 + 100, 509 + 512] {
            let mut bytes = bytes.clone();
            bytes.resize(bytes.len() + more, 0);
            let got = read_all(&bytes).unwrap();
            assert_eq!((got.len(), &got[0].1[..]), (1, &b"abc"[..]), "{more}");
        }
        bytes.resize(1024, 0);
        bytes.extend_from_slice(b"half a header");
        assert!(matches!(read_all(&bytes), Err(TarError::Truncated { .. })));
    }

    #[test]
    fn metadata_headers_of_one_entry_are_bounded_together() {
        let value = vec![b'v'; 600_000];
        let mut b = tar::Builder::new(Vec::new());
        for _ in 0..2 {
            b.append_pax_extensions([("SCHILY.xattr.user.a", &value[..])])
                .unwrap();
        }
        b.append(&header("f", b'0', 0), &b""[..]).unwrap();
        let error = read_all(&b.into_inner().unwrap()).unwrap_err();
        assert!(error.to_string().contains("of one entry"), "{error}");
        let many: Vec<(String, &[u8])> = (0..2000)
            .map(|i| (format!("SCHILY.xattr.user.{i}"), &b"v"[..]))
            .collect();
        let many: Vec<_> = many.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert!(read_all(&with_pax(&many, &header("f", b'0', 0), b"")).is_err());
    }

    #[test]
    fn body_shorter_than_its_size_names_the_entry() {
        let mut bytes = header("liar", b'0', 4096).as_bytes().to_vec();
        bytes.extend_from_slice(&[b'x'; 700]);
        let error = read_all(&bytes).unwrap_err();
        assert!(
            matches!(&error, TarError::Truncated { name } if name == b"liar"),
            "{error}"
        );
    }

    #[test]
    fn giant_pax_header_is_refused_unread() {
        let bytes = header("x", b'x', 1 << 33).as_bytes().to_vec();
        assert!(matches!(read_all(&bytes), Err(TarError::Header { .. })));
    }

    #[test]
    fn wrong_checksum_is_refused() {
        let mut bytes = header("f", b'0', 0).as_bytes().to_vec();
        bytes[0] ^= 1;
        assert!(matches!(read_all(&bytes), Err(TarError::Header { .. })));
    }

    #[test]
    fn header_flood_stops_at_the_bound() {
        let mut bytes = Vec::new();
        for _ in 0..1001 {
            bytes.extend_from_slice(header("g", b'g', 0).as_bytes());
        }
        assert!(matches!(read_all(&bytes), Err(TarError::TooMany { .. })));
    }

    #[test]
    fn base_256_numbers_carry_a_sign() {
        assert_eq!(parse_number(&[0x80, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(parse_number(&[0xff; 12]), Some(-1));
        assert_eq!(
            parse_number(&[0xbf, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
            None
        );
        assert_eq!(parse_number(b"0000644\0"), Some(0o644));
        assert_eq!(parse_number(b"    644 "), Some(0o644));
        assert_eq!(parse_number(b"09"), None);
    }

    proptest! {
        #[test]
        fn outside_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            drop(read_all(&bytes));
        }

        #[test]
        fn damaged_archives_never_panic(at in 0usize..1024, value in any::<u8>()) {
            let mut bytes = with_pax(&[("path", b"a/b")], &header("f", b'0', 3), b"abc");
            bytes[at] = value;
            // A header that is wrong in one byte must not pass for another archive's.
            if at < 512 {
                let fix: u32 = bytes[..512].iter().enumerate()
                    .map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b })).sum();
                bytes[148..156].copy_from_slice(format!("{fix:06o}\0 ").as_bytes());
            }
            drop(read_all(&bytes));
        }

        #[test]
        fn what_the_tar_crate_writes_is_read_back(
            files in prop::collection::vec(("[a-z]{1,120}(/[a-z]{1,120}){0,2}", prop::collection::vec(any::<u8>(), 0..1500)), 0..8)
        ) {
            let mut b = tar::Builder::new(Vec::new());
            for (name, body) in &files {
                let mut h = tar::Header::new_gnu();
                h.set_size(body.len() as u64);
                h.set_mode(0o755);
                b.append_data(&mut h, name, &body[..]).unwrap();
            }
            let got = read_all(&b.into_inner().unwrap()).unwrap();
            let got: Vec<_> = got.into_iter()
                .map(|(e, body)| (String::from_utf8(e.name).unwrap(), body)).collect();
            prop_assert_eq!(got, files);
        }
    }
}
