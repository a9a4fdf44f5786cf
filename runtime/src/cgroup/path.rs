//! The path of a cgroup, as the kernel shows it in `/proc/<pid>/cgroup`.
//!
//! The kernel names a cgroup by its directory below the mount point of a hierarchy; Slipway
//! uses one such path in all of them. Checked once, where it enters, so that joined to a
//! mount point it can neither leave that nor be the mount point itself. Does no I/O: whether
//! such a cgroup exists is not known here.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::CgroupError;

/// A cgroup's path below the mount point of every hierarchy: absolute, of one name at least,
/// without empty names, `.`, `..`, NUL bytes or a slash at its end. So two paths are equal
/// only if they are the same text. On disk and in messages it is that text.
///
/// The root cgroup has no such path: all of the machine's processes are in it or below it,
/// and it is nobody's to limit, kill or remove.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(Arc<str>);

impl CgroupPath {
    /// The cgroup of Slipway's own that pods are in whose request names no parent.
    pub fn slipway() -> Self {
        Self(Arc::from("/slipway"))
    }

    /// The text, which begins with a slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text without the slash that it begins with: what is joined to a mount point.
    pub(super) fn below_mount_point(&self) -> &str {
        self.0.strip_prefix('/').unwrap_or(&self.0)
    }

    /// The last name in it: that of the cgroup's directory.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The cgroup that this one is a child of; `None` where that is the root.
    pub fn parent(&self) -> Option<Self> {
        match self.0.rsplit_once('/') {
            None | Some(("", _)) => None,
            Some((parent, _)) => Some(Self(parent.into())),
        }
    }

    /// The child of this name.
    ///
    /// # Errors
    /// [`CgroupError::Path`]: the name cannot be that of a directory.
    pub fn child(&self, name: &str) -> Result<Self, CgroupError> {
        named(self.as_str(), name)
    }

    /// The cgroup of this name beside this one, with the same parent.
    ///
    /// # Errors
    /// [`CgroupError::Path`]: the name cannot be that of a directory.
    pub fn sibling(&self, name: &str) -> Result<Self, CgroupError> {
        let parent = self.0.rsplit_once('/').map_or("", |(parent, _)| parent);
        named(parent, name)
    }

    /// The descendant that `below` leads to: names with slashes between them.
    ///
    /// # Errors
    /// [`CgroupError::Path`]: the whole would not be such a path.
    pub fn join(&self, below: &str) -> Result<Self, CgroupError> {
        format!("{self}/{below}").parse()
    }

    /// The child of a directory that has been listed: the kernel lets no entry be named
    /// otherwise than by one usable name.
    pub(super) fn listed(parent: Option<&Self>, name: &str) -> Self {
        let parent = parent.map_or("", Self::as_str);
        Self(format!("{parent}/{name}").into())
    }
}

fn named(parent: &str, name: &str) -> Result<CgroupPath, CgroupError> {
    let path = format!("{parent}/{name}");
    if name.contains('/') {
        return Err(CgroupError::Path {
            path,
            reason: "was to end in one name, and that has a slash",
        });
    }
    path.parse()
}

/// Why a text is not the path of a cgroup.
fn fault(text: &str) -> Option<&'static str> {
    let Some(names) = text.strip_prefix('/') else {
        return Some("is not absolute");
    };
    if names.is_empty() {
        return Some("is the root");
    }
    if text.contains('\0') {
        return Some("has a NUL byte");
    }
    let mut names = names.split('/');
    names
        .any(|name| matches!(name, "" | "." | ".."))
        .then_some("has an empty name, \".\" or \"..\" in it")
}

impl FromStr for CgroupPath {
    type Err = CgroupError;

    fn from_str(text: &str) -> Result<Self, CgroupError> {
        match fault(text) {
            None => Ok(Self(text.into())),
            Some(reason) => Err(CgroupError::Path {
                path: text.to_owned(),
                reason,
            }),
        }
    }
}

impl TryFrom<String> for CgroupPath {
    type Error = CgroupError;

    fn try_from(text: String) -> Result<Self, CgroupError> {
        text.parse()
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.as_str().to_owned()
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> CgroupPath {
        text.parse().unwrap()
    }

    #[test]
    fn what_could_leave_the_mount_point_or_be_it_is_refused_by_name() {
        for (text, why) in [
            ("", "not absolute"),
            ("a/b", "not absolute"),
            ("kubepods.slice", "not absolute"),
            ("../a", "not absolute"),
            ("/", "the root"),
            ("//", "empty name"),
            ("//a", "empty name"),
            ("/a//b", "empty name"),
            ("/a/", "empty name"),
            ("/./a", "empty name"),
            ("/a/.", "empty name"),
            ("/..", "empty name"),
            ("/a/../b", "empty name"),
            ("/a\0b", "NUL"),
        ] {
            let error = text.parse::<CgroupPath>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        assert_eq!(path("/a/...").name(), "...");
        assert_eq!(path("/a b/.c").name(), ".c");
        let own = CgroupPath::slipway();
        assert_eq!(path(own.as_str()), own);
    }

    #[test]
    fn parents_end_below_the_root() {
        let id = path("/kubepods/pod/id");
        assert_eq!(id.name(), "id");
        let pod = id.parent().unwrap();
        assert_eq!(pod, path("/kubepods/pod"));
        let top = pod.parent().unwrap();
        assert_eq!((top.as_str(), top.name()), ("/kubepods", "kubepods"));
        assert_eq!(top.parent(), None);
        assert_eq!(top.below_mount_point(), "kubepods");
    }

    #[test]
    fn what_is_added_stays_below() {
        let pod = path("/kubepods/pod");
        assert_eq!(pod.child("id").unwrap(), path("/kubepods/pod/id"));
        assert_eq!(pod.sibling("id").unwrap(), path("/kubepods/id"));
        assert_eq!(path("/pod").sibling("id").unwrap(), path("/id"));
        assert_eq!(pod.join("id/a").unwrap(), path("/kubepods/pod/id/a"));
        for name in ["", ".", "..", "a/b", "/a", "a/", "../a", "a\0"] {
            let error = pod.child(name).unwrap_err();
            assert!(matches!(error, CgroupError::Path { .. }), "{name:?}");
            assert!(pod.sibling(name).is_err(), "{name:?}");
        }
        for below in ["", "/a", "a/", "a//b", "..", "a/../../b", "a\0"] {
            assert!(pod.join(below).is_err(), "{below:?}");
        }
    }

    #[test]
    fn on_disk_it_is_its_text_and_checked_when_it_is_read() {
        let text = "\"/kubepods/pod\"";
        let read: CgroupPath = serde_json::from_str(text).unwrap();
        assert_eq!(read, path("/kubepods/pod"));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let error = serde_json::from_str::<CgroupPath>("\"/a/../b\"").unwrap_err();
        assert!(error.to_string().contains("\"/a/../b\""), "{error}");
        assert!(serde_json::from_str::<CgroupPath>("7").is_err());
    }

    proptest! {
        #[test]
        fn no_text_leads_out_of_the_mount_point(text in "[/.a\0 ]{0,12}") {
            let Ok(path) = text.parse::<CgroupPath>() else {
                return Ok(());
            };
            prop_assert_eq!(path.as_str(), text.as_str());
            let below = std::path::Path::new(path.below_mount_point());
            let plain = |part| matches!(part, std::path::Component::Normal(_));
            prop_assert!(below.components().all(plain));
            let names = below.components().count();
            prop_assert!(names > 0);
            prop_assert_eq!(path.parent().is_none(), names == 1);
            let again = path.sibling(path.name()).unwrap();
            prop_assert_eq!(again, path);
        }
    }
}
