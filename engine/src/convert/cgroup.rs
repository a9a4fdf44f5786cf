//! What a request says of cgroups to the paths that the kernel shows.
//!
//! With the cgroupfs driver `cgroup_parent` is such a path. With the systemd driver it is
//! that of a slice, as the kubelet sends it (`/kubepods.slice/kubepods-pod1.slice`), or the
//! slice's name alone, whose dashes stand for the slices above it. One that is meant for the
//! other driver says that the kubelet has the other one, and is refused: the pod would not
//! be where the kubelet limits it. So is a path at which systemd has no such slice.

use runtime::cgroup::{CgroupPath, DriverKind, slice_path};

use super::{BadRequest, wrong};
use crate::model::CgroupParent;

/// The parent of a pod's cgroups. An empty text names none, and so does the root (`/`, or
/// `-.slice`), where no pod can be; slashes at the end of a path mean nothing.
///
/// # Errors
/// The text is no path below the mount points of the hierarchies, or no slice; or it is meant
/// for the other driver.
pub(super) fn parent_from_proto(
    field: &str,
    text: &str,
    driver: DriverKind,
) -> Result<CgroupParent, BadRequest> {
    let path = text.trim_end_matches('/');
    if path.is_empty() {
        return Ok(CgroupParent::Shared);
    }
    let is_slice = path.ends_with(".slice");
    let other = |wanted: &str| {
        let driver = driver.as_str();
        let reason = format!(
            "{text:?} is not for the engine's cgroup driver {driver}, which takes {wanted}: \
             engine and kubelet must have the same driver"
        );
        Err(wrong(field, reason))
    };
    let parent = match driver {
        DriverKind::Cgroupfs if is_slice => return other("a path, and no slice of systemd's"),
        DriverKind::Systemd if !is_slice => {
            return other("a slice, such as \"/kubepods.slice/kubepods-pod1.slice\"");
        }
        DriverKind::Cgroupfs => path.parse::<CgroupPath>().map(Some),
        DriverKind::Systemd => slice_path(path.rsplit('/').next().unwrap_or_default()),
    };
    let is_path = path.contains('/');
    match parent {
        Ok(slice) if driver == DriverKind::Systemd && is_path && !is_at(slice.as_ref(), path) => {
            let there = slice.as_ref().map_or("/", CgroupPath::as_str);
            let reason =
                format!("{text:?} is not where systemd has this slice, which is {there:?}");
            Err(wrong(field, reason))
        }
        Ok(parent) => Ok(parent.map_or(CgroupParent::Shared, CgroupParent::OfPod)),
        Err(error) => Err(wrong(field, error.to_string())),
    }
}

fn is_at(slice: Option<&CgroupPath>, path: &str) -> bool {
    slice.is_some_and(|slice| slice.as_str() == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(text: &str, driver: DriverKind) -> Result<CgroupParent, BadRequest> {
        parent_from_proto("config.linux.cgroup_parent", text, driver)
    }

    #[test]
    fn a_parent_is_none_or_a_path() {
        for none in ["", "/", "//"] {
            let parent = parent(none, DriverKind::Cgroupfs).expect("valid");
            assert_eq!(parent, CgroupParent::Shared, "{none:?}");
        }
        for (text, path) in [
            ("/kubepods/pod1", "/kubepods/pod1"),
            ("/kubepods/pod1//", "/kubepods/pod1"),
        ] {
            let parent = parent(text, DriverKind::Cgroupfs).expect("valid");
            assert_eq!(parent, CgroupParent::OfPod(path.parse().expect("path")));
        }
    }

    #[test]
    fn with_systemd_a_parent_is_none_or_a_slice() {
        for none in ["", "/", "-.slice"] {
            let parent = parent(none, DriverKind::Systemd).expect("valid");
            assert_eq!(parent, CgroupParent::Shared, "{none:?}");
        }
        let path = "/kubepods.slice/kubepods-pod1.slice";
        for text in ["kubepods-pod1.slice", path, &format!("{path}/")] {
            let parent = parent(text, DriverKind::Systemd).expect("valid");
            assert_eq!(parent, CgroupParent::OfPod(path.parse().expect("path")));
        }
    }

    /// The kubelet writes the slices above into it, and so does critest.
    #[test]
    fn a_slice_is_named_as_the_kubelet_names_it() {
        let path = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for text in [path, "/test.slice"] {
            let parent = parent(text, DriverKind::Systemd).expect("valid");
            assert_eq!(parent, CgroupParent::OfPod(text.parse().expect("path")));
        }
    }

    #[test]
    fn a_slice_at_a_path_where_systemd_has_it_not_is_refused_with_its_place() {
        for (text, place) in [
            (
                "/kubepods-pod1.slice",
                "\"/kubepods.slice/kubepods-pod1.slice\"",
            ),
            ("/other.slice/kubepods-pod1.slice", "\"/kubepods.slice/"),
            ("kubepods.slice/kubepods-pod1.slice", "\"/kubepods.slice/"),
            ("/kubepods.slice/../test.slice", "\"/test.slice\""),
            ("//test.slice", "\"/test.slice\""),
            ("a/../b.slice", "\"/b.slice\""),
            ("/kubepods/test.slice", "\"/test.slice\""),
            ("/-.slice", "\"/\""),
        ] {
            let error = refused(text, DriverKind::Systemd);
            assert!(error.contains(place), "{error}");
        }
    }

    fn refused(text: &str, driver: DriverKind) -> String {
        let error = parent(text, driver).expect_err("refused").to_string();
        assert!(error.starts_with("config.linux.cgroup_parent: "), "{error}");
        assert!(error.contains(&format!("{text:?}")), "{error}");
        error
    }

    #[test]
    fn a_parent_that_is_no_path_is_refused_with_the_field() {
        for text in [
            "kubepods/pod1",
            "/a/../b",
            "/..",
            "/a\0b",
            // No cgroup could be made there, nor could the sandbox be undone.
            "/a//b",
            "/./a",
        ] {
            refused(text, DriverKind::Cgroupfs);
        }
        for text in ["a--b.slice", "..\0.slice", "a b.slice"] {
            refused(text, DriverKind::Systemd);
        }
    }

    #[test]
    fn a_parent_for_the_other_driver_is_refused_with_both() {
        for text in ["kubepods-pod1.slice", "/kubepods.slice", "/a/b.slice/"] {
            let error = refused(text, DriverKind::Cgroupfs);
            assert!(error.contains("driver cgroupfs"), "{error}");
            assert!(error.contains("systemd"), "{error}");
        }
        for text in ["/kubepods/pod1", "/kubepods.slice/pod1", "pod1"] {
            let error = refused(text, DriverKind::Systemd);
            assert!(error.contains("driver systemd"), "{error}");
            assert!(error.contains("slice"), "{error}");
        }
    }
}
