//! Ids of pods and containers: 64 lowercase hex digits, made from the kernel's
//! random source and checked once, where they enter.

use std::fmt;

use serde::{Deserialize, Serialize};

const HEX_LEN: usize = 64;

/// Why a text is not an id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an id of 64 lowercase hex digits")]
pub(crate) struct NotAnId(String);

/// A text that nobody guesses: 256 bits of the kernel's.
pub(crate) fn secret() -> String {
    let mut bytes = [0_u8; HEX_LEN / 2];
    let mut filled = 0;
    while filled < bytes.len() {
        // Only a signal can cut this short, and never for so few bytes.
        if let Ok(read) =
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
        {
            filled += read;
        }
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checked(text: &str) -> Result<String, NotAnId> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == HEX_LEN && text.bytes().all(hex) {
        Ok(text.to_owned())
    } else {
        Err(NotAnId(text.to_owned()))
    }
}

macro_rules! id {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub(crate) struct $name(String);

        impl $name {
            /// A new id, unlike all others.
            pub(crate) fn random() -> Self {
                Self(secret())
            }

            /// The 64 digits.
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotAnId;
            fn try_from(text: String) -> Result<Self, NotAnId> {
                checked(&text).map(Self)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NotAnId;
            fn try_from(text: &str) -> Result<Self, NotAnId> {
                checked(text).map(Self)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id!(PodId, "The id of a pod sandbox.");
id!(ContainerId, "The id of a container.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_is_an_id() {
        let id = PodId::random();
        assert_eq!(PodId::try_from(id.as_str()).expect("valid"), id);
        assert_ne!(PodId::random(), id);
    }

    #[test]
    fn upper_case_short_and_foreign_texts_are_no_ids() {
        for text in [
            "",
            "abc",
            &"A".repeat(64),
            &"g".repeat(64),
            &"a".repeat(65),
            "../x",
        ] {
            assert!(ContainerId::try_from(text).is_err(), "{text}");
        }
    }
}
