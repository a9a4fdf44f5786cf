//! The second step: changes to a specification that neither the request nor the image
//! asks for.
//!
//! In comes a complete specification, out goes a complete one, before anything of the
//! container exists but its root and its cgroup. The place of devices by the Container
//! Device Interface and of NRI's plugins, neither of which this version has. Whatever
//! follows from a specification (limits, the message, what the record keeps) is
//! taken from what comes out here.

use runtime::spec::Spec;

/// Adjusts a specification; today it stays what it is.
pub(super) fn adjust(spec: Spec) -> Spec {
    spec
}
