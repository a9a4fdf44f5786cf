//! Byte search at the C library's speed: container output is searched for
//! line ends, byte by byte.

#![expect(unsafe_code, reason = "bare system calls")]

/// Position of the first `byte` in `haystack`.
#[must_use]
pub fn find_byte(byte: u8, haystack: &[u8]) -> Option<usize> {
    let start = haystack.as_ptr();
    // SAFETY: `start` and the length describe one live slice, which is all
    // that memchr reads.
    let found =
        unsafe { libc::memchr(start.cast(), libc::c_int::from(byte), haystack.len()) }.cast_const();
    if found.is_null() {
        return None;
    }
    // memchr answers with a pointer into the slice, at or behind its start.
    Some(found.addr() - start.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_byte_is_found() {
        assert_eq!(find_byte(b'\n', b""), None);
        assert_eq!(find_byte(b'\n', b"abc"), None);
        assert_eq!(find_byte(b'\n', b"\nabc\n"), Some(0));
        assert_eq!(find_byte(b'\n', b"abc\nd\n"), Some(3));
        assert_eq!(find_byte(0xff, &[1, 0xff]), Some(1));
    }
}
