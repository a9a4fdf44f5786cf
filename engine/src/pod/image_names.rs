//! Which of an image's names a container's status shows.
//!
//! The kubelet names images by their ids. What a status answers goes into the pod's
//! status, where people read it: `image` a tag and `imageID` (the `image_ref` of CRI)
//! the repository with the manifest's digest, as with the other engines.

use image_store::{Image, Reference};

use crate::model::ImageName;

/// The names of a container's image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// A tag; without one the repository with the digest; without that the
    /// name in the request.
    pub(crate) name: String,
    /// The repository with the manifest's digest; without one the image's id.
    pub(crate) reference: String,
}

/// The names of `image` for a container that asked for it as `asked`.
pub(crate) fn of(image: &Image, asked: &ImageName) -> Names {
    let wanted = [&asked.user_specified, &asked.image]
        .into_iter()
        .find_map(|text| known(image, text));
    let first = image.tags.first().or_else(|| image.digests.first());
    let name = wanted
        .or_else(|| first.cloned())
        .unwrap_or_else(|| asked.image.clone());
    let repository = repository(&name);
    let pinned = image.digests.iter().find(|digest| **digest == name);
    let resolved = || image.resolved.get(&name);
    // The latest: what an image was pulled by last.
    let mut latest = image.digests.iter().rev();
    let same = || latest.find(|digest| self::repository(digest) == repository);
    let reference = pinned.or_else(resolved).or_else(same);
    let reference = reference.or_else(|| image.digests.last()).cloned();
    Names {
        name,
        reference: reference.unwrap_or_else(|| image.id.to_string()),
    }
}

/// The spelling under which the image has the name that `text` means.
fn known(image: &Image, text: &str) -> Option<String> {
    let reference: Reference = text.parse().ok()?;
    let all = || image.tags.iter().chain(&image.digests);
    let tagged = reference.tagged();
    let pinned = reference.digest().map(|digest| reference.at(digest));
    let spellings = [tagged, pinned].into_iter().flatten();
    let mut found = spellings.filter(|spelling| all().any(|name| name == spelling));
    found.next()
}

/// A name without its tag or digest.
fn repository(name: &str) -> &str {
    if let Some((repository, _)) = name.split_once('@') {
        return repository;
    }
    // A colon before the last slash belongs to a port.
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:abababababababababababababababababababababababababababababababab";

    fn image(tags: &[&str], repositories: &[&str]) -> Image {
        let own = |text: &&str| (*text).to_owned();
        Image {
            id: DIGEST.parse().map(image_store::ImageId).expect("digest"),
            tags: tags.iter().map(own).collect(),
            digests: repositories
                .iter()
                .map(|name| format!("{name}@{DIGEST}"))
                .collect(),
            resolved: std::collections::BTreeMap::new(),
            size: 1,
            pinned: false,
            summary: image_store::Summary::default(),
        }
    }

    fn asked(image: &str, user_specified: &str) -> ImageName {
        ImageName {
            image: image.to_owned(),
            user_specified: user_specified.to_owned(),
            ..ImageName::default()
        }
    }

    fn names(image: &Image, asked: &ImageName) -> (String, String) {
        let Names { name, reference } = of(image, asked);
        (name, reference)
    }

    #[test]
    fn an_id_is_shown_as_a_tag_and_a_digest() {
        let image = image(
            &["a.io/x:1", "docker.io/library/busybox:latest"],
            &["a.io/x", "docker.io/library/busybox"],
        );
        let of_busybox = format!("docker.io/library/busybox@{DIGEST}");
        for (text, user) in [
            (DIGEST, "busybox"),
            (DIGEST, "docker.io/busybox:latest"),
            ("busybox", ""),
        ] {
            let (name, reference) = names(&image, &asked(text, user));
            assert_eq!(name, "docker.io/library/busybox:latest", "{text} {user}");
            assert_eq!(reference, of_busybox, "{text} {user}");
        }
        let (name, reference) = names(&image, &asked(DIGEST, "gone:1"));
        assert_eq!(
            (name, reference),
            ("a.io/x:1".into(), format!("a.io/x@{DIGEST}"))
        );
    }

    #[test]
    fn what_has_no_tag_is_shown_by_its_digest_and_what_has_none_by_its_id() {
        let pinned = format!("r.io:5000/y@{DIGEST}");
        let (name, reference) = names(&image(&[], &["r.io:5000/y"]), &asked(DIGEST, &pinned));
        assert_eq!(
            (name.as_str(), reference.as_str()),
            (pinned.as_str(), pinned.as_str())
        );
        let (name, reference) = names(&image(&["r.io:5000/y:1"], &[]), &asked(DIGEST, ""));
        assert_eq!(
            (name.as_str(), reference.as_str()),
            ("r.io:5000/y:1", DIGEST)
        );
        let (name, reference) = names(&image(&[], &[]), &asked(DIGEST, ""));
        assert_eq!((name.as_str(), reference.as_str()), (DIGEST, DIGEST));
    }
}
