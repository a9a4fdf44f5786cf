//! Between the messages of CRI and Slipway's own types.
//!
//! Every message is destructured in full, so that a field of a later API cannot
//! be forgotten in silence: it does not compile. What is not honoured is bound
//! to `_` here and stands with its reason in `proto/FIELDS.md`; what asks for
//! isolation and is set is refused by name.

pub(crate) mod bandwidth;
mod cgroup;
pub(crate) mod container;
pub(crate) mod filter;
pub(crate) mod image;
pub(crate) mod metrics;
pub(crate) mod resources;
pub(crate) mod sandbox;
pub(crate) mod security;
pub(crate) mod signal;
pub(crate) mod stats;
pub(crate) mod status;
mod user_ids;

use std::path::{Component, Path, PathBuf};

/// What can be wrong with a request before any work is done.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum BadRequest {
    /// A field that must be there is not.
    #[error("{field} is missing")]
    Missing {
        /// Path of the field in the request.
        field: String,
    },
    /// A value that cannot be.
    #[error("{field}: {reason}")]
    Value {
        /// Path of the field in the request.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field whose feature is not there yet.
    #[error("{field}: {feature} is not implemented yet")]
    Unsupported {
        /// Path of the field in the request.
        field: String,
        /// What it asks for.
        feature: &'static str,
    },
}

/// Shorthands for the three.
pub(crate) fn missing(field: &str) -> BadRequest {
    BadRequest::Missing {
        field: field.to_owned(),
    }
}

pub(crate) fn wrong(field: impl Into<String>, reason: impl Into<String>) -> BadRequest {
    BadRequest::Value {
        field: field.into(),
        reason: reason.into(),
    }
}

pub(crate) fn unsupported(field: &str, feature: &'static str) -> BadRequest {
    BadRequest::Unsupported {
        field: field.to_owned(),
        feature,
    }
}

/// A text that must not be empty.
pub(crate) fn required(field: &str, text: String) -> Result<String, BadRequest> {
    if text.is_empty() {
        Err(missing(field))
    } else {
        Ok(text)
    }
}

/// An absolute path without `..`.
pub(crate) fn absolute(field: &str, text: &str) -> Result<PathBuf, BadRequest> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(wrong(field, format!("{text:?} is not an absolute path")));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(wrong(field, format!("{text:?} contains \"..\"")));
    }
    no_nul(field, text)?;
    Ok(path.to_owned())
}

/// A relative path that stays below where it starts.
pub(crate) fn relative(field: &str, text: &str) -> Result<PathBuf, BadRequest> {
    let path = Path::new(text);
    if !path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(wrong(
            field,
            format!("{text:?} must be relative and without \"..\""),
        ));
    }
    no_nul(field, text)?;
    Ok(path.to_owned())
}

/// A text that can be handed to the kernel.
pub(crate) fn no_nul(field: &str, text: &str) -> Result<(), BadRequest> {
    if text.contains('\0') {
        Err(wrong(field, "contains a NUL byte"))
    } else {
        Ok(())
    }
}

/// The highest id of a user or group: Kubernetes and the OCI runtimes know no higher
/// one. The kernel's `uid_t` has room for twice as many, of which the last means
/// "unchanged".
pub(crate) const MAX_ID: u32 = i32::MAX.unsigned_abs();

/// An id of a user or group.
pub(crate) fn kernel_id(field: &str, id: i64) -> Result<u32, BadRequest> {
    match u32::try_from(id) {
        Ok(id) if id <= MAX_ID => Ok(id),
        _ => {
            let reason = format!("{id} is no user or group id, the highest is {MAX_ID}");
            Err(wrong(field, reason))
        }
    }
}
