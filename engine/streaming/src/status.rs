//! How an outcome is told on the error stream.
//!
//! Owns its two spellings: since version 4 of the protocol a `metav1.Status`
//! as JSON, before that plain text, and nothing for success.

use bytes::Bytes;
use serde_json::json;

use crate::channels::Verdict;

/// The spelling that a protocol version has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// `metav1.Status`.
    Status,
    /// Text, on failure.
    Text,
}

impl Spelling {
    /// What to send before the error stream ends.
    pub(crate) fn spell(self, verdict: &Verdict) -> Option<Bytes> {
        match self {
            Self::Status => Some(status(verdict).to_string().into()),
            Self::Text => match verdict {
                Verdict::Exited(0) => None,
                verdict => Some(text(verdict).into()),
            },
        }
    }
}

fn text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Exited(code) => format!("command terminated with non-zero exit code: {code}"),
        Verdict::Failed(message) => format!("Internal error occurred: {message}"),
    }
}

fn status(verdict: &Verdict) -> serde_json::Value {
    match verdict {
        Verdict::Exited(0) => json!({"metadata": {}, "status": "Success"}),
        // kubectl takes the code from the cause, and nothing but 8 bits of it.
        Verdict::Exited(code) => json!({
            "metadata": {}, "status": "Failure", "message": text(verdict),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Verdict::Failed(message) => json!({
            "metadata": {}, "status": "Failure", "message": text(verdict),
            "reason": "InternalError",
            "details": {"causes": [{"message": message}]},
            "code": 500,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelt(spelling: Spelling, verdict: &Verdict) -> String {
        let bytes = spelling.spell(verdict).unwrap_or_default();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn success_is_a_status_or_silence() {
        let success = r#"{"metadata":{},"status":"Success"}"#;
        assert_eq!(spelt(Spelling::Status, &Verdict::Exited(0)), success);
        assert_eq!(spelt(Spelling::Text, &Verdict::Exited(0)), "");
    }

    #[test]
    fn an_exit_code_is_a_cause() {
        let told = spelt(Spelling::Status, &Verdict::Exited(3));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["reason"], "NonZeroExitCode");
        assert_eq!(told["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(told["details"]["causes"][0]["message"], "3");
        assert!(spelt(Spelling::Text, &Verdict::Exited(3)).ends_with(": 3"));
    }

    #[test]
    fn a_failure_is_an_internal_error() {
        let told = spelt(Spelling::Status, &Verdict::Failed("no shell".to_owned()));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told["reason"], &told["code"]),
            (&json!("InternalError"), &json!(500))
        );
        assert!(told["message"].as_str().unwrap().ends_with("no shell"));
    }
}
