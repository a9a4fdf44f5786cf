//! Below which cgroup those of a pod and its containers are made.

use runtime::cgroup::{CgroupError, CgroupPath, Driver};
use serde::{Deserialize, Serialize};

/// The parent of the cgroups of a pod. In a record the path, or an empty text where the
/// request named none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum CgroupParent {
    /// The request names none: a cgroup that all such pods share, which the driver names.
    Shared,
    /// The cgroup that the kubelet made for this pod alone, with the pod's limits.
    OfPod(CgroupPath),
}

impl CgroupParent {
    /// Where it is, with the parent that pods share.
    pub(crate) fn path(&self, driver: &dyn Driver) -> CgroupPath {
        match self {
            Self::Shared => driver.shared_parent(),
            Self::OfPod(path) => path.clone(),
        }
    }
}

impl TryFrom<String> for CgroupParent {
    type Error = CgroupError;

    fn try_from(text: String) -> Result<Self, CgroupError> {
        match text.as_str() {
            "" => Ok(Self::Shared),
            path => path.parse().map(Self::OfPod),
        }
    }
}

impl From<CgroupParent> for String {
    fn from(parent: CgroupParent) -> Self {
        match parent {
            CgroupParent::Shared => Self::new(),
            CgroupParent::OfPod(path) => path.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_former_engines_say_the_same() {
        let pod = "/kubepods/besteffort/pod1";
        let of_pod = CgroupParent::OfPod(pod.parse().expect("path"));
        for (text, wanted) in [
            ("\"\"", CgroupParent::Shared),
            ("\"/kubepods/besteffort/pod1\"", of_pod),
        ] {
            let parent: CgroupParent = serde_json::from_str(text).expect("read");
            assert_eq!(parent, wanted);
            assert_eq!(serde_json::to_string(&parent).expect("written"), text);
        }
        // Slipway's own by name is somebody's choice.
        let chosen: CgroupParent = serde_json::from_str("\"/slipway\"").expect("read");
        assert_ne!(chosen, CgroupParent::Shared);
    }

    #[test]
    fn a_damaged_path_is_named() {
        for text in ["/", "kubepods", "/a//b", "/a/../b", "/a/"] {
            let text = format!("{text:?}");
            let error = serde_json::from_str::<CgroupParent>(&text).expect_err("refused");
            assert!(error.to_string().contains(&text), "{error}");
        }
    }
}
