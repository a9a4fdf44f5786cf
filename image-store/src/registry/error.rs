//! What one host can answer wrongly, and what that means for a pull.

use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;

use super::guard::OffLimits;
use crate::digest::Digest;
use crate::error::PullError;
use crate::reference::Reference;

/// Why one host did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// No connection: refused, no such name, a certificate not trusted.
    #[error("connect to {host}")]
    Connect {
        host: String,
        source: reqwest::Error,
    },
    /// The connection broke.
    #[error("transfer from {host}")]
    Transfer {
        host: String,
        source: reqwest::Error,
    },
    /// The connection ended early without an error.
    #[error("{host} ended the transfer {missing} bytes early")]
    Short { host: String, missing: u64 },
    /// Nothing came, or too little.
    #[error("{host} sent less than the least speed for {} ms", waited.as_millis())]
    Stalled { host: String, waited: Duration },
    /// An answer that helps nobody.
    #[error("{host} answered {status}{message}")]
    Status {
        host: String,
        status: StatusCode,
        message: String,
    },
    /// Other credentials are needed.
    #[error("{host} refuses access: {reason}")]
    Unauthorized { host: String, reason: String },
    /// The host does not have it.
    #[error("{host} does not have it")]
    NotFound { host: String },
    /// It sends elsewhere, and there we do not go.
    #[error("{host} redirects to a place that is not followed: {reason}")]
    Redirect { host: String, reason: String },
    /// It sends to the node itself or its link, and there we do not go.
    #[error("{host} sends to a place that is off limits")]
    OffLimits { host: String, source: OffLimits },
    /// Another host, to which the registry redirects (an object store, most
    /// often), refuses.
    #[error("{host}, to which {from} redirects, answered {status}{message}")]
    Store {
        host: String,
        from: String,
        status: StatusCode,
        message: String,
    },
    /// The answer makes no sense.
    #[error("{host} answered nonsense: {reason}")]
    Nonsense { host: String, reason: String },
    /// The document is too long.
    #[error("{host} sent more than {limit} bytes")]
    TooLong { host: String, limit: u64 },
    /// The document is another one.
    #[error("{host} sent {got} for {want}")]
    Mismatch {
        host: String,
        want: Digest,
        got: Digest,
    },
    /// The configuration leaves no host to ask.
    #[error("no host is configured that may be asked for {registry}")]
    NoHost { registry: String },
}

impl FetchError {
    /// Sorts the library's errors.
    pub(crate) fn from_reqwest(host: &str, source: reqwest::Error) -> Self {
        let host = host.to_owned();
        // The address is in the message already, and may carry a signature.
        let source = source.without_url();
        if source.is_connect() || source.is_builder() {
            Self::Connect { host, source }
        } else {
            Self::Transfer { host, source }
        }
    }

    /// Whether the same host may do better in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Transfer { .. } | Self::Short { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => may_pass(*status),
            // A signature that has expired, most often: asked again, the
            // registry makes a new one.
            Self::Store { status, .. } => *status == StatusCode::FORBIDDEN || may_pass(*status),
            _ => false,
        }
    }

    fn host(&self) -> &str {
        match self {
            Self::Connect { host, .. }
            | Self::Transfer { host, .. }
            | Self::Short { host, .. }
            | Self::Stalled { host, .. }
            | Self::Status { host, .. }
            | Self::Unauthorized { host, .. }
            | Self::NotFound { host }
            | Self::Redirect { host, .. }
            | Self::OffLimits { host, .. }
            | Self::Store { host, .. }
            | Self::Nonsense { host, .. }
            | Self::TooLong { host, .. }
            | Self::Mismatch { host, .. }
            | Self::NoHost { registry: host } => host,
        }
    }

    /// What it means for a pull when no other host did better.
    pub(crate) fn into_pull(self, reference: &Reference, what: &str) -> PullError {
        match self {
            Self::Unauthorized { host, reason } => PullError::Unauthorized { host, reason },
            Self::NotFound { .. } if what == "manifest" => PullError::NotFound {
                reference: reference.to_string(),
            },
            Self::NotFound { .. } => PullError::NotFound {
                reference: format!("the {what} of {reference}"),
            },
            Self::TooLong { limit, .. } => PullError::TooLarge {
                what: what.to_owned(),
                size: limit + 1,
                limit,
            },
            Self::Mismatch { want, got, .. } => PullError::DigestMismatch {
                what: what.to_owned(),
                want,
                got,
            },
            other => PullError::RegistryUnavailable {
                host: other.host().to_owned(),
                source: Arc::new(other),
            },
        }
    }
}

fn may_pass(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}
