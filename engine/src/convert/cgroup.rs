//! What a request says of cgroups to the paths that the kernel shows.
//!
//! With the cgroupfs driver `cgroup_parent` is such a path. With the systemd driver it is
//! the name of a slice (`kubepods-besteffort-pod1.slice`), whose dashes stand for the slices
//! above it. One that is meant for the other driver says that the kubelet has the other one,
//! and is refused: the pod would not be where the kubelet limits it.

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
    let (is_slice, is_path) = (path.ends_with(".slice"), path.contains('/'));
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
        DriverKind::Systemd if is_path || !is_slice => {
            return other("the name of a slice, such as \"kubepods-pod1.slice\"");
        }
        DriverKind::Cgroupfs => path.parse::<CgroupPath>().map(Some),
        DriverKind::Systemd => slice_path(path),
    };
    match parent {
        Ok(parent) => Ok(parent.map_or(CgroupParent::Shared, CgroupParent::OfPod)),
        Err(error) => Err(wrong(field, error.to_string())),
    }
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
        let parent = parent("kubepods-pod1.slice", DriverKind::Systemd).expect("valid");
        assert_eq!(parent, CgroupParent::OfPod(path.parse().expect("path")));
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
        for text in ["/kubepods/pod1", "/kubepods.slice", "a/../b.slice", "pod1"] {
            let error = refused(text, DriverKind::Systemd);
            assert!(error.contains("driver systemd"), "{error}");
            assert!(error.contains("slice"), "{error}");
        }
    }
}
