//! What a request says of cgroups to the paths that the kernel shows.
//!
//! With the cgroupfs driver `cgroup_parent` is such a path. With the systemd driver it is
//! the name of a slice (`kubepods-besteffort-pod1.slice`), whose dashes stand for the slices
//! above it: that name is turned into a path here, once that driver is there.

use super::{BadRequest, wrong};
use crate::model::CgroupParent;

/// The parent of a pod's cgroups. An empty text names none, and so does the root, where no
/// pod can be; slashes at the end mean nothing.
///
/// # Errors
/// The text is no path below the mount points of the hierarchies.
pub(super) fn parent_from_proto(field: &str, text: &str) -> Result<CgroupParent, BadRequest> {
    let path = text.trim_end_matches('/');
    if path.is_empty() {
        return Ok(CgroupParent::Shared);
    }
    if path.ends_with(".slice") && !path.trim_start_matches('/').contains('/') {
        tracing::debug!(
            cgroup_parent = path,
            "a slice name below the cgroupfs driver is a plain folder"
        );
    }
    match path.parse() {
        Ok(path) => Ok(CgroupParent::OfPod(path)),
        Err(error) => Err(wrong(field, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_none_or_a_path() {
        for none in ["", "/", "//"] {
            let parent = parent_from_proto("f", none).expect("valid");
            assert_eq!(parent, CgroupParent::Shared, "{none:?}");
        }
        for (text, path) in [
            ("/kubepods/pod1", "/kubepods/pod1"),
            ("/kubepods/pod1//", "/kubepods/pod1"),
            ("/kubepods.slice", "/kubepods.slice"),
        ] {
            let parent = parent_from_proto("f", text).expect("valid");
            assert_eq!(parent.path().as_str(), path);
        }
    }

    #[test]
    fn a_parent_that_is_no_path_is_refused_with_the_field() {
        for text in [
            "kubepods/pod1",
            "kubepods-pod1.slice",
            "/a/../b",
            "/..",
            "/a\0b",
            // No cgroup could be made there, nor could the sandbox be undone.
            "/a//b",
            "/./a",
        ] {
            let error = parent_from_proto("config.linux.cgroup_parent", text);
            let error = error.expect_err("refused").to_string();
            assert!(error.starts_with("config.linux.cgroup_parent: "), "{error}");
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
