//! What the kernel tells in /proc of processes and mounts. Names in it are bytes that
//! containers choose: of a process, of a cgroup, of a mount's place. None of them may
//! hide the line that it is in. Only reads.

use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// What `/proc/PID/stat` tells of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The kernel's letter for what it does: `Z` and `X` have ended.
    pub state: u8,
    /// Its parent's number.
    pub parent: i32,
    /// The number of its session.
    pub session: i32,
    /// When it was made, in the kernel's ticks since boot.
    pub made: u64,
}

impl Stat {
    /// Of the process that has a number.
    ///
    /// # Errors
    /// No process has it ([`is_gone`]), or it cannot be read.
    pub fn of(pid: i32) -> io::Result<Self> {
        let line = std::fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&line).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether it has ended, and was perhaps not reaped yet.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    fn parse(line: &[u8]) -> Option<Self> {
        // The name in brackets may hold anything, brackets as well.
        let end = line.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(line.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let made = fields.nth(15)?.parse().ok()?;
        Some(Self {
            state,
            parent,
            session,
            made,
        })
    }
}

/// Whether there is no such process, or none any more.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(libc::ENOENT) || code == Some(libc::ESRCH)
}

/// The cgroups of a process, a line for each hierarchy, as bytes: `NUMBER:CONTROLLERS:PATH`.
///
/// # Errors
/// It cannot be read; `ENAMETOOLONG`: a path is longer than a page.
pub fn cgroups(pid: i32) -> io::Result<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/cgroup"))
}

/// Whether a process is in a cgroup whose name begins with this, or below one: systemd in
/// a container moves itself. Whoever is deeper than any path is in cgroups that a
/// container has made.
///
/// # Errors
/// No process has the number ([`is_gone`]), or that cannot be told.
pub fn is_in_cgroup(pid: i32, name: &str) -> io::Result<bool> {
    match cgroups(pid) {
        Ok(cgroups) => {
            let mut parts = cgroups.split(|byte| matches!(byte, b'\n' | b'/'));
            Ok(parts.any(|part| part.starts_with(name.as_bytes())))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENAMETOOLONG) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The mount table in a file like `/proc/self/mountinfo`. Bytes that are no text are
/// written as the kernel writes a blank: as three octal digits, which [`unescape`] reads.
///
/// # Errors
/// It cannot be read.
pub fn mount_table(file: &str) -> io::Result<String> {
    std::fs::read(file).map(as_text)
}

fn as_text(table: Vec<u8>) -> String {
    let table = match String::from_utf8(table) {
        Ok(text) => return text,
        Err(error) => error.into_bytes(),
    };
    let mut text = String::with_capacity(table.len());
    for byte in table {
        if byte.is_ascii() {
            text.push(char::from(byte));
        } else {
            let _never = write!(text, "\\{byte:o}");
        }
    }
    text
}

/// A path in a mount table: space, tab, newline and backslash are three octal digits.
#[must_use]
pub fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = (byte == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.unwrap_or(byte));
        at += if octal.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_process_is_seen_whatever_its_name_is() {
        let wanted = Stat {
            state: b'S',
            parent: 7,
            session: 9,
            made: 22,
        };
        for name in [&b"sh"[..], b"a b", b") Z (", b"\xff\xfe\x80", b""] {
            let line = [
                b"12 (",
                name,
                b") S 7 8 9 10 11 12 13 14 15 16 17 18 19 20 1 2 3 4 22 5",
            ]
            .concat();
            assert_eq!(Stat::parse(&line), Some(wanted), "{name:?}");
        }
        assert_eq!(Stat::parse(b"12 (sh"), None);
        assert_eq!(Stat::parse(b"12 (sh) S"), None);
    }

    #[test]
    fn this_process_lives_and_nobody_has_an_impossible_number() {
        let own = Stat::of(std::process::id().cast_signed()).unwrap();
        assert!(!own.has_ended());
        assert!(is_gone(&Stat::of(i32::MAX).unwrap_err()));
    }

    #[test]
    fn a_mount_whose_place_is_no_text_is_read_and_hides_no_other() {
        let lines = b"1 0 0:1 / /a\xff\xc3\xa4\\040b rw - x x rw\n2 0 0:1 / /c rw - x x rw\n";
        let text = as_text(lines.to_vec());
        let points: Vec<_> = text
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(unescape)
            .collect();
        assert_eq!(points[0].as_os_str().as_bytes(), b"/a\xff\xc3\xa4 b");
        assert_eq!(points[1].as_os_str().as_bytes(), b"/c");
    }
}
