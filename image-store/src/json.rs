//! JSON from registries and archives.
//!
//! Owns the bound on what a document may cost once it is parsed: an element of
//! two bytes becomes a value of dozens, so a document is judged by its values
//! before it is parsed, besides by its bytes. And the leniency that others show:
//! `null` where a list, a map or a text belongs counts as absent.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Values in one document. An index of all platforms has some hundreds, an image
/// of 500 layers with its history some thousands.
const MAX_VALUES: usize = 100_000;

/// A document that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JsonError {
    /// It is no JSON, or not of the form that it has to be.
    #[error(transparent)]
    Form(#[from] serde_json::Error),
    /// It is made to cost memory.
    #[error("more than {MAX_VALUES} values")]
    TooMany,
}

/// Reads a document.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    if values(bytes) > MAX_VALUES {
        return Err(JsonError::TooMany);
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Values that a text holds, or some more where it is no JSON.
fn values(bytes: &[u8]) -> usize {
    let (mut count, mut in_text, mut escaped) = (1, false, false);
    for &byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => count += 1,
            _ => {}
        }
    }
    count
}

/// For fields that may be `null` as well as absent.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Drops what is `null`, at any depth.
pub(crate) fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(list) => {
            list.retain(|value| !value.is_null());
            list.iter_mut().for_each(without_nulls);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_bounded_by_their_values_and_not_by_commas_in_texts() {
        let flood = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert!(matches!(
            parse::<Value>(flood.as_bytes()),
            Err(JsonError::TooMany)
        ));
        let nested = format!("[{}{{}}]", "{},".repeat(MAX_VALUES));
        assert!(matches!(
            parse::<Value>(nested.as_bytes()),
            Err(JsonError::TooMany)
        ));
        let text = format!(
            r#"{{"a":"{}\"{}"}}"#,
            ",".repeat(MAX_VALUES),
            "[,".repeat(MAX_VALUES)
        );
        assert!(parse::<Value>(text.as_bytes()).is_ok());
    }

    #[test]
    fn what_is_null_counts_as_absent() {
        let mut value =
            serde_json::json!({"a": null, "b": [null, 1, {"c": null}], "d": {"e": null}});
        without_nulls(&mut value);
        assert_eq!(value, serde_json::json!({"b": [1, {}], "d": {}}));
    }
}
