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
    let config = image.config.config().as_ref();
    let user = config
        .and_then(|config| config.user().clone())
        .unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default();
    let (uid, username) = match (user, user.parse::<i64>()) {
        ("", _) => (Some(v1::Int64Value { value: 0 }), String::new()),
        (_, Ok(value)) => (Some(v1::Int64Value { value }), String::new()),
        (name, Err(_)) => (None, name.to_owned()),
    };
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
