//! Bytes that are a text as a rule, such as the value of an environment variable.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Bytes; in a record a text, or base64 where they are none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Other { base64: String },
}

impl From<Bytes> for Written {
    fn from(bytes: Bytes) -> Self {
        match String::from_utf8(bytes.0) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Other {
                base64: STANDARD.encode(error.as_bytes()),
            },
        }
    }
}

impl TryFrom<Written> for Bytes {
    type Error = base64::DecodeError;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        Ok(Self(match written {
            Written::Text(text) => text.into_bytes(),
            Written::Other { base64 } => STANDARD.decode(base64)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_a_record_and_a_text_stays_one() {
        for (bytes, written) in [
            (&b"plain"[..], "\"plain\""),
            (&b"\xff\x00"[..], "{\"base64\":\"/wA=\"}"),
        ] {
            let bytes = Bytes(bytes.to_vec());
            let text = serde_json::to_string(&bytes).expect("written");
            assert_eq!(text, written);
            assert_eq!(serde_json::from_str::<Bytes>(&text).expect("read"), bytes);
        }
    }
}
