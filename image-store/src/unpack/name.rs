//! Entry names: what may be used inside a layer, and what whiteouts mean.
//!
//! Pure text work. A [`Name`] is relative, has no empty, `.` or `..` part and
//! fits the kernel's limits; nothing else reaches the file system.

/// Longest path that the kernel takes, its final zero excluded.
const MAX_PATH: usize = 4095;
/// Longest part of a path on every file system in use.
const MAX_PART: usize = 255;
/// Deeper trees are made to hurt those who walk them.
const MAX_DEPTH: usize = 512;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const META: &[u8] = b".wh..wh.";
/// Where aufs kept files with several names: hard links lead there.
pub(super) const LINKS: &[u8] = b".wh..wh.plnk";

/// A checked path relative to the layer's root; empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Name(Vec<u8>);

/// What an entry's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// An ordinary entry with this last part.
    Plain(&'a [u8]),
    /// Hide this name of the layers below.
    Whiteout(&'a [u8]),
    /// Hide all that the layers below have in the entry's directory.
    Opaque,
    /// Bookkeeping of aufs, of no use here.
    Ignored,
}

impl Name {
    /// Checks a name as it stands in an archive. A leading slash counts for
    /// nothing: every name is taken from the layer's root.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, &'static str> {
        if raw.is_empty() {
            return Err("an empty name");
        }
        if raw.contains(&0) {
            return Err("a zero byte in the name");
        }
        let mut out = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for part in raw.split(|&b| b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err("`..` in the name"),
                _ => {}
            }
            depth += 1;
            if depth > MAX_DEPTH {
                return Err("more than 512 directories deep");
            }
            if part.len() > MAX_PART {
                return Err("a part of the name above 255 bytes");
            }
            if !out.is_empty() {
                out.push(b'/');
            }
            out.extend_from_slice(part);
        }
        if out.len() > MAX_PATH {
            return Err("a name above 4095 bytes");
        }
        Ok(Self(out))
    }

    /// Whether this is the layer's root.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The checked path.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory part and the last part.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    /// Tells whiteouts from ordinary names.
    pub(crate) fn meaning(&self) -> Result<Meaning<'_>, &'static str> {
        let (parent, last) = self.split();
        // Its files are kept while the layer is unpacked.
        if self.0.split(|&b| b == b'/').next() == Some(LINKS) {
            return Ok(Meaning::Plain(last));
        }
        if parent.split(|&b| b == b'/').any(|p| p.starts_with(META)) {
            return Ok(Meaning::Ignored);
        }
        if last == OPAQUE {
            return Ok(Meaning::Opaque);
        }
        if last.starts_with(META) {
            return Ok(Meaning::Ignored);
        }
        match last.strip_prefix(WHITEOUT) {
            None => Ok(Meaning::Plain(last)),
            Some(b"" | b"." | b"..") => Err("a whiteout of no name"),
            Some(hidden) => Ok(Meaning::Whiteout(hidden)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(raw: &str) -> Result<String, &'static str> {
        Name::parse(raw.as_bytes()).map(|n| String::from_utf8(n.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn names_are_taken_from_the_root() {
        assert_eq!(path("./"), Ok(String::new()));
        assert_eq!(path("/"), Ok(String::new()));
        assert_eq!(path("/etc//./passwd"), Ok("etc/passwd".into()));
        assert_eq!(path("a/b/"), Ok("a/b".into()));
        assert_eq!(path("...").as_deref(), Ok("..."));
    }

    #[test]
    fn dangerous_names_are_refused() {
        for bad in ["", "..", "a/../b", "../a", "/..", "a\0b"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        assert!(path(&"a/".repeat(10_000)).is_err());
        assert!(path(&"x".repeat(256)).is_err());
        assert!(path(&format!("{}/x", "y".repeat(200)).repeat(30)).is_err());
    }

    #[test]
    fn whiteouts_are_recognised() {
        let meaning = |s: &str| {
            let name = Name::parse(s.as_bytes()).unwrap();
            name.meaning().map(|m| format!("{m:?}"))
        };
        assert_eq!(
            meaning("a/.wh.b").unwrap(),
            format!("{:?}", Meaning::Whiteout(b"b"))
        );
        assert_eq!(meaning("a/.wh..wh..opq").unwrap(), "Opaque");
        for ignored in [".wh..wh.aufs", ".wh..wh.orph/x/y", "a/.wh..wh.plnk/1.2"] {
            assert_eq!(meaning(ignored).unwrap(), "Ignored", "{ignored}");
        }
        for kept in [".wh..wh.plnk", ".wh..wh.plnk/1.2"] {
            assert!(meaning(kept).unwrap().starts_with("Plain"), "{kept}");
        }
        assert_eq!(
            meaning("a/.whb").unwrap(),
            format!("{:?}", Meaning::Plain(b".whb"))
        );
        for bad in ["a/.wh.", ".wh..", "x/.wh..."] {
            assert!(meaning(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn checked_names_stay_below_the_root(raw in prop::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), Just(b'w'), any::<u8>()], 0..60))
        {
            if let Ok(name) = Name::parse(&raw) {
                let path = name.as_bytes();
                prop_assert!(!path.starts_with(b"/") && !path.ends_with(b"/"));
                if !name.is_root() {
                    for part in path.split(|&b| b == b'/') {
                        prop_assert!(!part.is_empty() && part != b"." && part != b"..");
                    }
                }
                prop_assert_eq!(Name::parse(&[b"/", path].concat()).ok(), Some(name));
            }
        }
    }
}
