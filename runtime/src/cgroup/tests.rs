//! Tests against the cgroups of this machine.
