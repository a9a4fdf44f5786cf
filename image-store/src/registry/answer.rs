//! Bodies of answers that are read whole: documents, tokens, refusals.
//!
//! Owns their bounds: a body is as long as a stranger wants it to be.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::error::FetchError;

const MAX_TOKEN: u64 = 1 << 20;
/// What is read of a refusal.
const MAX_MESSAGE: usize = 4096;
/// Characters of it that are shown.
const SHOWN: usize = 200;

/// How long a host may be silent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until the head of its answer.
    pub(crate) first_byte: Duration,
    /// Between two pieces of a body.
    pub(crate) stall: Duration,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The whole body, up to a bound.
pub(super) async fn read(
    host: &str,
    mut response: Response,
    limit: u64,
    patience: Patience,
) -> Result<Vec<u8>, FetchError> {
    let mut out = Vec::new();
    loop {
        let chunk = tokio::time::timeout(patience.stall, response.chunk())
            .await
            .map_err(|_| FetchError::Stalled {
                host: host.to_owned(),
                waited: patience.stall,
            })?
            .map_err(|e| FetchError::from_reqwest(host, e))?;
        let Some(chunk) = chunk else { return Ok(out) };
        if (out.len() + chunk.len()) as u64 > limit {
            return Err(FetchError::TooLong {
                host: host.to_owned(),
                limit,
            });
        }
        out.extend_from_slice(&chunk);
    }
}

/// The token in the answer of a token service.
pub(super) async fn token(
    host: &str,
    response: Response,
    patience: Patience,
) -> Result<String, FetchError> {
    let (host, status) = (host.to_owned(), response.status());
    if matches!(status.as_u16(), 400 | 401 | 403) {
        let reason = format!("its token service answered {status}");
        return Err(FetchError::Unauthorized { host, reason });
    }
    if status != StatusCode::OK {
        let message = " (token service)".to_owned();
        return Err(FetchError::Status {
            host,
            status,
            message,
        });
    }
    let bytes = match read(&host, response, MAX_TOKEN, patience).await {
        Err(FetchError::TooLong { host, limit }) => {
            let reason = format!("a token above {limit} bytes");
            return Err(FetchError::Nonsense { host, reason });
        }
        other => other?,
    };
    let token: Option<Token> = serde_json::from_slice(&bytes).ok();
    token
        .and_then(|t| t.token.filter(|t| !t.is_empty()).or(t.access_token))
        .filter(|t| !t.is_empty())
        .ok_or(FetchError::Nonsense {
            host,
            reason: "no token in the answer".to_owned(),
        })
}

/// What a registry or an object store says about its refusal, short and in one
/// line; empty when it says nothing that is understood.
pub(super) async fn message(mut response: Response, patience: Patience) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_MESSAGE
        && let Ok(Ok(Some(chunk))) = tokio::time::timeout(patience.stall, response.chunk()).await
    {
        let wanted = chunk.len().min(MAX_MESSAGE - bytes.len());
        bytes.extend_from_slice(&chunk[..wanted]);
    }
    match said(&bytes) {
        Some((code, text)) => {
            let text = format!(": {code} {text}");
            text.chars()
                .filter(|c| !c.is_control())
                .take(SHOWN)
                .collect()
        }
        None => String::new(),
    }
}

/// Code and text: JSON as the registry's protocol has it, or XML as S3 and those
/// like it write.
fn said(bytes: &[u8]) -> Option<(String, String)> {
    if let Ok(errors) = serde_json::from_slice::<Errors>(bytes) {
        let first = errors.errors.into_iter().next()?;
        return Some((first.code, first.message));
    }
    let text = String::from_utf8_lossy(bytes);
    let part = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        let (value, _) = rest.split_once(&format!("</{name}>"))?;
        Some(value.trim().to_owned())
    };
    Some((part("Code")?, part("Message").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_registries_and_of_object_stores_are_understood() {
        let both = |bytes: &str| said(bytes.as_bytes());
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(
            both(r#"{"errors":[{"code":"DENIED","message":"no"}]}"#),
            pair("DENIED", "no")
        );
        assert_eq!(
            both(
                "<?xml?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            ),
            pair("AccessDenied", "Request has expired")
        );
        assert_eq!(both("<Error><Code>X</Code><Mess"), pair("X", ""));
        for nothing in ["", "<html>", "{}", r#"{"errors":[]}"#, "<Code>x"] {
            assert_eq!(both(nothing), None, "{nothing}");
        }
    }
}
