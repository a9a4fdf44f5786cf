//! The only unsafe code of Slipway: thin wrappers of system calls that have no
//! safe form elsewhere. Each takes borrowed descriptors and returns owned ones.

#[cfg(test)]
#[cfg(feature = "engine")]
pub(crate) mod filtered_child;
#[cfg(feature = "engine")]
pub(crate) mod mount_attr;
#[cfg(feature = "engine")]
pub(crate) mod user_ns;
