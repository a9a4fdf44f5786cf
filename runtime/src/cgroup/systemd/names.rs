//! Names of systemd's units, and the cgroups that they stand for.
//!
//! A slice's name holds all slices above it, with dashes between them:
//! `kubepods-besteffort.slice` is the child of `kubepods.slice`. A scope's name says nothing
//! of its slice. Does no I/O: whether systemd has such a unit is not known here.

use super::super::{CgroupError, CgroupPath};

/// The longest name of a unit, and of a directory: `UNIT_NAME_MAX` and `NAME_MAX`.
const LONGEST: usize = 255;
const SLICE: &str = ".slice";
const SCOPE: &str = ".scope";
/// Scopes of pods begin so.
const PREFIX: &str = "slipway-";
/// Where pods are whose request names no slice: beside the node's services, as with other
/// engines.
const SHARED: &str = "system.slice";

/// The cgroup of the slice that pods are in whose request names none.
///
/// # Errors
/// None: the name is a slice's.
pub(super) fn shared() -> Result<CgroupPath, CgroupError> {
    format!("/{SHARED}").parse()
}

/// The cgroup of a slice; `None` for the root slice, `-.slice`, which is the root cgroup.
///
/// # Errors
/// [`CgroupError::Path`]: systemd would have no slice of this name.
pub fn slice_path(name: &str) -> Result<Option<CgroupPath>, CgroupError> {
    let wrong = |reason| CgroupError::Path {
        path: name.to_owned(),
        reason,
    };
    if name.len() > LONGEST {
        return Err(wrong("is longer than the name of a unit, 255 bytes"));
    }
    let stem = name
        .strip_suffix(SLICE)
        .ok_or_else(|| wrong("is not the name of a systemd slice, which ends in \".slice\""))?;
    if stem == "-" {
        return Ok(None);
    }
    if !stem.bytes().all(is_of_slice) {
        return Err(wrong(
            "is not the name of a systemd slice: only letters, digits and \":-_.\\\" may be in it",
        ));
    }
    if stem.split('-').any(str::is_empty) {
        return Err(wrong(
            "is not the name of a systemd slice: there is nothing before, between or after its dashes",
        ));
    }
    let mut path = String::new();
    let ends = stem.match_indices('-').map(|(at, _)| at);
    for end in ends.chain([stem.len()]) {
        path.push('/');
        path.push_str(&stem[..end]);
        path.push_str(SLICE);
    }
    path.parse().map(Some)
}

/// What systemd takes in the name of a unit, without `@`: slices are never templates.
fn is_of_slice(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte)
}

/// The name of the scope for the pod `id`.
pub(super) fn scope(id: &str) -> String {
    format!("{PREFIX}{id}{SCOPE}")
}

/// The cgroup of the scope that the pod's own cgroup is in, if it is in one.
pub(super) fn scope_around(pod: &CgroupPath) -> Option<CgroupPath> {
    pod.parent()
        .filter(|parent| parent.name() == scope(pod.name()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slice_lies_in_all_that_its_name_begins_with() {
        for (name, path) in [
            ("kubepods.slice", "/kubepods.slice"),
            (
                "kubepods-besteffort-pod1_2.slice",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
            ),
            // An escaped dash is a part of one name.
            (r"a\x2db-c.slice", r"/a\x2db.slice/a\x2db-c.slice"),
            ("a.slice.slice", "/a.slice.slice"),
        ] {
            let found = slice_path(name).unwrap().unwrap();
            assert_eq!(found.as_str(), path);
            assert_eq!(found.name(), name);
        }
        assert_eq!(slice_path("-.slice").unwrap(), None);
        assert_eq!(shared().unwrap().as_str(), "/system.slice");
    }

    #[test]
    fn what_systemd_would_not_call_a_slice_is_refused_by_name() {
        let long = format!("{}.slice", "a".repeat(250));
        for (name, why) in [
            ("", "ends in \".slice\""),
            ("/kubepods/pod1", "ends in \".slice\""),
            ("kubepods.scope", "ends in \".slice\""),
            (".slice", "dashes"),
            ("--.slice", "dashes"),
            ("-a.slice", "dashes"),
            ("a-.slice", "dashes"),
            ("a--b.slice", "dashes"),
            ("/kubepods.slice", "only letters"),
            ("a/../b.slice", "only letters"),
            ("../a.slice", "only letters"),
            ("a b.slice", "only letters"),
            ("a@b.slice", "only letters"),
            ("a\0.slice", "only letters"),
            ("ä.slice", "only letters"),
            (&long, "255"),
        ] {
            let error = slice_path(name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
        // One byte less is the longest.
        assert!(slice_path(&long[1..]).is_ok());
        assert_eq!(
            slice_path("..-a.slice").unwrap().unwrap().as_str(),
            "/...slice/..-a.slice"
        );
    }

    #[test]
    fn a_pods_scope_is_known_by_the_pods_id_only() {
        let pod: CgroupPath = "/a.slice/slipway-7f.scope/7f".parse().unwrap();
        assert_eq!(
            scope_around(&pod).unwrap().as_str(),
            "/a.slice/slipway-7f.scope"
        );
        for other in [
            "/7f",
            "/kubepods/pod1/7f",
            "/a.slice/slipway-7e.scope/7f",
            "/a/7f.scope/7f",
        ] {
            assert_eq!(scope_around(&other.parse().unwrap()), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn every_slice_ends_its_own_path(name in r"[a-z.\-/\\@]{0,9}(\.slice)?") {
            let Ok(Some(path)) = slice_path(&name) else {
                return Ok(());
            };
            prop_assert_eq!(path.name(), name.as_str());
            for part in path.as_str().split('/').skip(1) {
                prop_assert!(part.ends_with(SLICE) && part.len() > SLICE.len());
            }
            let above = path.parent().map(|above| slice_path(above.name()));
            if let Some(above) = above {
                prop_assert_eq!(above.unwrap(), path.parent());
            }
        }
    }
}
