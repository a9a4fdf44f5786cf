//! Images and credentials.

use image_store::{Auth, Image};
use proto::v1;

use super::{BadRequest, missing};

/// The name in a request that must have one.
pub(crate) fn name_from_proto(image: Option<v1::ImageSpec>) -> Result<String, BadRequest> {
    let v1::ImageSpec {
        image,
        // Repeated in lists by engines that store them; nothing follows from them.
        annotations: _,
        user_specified_image: _,
        // Every handler launches from the same snapshots.
        runtime_handler: _,
        image_ref: _,
    } = image.ok_or_else(|| missing("image"))?;
    super::required("image.image", image)
}

/// The name in a filter, where it may be left out.
pub(crate) fn filter_from_proto(filter: Option<v1::ImageFilter>) -> Option<String> {
    let v1::ImageFilter { image } = filter.unwrap_or_default();
    name_from_proto(image).ok()
}

/// Credentials; an empty message is none.
pub(crate) fn auth_from_proto(auth: Option<v1::AuthConfig>) -> Option<Auth> {
    let v1::AuthConfig {
        username,
        password,
        auth,
        server_address,
        identity_token,
        registry_token,
    } = auth?;
    let given = |text: String| (!text.is_empty()).then_some(text);
    let auth = Auth {
        username: given(username),
        password: given(password),
        auth: given(auth),
        server_address: given(server_address),
        identity_token: given(identity_token),
        registry_token: given(registry_token),
    };
    let any = auth.username.is_some()
        || auth.auth.is_some()
        || auth.identity_token.is_some()
        || auth.registry_token.is_some();
    any.then_some(auth)
}

/// An image with all its names.
pub(crate) fn to_proto(image: &Image) -> v1::Image {
    let user = image.summary.user.split(':').next().unwrap_or_default();
    let (uid, username) = user_to_proto(user);
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(v1::ImageSpec {
            image: image.id.to_string(),
            ..Default::default()
        }),
        pinned: image.pinned,
    }
}

/// The user of an image by the rule that containers run by: digits are an id, the
/// rest is a name, and nothing is root.
fn user_to_proto(user: &str) -> (Option<v1::Int64Value>, String) {
    let id = |value| (Some(v1::Int64Value { value }), String::new());
    match user {
        "" => id(0),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            // More digits than fit are no id that anything could run as.
            id(digits.parse().unwrap_or(i64::MAX))
        }
        name => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_are_an_id() {
        let id = |text| user_to_proto(text).0.map(|id| id.value);
        assert_eq!(id(""), Some(0));
        assert_eq!(id("1000"), Some(1000));
        assert_eq!(id("99999999999999999999"), Some(i64::MAX));
        for name in ["+0", "-1", "root", "0x0"] {
            assert_eq!(user_to_proto(name), (None, name.to_owned()), "{name}");
        }
    }
}
