//! Image references: the grammar, and the one normal form.
//!
//! Owns the syntax of `[registry/]repository[:tag][@digest]` as Docker and OCI
//! define it. Never contacts a registry. A parsed [`Reference`] is always
//! normal: the registry is there, `docker.io` names have their `library/`, and
//! it has a tag (`latest` unless given), a digest, or both.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// Registry of names that give none.
pub(crate) const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_REGISTRY: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normal image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What is wrong with a text that is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing to parse.
    #[error("the reference is empty")]
    Empty,
    /// 64 hex digits are an image id, and never a repository.
    #[error("`{0}` is an image id, not a name")]
    LooksLikeId(String),
    /// The registry part breaks the grammar.
    #[error("`{0}` is not a registry host")]
    Registry(String),
    /// The repository part breaks the grammar; a hint when only the case is wrong.
    #[error("`{0}` is not a repository name (lowercase letters, digits, `.`, `_`, `-`, `/`)")]
    Repository(String),
    /// Registry and repository are longer than 255 characters.
    #[error("the name has more than {MAX_NAME} characters")]
    TooLong,
    /// The tag breaks the grammar.
    #[error("`{0}` is not a tag")]
    Tag(String),
    /// The digest breaks the grammar or is not a sha256.
    #[error("`{0}` is not a sha256 digest")]
    Digest(String),
}

impl Reference {
    /// The registry's host and port, `docker.io` for Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository below the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only when there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and repository.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `name:tag` where the reference names a tag alone: a digest beside it wins.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// `name@digest` for a digest of this repository.
    #[must_use]
    pub fn at(&self, digest: Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if Digest::from_hex(text).is_ok() {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = split_digest(text)?;
        let (rest, tag) = split_tag(rest)?;
        let (registry, repository) = split_registry(rest)?;
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), ReferenceError> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((rest, digest)) => match digest.parse() {
            Ok(parsed) => Ok((rest, Some(parsed))),
            Err(_) => Err(ReferenceError::Digest(digest.to_owned())),
        },
    }
}

/// A colon begins a tag only after the last slash: before it, it is a port.
fn split_tag(text: &str) -> Result<(&str, Option<&str>), ReferenceError> {
    let after_slash = text.rfind('/').map_or(0, |i| i + 1);
    let Some(colon) = text[after_slash..].find(':') else {
        return Ok((text, None));
    };
    let (rest, tag) = text.split_at(after_slash + colon);
    let tag = &tag[1..];
    if is_tag(tag) {
        Ok((rest, Some(tag)))
    } else {
        Err(ReferenceError::Tag(tag.to_owned()))
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let Some((&first, rest)) = tag.as_bytes().split_first() else {
        return false;
    };
    tag.len() <= MAX_TAG && word(first) && rest.iter().all(|&b| word(b) || b == b'.' || b == b'-')
}

fn split_registry(text: &str) -> Result<(String, String), ReferenceError> {
    let (registry, repository) = match text.split_once('/') {
        Some((first, rest)) if is_explicit_registry(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, text),
    };
    if !is_host(registry) {
        return Err(ReferenceError::Registry(registry.to_owned()));
    }
    if !is_repository(repository) {
        return Err(ReferenceError::Repository(repository.to_owned()));
    }
    if registry != DEFAULT_REGISTRY && registry != LEGACY_REGISTRY {
        return Ok((registry.to_owned(), repository.to_owned()));
    }
    let official = if repository.contains('/') {
        ""
    } else {
        OFFICIAL
    };
    Ok((
        DEFAULT_REGISTRY.to_owned(),
        format!("{official}{repository}"),
    ))
}

/// `a/b` is a Docker Hub name; a dot, a port, a capital or `localhost` makes the first part a host.
fn is_explicit_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let valid =
                !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            if !valid {
                return false;
            }
            if port.is_empty() {
                return true;
            }
            match port.strip_prefix(':') {
                Some(port) => return is_port(port),
                None => return false,
            }
        }
        None => text
            .split_once(':')
            .map_or((text, None), |(h, p)| (h, Some(p))),
    };
    port.is_none_or(is_port) && host.split('.').all(is_host_label)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_repository(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// Runs of lowercase letters and digits, joined by one dot, one or two
/// underscores, or any number of dashes.
fn is_path_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separator = String::new();
    let mut seen = false;
    for b in text.bytes() {
        if alnum(b) {
            let joined = separator.is_empty()
                || matches!(separator.as_str(), "." | "_" | "__")
                || separator.bytes().all(|s| s == b'-');
            if !joined || (!separator.is_empty() && !seen) {
                return false;
            }
            separator.clear();
            seen = true;
        } else if matches!(b, b'.' | b'_' | b'-') {
            separator.push(char::from(b));
        } else {
            return false;
        }
    }
    seen && separator.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn normal(text: &str) -> String {
        text.parse::<Reference>()
            .unwrap_or_else(|e| panic!("{text}: {e}"))
            .to_string()
    }

    #[test]
    fn short_names_get_registry_library_and_latest() {
        assert_eq!(normal("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(normal("a/b:1"), "docker.io/a/b:1");
        assert_eq!(
            normal("index.docker.io/busybox"),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(normal("docker.io/busybox:x"), "docker.io/library/busybox:x");
        assert_eq!(normal("localhost/a"), "localhost/a:latest");
        assert_eq!(normal("localhost:5000/a:t"), "localhost:5000/a:t");
        assert_eq!(normal("127.0.0.1:5000/a"), "127.0.0.1:5000/a:latest");
        assert_eq!(normal("[::1]:5000/a/b"), "[::1]:5000/a/b:latest");
        assert_eq!(normal("[fe80::1]/a"), "[fe80::1]/a:latest");
        assert_eq!(normal("Host/a"), "Host/a:latest");
        assert_eq!(
            normal("gcr.io/k8s/a__b/c.d-e--f:V_1.-"),
            "gcr.io/k8s/a__b/c.d-e--f:V_1.-"
        );
    }

    #[test]
    fn digest_stands_beside_or_instead_of_a_tag() {
        let both: Reference = format!("busybox:1@sha256:{HEX}").parse().unwrap();
        assert_eq!(both.tag(), Some("1"));
        assert_eq!(both.tagged(), None);
        let alone: Reference = format!("busybox@sha256:{HEX}").parse().unwrap();
        assert_eq!(alone.tag(), None);
        assert_eq!(
            alone.to_string(),
            format!("docker.io/library/busybox@sha256:{HEX}")
        );
    }

    #[test]
    fn bad_references_are_refused() {
        let long = format!("{}/a", "x".repeat(300));
        let tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:",
            ":a",
            "a:-t",
            "a@",
            "a@sha256:12",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "a b",
            "h:x/a",
            "h:/a",
            "h:99999/a",
            "[::1/a",
            "[]:1/a",
            "-h.io/a",
            "a:b:c",
            "ä",
            "a\0b",
            HEX,
            &long,
            &tag,
            "a@sha256:12@sha256:12",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn tag_of_128_characters_is_the_longest() {
        assert!(
            format!("a:{}", "t".repeat(128))
                .parse::<Reference>()
                .is_ok()
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}") {
            drop(text.parse::<Reference>());
        }

        #[test]
        fn punctuation_never_panics(text in "[a-bA:/@.\\-_\\[\\]0-9]{0,40}") {
            drop(text.parse::<Reference>());
        }

        #[test]
        fn normal_form_is_a_fixed_point(
            host in prop::option::of("(localhost|[a-z]{1,5}\\.[a-z]{2,3})(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){0,3}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in prop::option::of("[0-9a-f]{64}"),
        ) {
            // Without a registry, a dot in the first part would make it one.
            let path = if host.is_none() { format!("p/{path}") } else { path };
            let mut text = host.map_or(path.clone(), |h| format!("{h}/{path}"));
            if let Some(tag) = &tag { text = format!("{text}:{tag}"); }
            if let Some(digest) = &digest { text = format!("{text}@sha256:{digest}"); }
            let parsed: Reference = text.parse().unwrap();
            let again: Reference = parsed.to_string().parse().unwrap();
            prop_assert_eq!(&parsed, &again);
            prop_assert!(parsed.name().ends_with(&path));
            prop_assert!(parsed.tag().is_some() || parsed.digest().is_some());
            if let Some(tag) = tag { prop_assert_eq!(parsed.tag(), Some(tag.as_str())); }
        }
    }
}
