//! The error of a plugin, as CNI prints it.
//!
//! Owns the well-known codes; never decides which one a failure gets.

use serde_json::{Value, json};

/// CNI's error codes.
pub mod code {
    /// The configuration's version is not one of the plugin's.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The configuration has a field that the plugin cannot honour.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Container unknown or gone.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_` variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO_FAILURE: u32 = 5;
    /// The configuration could not be decoded.
    pub const DECODING_FAILURE: u32 = 6;
    /// The configuration is not valid.
    pub const INVALID_CONFIG: u32 = 7;
    /// The network namespace is not one that can be used.
    pub const INVALID_NETNS: u32 = 8;
    /// The same call may work later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: ADD cannot work.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Whatever a plugin gives no code of its own.
    pub const INTERNAL: u32 = 999;
}

/// Why a plugin failed.
#[derive(Debug, thiserror::Error)]
#[error("{msg}{}", if details.is_empty() { String::new() } else { format!("; {details}") })]
pub struct Error {
    /// One of CNI's codes.
    pub code: u32,
    /// What failed.
    pub msg: String,
    /// More about it; may be empty.
    pub details: String,
    /// The cause where there is one.
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with a code of its own.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        let (msg, details) = (msg.into(), String::new());
        Self {
            code,
            msg,
            details,
            source: None,
        }
    }

    /// An error without a code of its own.
    pub(crate) fn internal(msg: impl Into<String>) -> Self {
        Self::new(code::INTERNAL, msg)
    }

    /// The same error with more about it.
    pub(crate) fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Says in `msg` what failed because of `source`.
    pub(crate) fn because<E>(msg: impl Into<String>, source: E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut error = Self::internal(msg);
        error.source = Some(Box::new(source));
        error
    }

    /// What a plugin prints.
    pub fn to_value(&self, version: &str) -> Value {
        let mut value = json!({"cniVersion": version, "code": self.code, "msg": self.text()});
        if !self.details.is_empty() {
            value["details"] = json!(self.details);
        }
        value
    }

    /// The message with all its causes.
    fn text(&self) -> String {
        let mut text = self.msg.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
