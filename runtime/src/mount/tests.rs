//! Tests that attach detached mounts in a mount namespace of their own.
