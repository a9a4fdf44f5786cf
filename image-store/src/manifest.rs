//! Manifests, indexes and configurations: what registries and layouts serve.
//!
//! Owns the documents' forms and the choice among an index's entries. Pure:
//! takes bytes whose digest the caller has verified.

use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde_json::Value;

use crate::configs::Texts;
use crate::digest::{DiffId, Digest, ImageId, LayerDigest};
use crate::error::PullError;
use crate::image::Summary;
use crate::json::{self, JsonError, or_default};
use crate::platform::{Machine, Platform};
use crate::text::shown;

/// Manifests above this are refused.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Configurations above this are refused, as other engines refuse them.
pub(crate) const MAX_CONFIG: u64 = 4 << 20;
/// Bytes of the user that a configuration names: all images' are in one list.
const MAX_USER: usize = 512;
/// Bytes of the signal that a configuration names: the longest is `SIGRTMAX-14`.
const MAX_SIGNAL: usize = 32;
/// Bytes of a configuration's environment, commands, volumes and working directory.
/// Linux takes no argument or variable of more than 128 KiB, and usually 2 MiB of all.
const MAX_RUN: usize = 256 << 10;
/// Texts of them: each costs some dozens of bytes wherever it is kept.
const MAX_RUN_TEXTS: usize = 4096;
/// Overlayfs stacks 500 directories: a patch and, for a read-only view, what was
/// written take two of them.
pub(crate) const MAX_LAYERS: usize = 498;

/// Entries of an index that do not say what machine they are for, and have to be
/// asked one by one.
const MAX_UNSAID: usize = 32;

/// Platforms that a message names.
const MAX_OFFERED: usize = 20;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What early registries say of configurations.
const UNSAID_CONFIG: &str = "application/octet-stream";

/// What to accept when asking for a manifest: all that is read here, and the
/// rest too, so that it can be refused by its name. One line, since some
/// registries read no second.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

/// Points to content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    /// What it is.
    #[serde(default, deserialize_with = "or_default")]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// Other places that have it.
    #[serde(default)]
    pub urls: Option<Vec<String>>,
    /// The machine it is for.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Notes, such as names in a layout.
    #[serde(default)]
    pub annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// A list of manifests.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Index {
    /// Its entries.
    #[serde(default, deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
}

/// One image's parts.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// Layers from the lowest to the topmost.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
}

/// Either of the documents that a reference leads to.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    /// Several images.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// A layer of a manifest, checked and joined with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Layer {
    /// The digest of its plain tar.
    pub diff_id: DiffId,
    /// The digest of what is fetched.
    pub blob: LayerDigest,
    /// The size of what is fetched.
    pub size: u64,
    /// Where to fetch it when not from the registry.
    pub urls: Vec<String>,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Its digest.
    pub id: ImageId,
    /// Its exact text, and what of it processes get.
    pub texts: Texts,
    /// What of it lists show.
    pub summary: Summary,
    /// The machine that it is for.
    pub platform: Platform,
    /// The plain layers, from the lowest to the topmost.
    pub diff_ids: Vec<DiffId>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct ConfigProbe {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<DiffId>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Nonsense(&'static str);

#[derive(Debug, thiserror::Error)]
#[error("{what}: more than {most} {unit}")]
struct TooLong {
    what: &'static str,
    most: usize,
    unit: &'static str,
}

fn bad(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> PullError {
    PullError::BadManifest {
        what: what.to_owned(),
        source: Arc::new(source),
    }
}

impl Document {
    /// Reads a document. What it says of itself goes before the header that it
    /// came with: registries send `text/plain` and worse.
    pub(crate) fn parse(bytes: &[u8], header: Option<&str>) -> Result<Self, PullError> {
        let probe: Probe = json::parse(bytes).map_err(|e| bad("manifest", e))?;
        let said = probe.media_type.as_deref().or(header).unwrap_or_default();
        let said = said.split(';').next().unwrap_or_default().trim().to_owned();
        let schema1 = probe.schema_version == Some(1) || probe.fs_layers.is_some();
        if schema1 || said.contains("distribution.manifest.v1+") {
            let media_type = "application/vnd.docker.distribution.manifest.v1+json".to_owned();
            return Err(PullError::UnsupportedMediaType {
                what: "manifest".into(),
                media_type,
            });
        }
        // Read one way here and another way by a scanner: refuse such documents.
        let (index, image) = (
            probe.manifests.is_some(),
            probe.config.is_some() || probe.layers.is_some(),
        );
        match (said.as_str(), index, image) {
            (_, true, true) => Err(bad("manifest", Nonsense("both an index and an image"))),
            (OCI_MANIFEST | DOCKER_MANIFEST, true, _) | (OCI_INDEX | DOCKER_LIST, _, true) => {
                Err(bad(
                    "manifest",
                    Nonsense("its media type and its content disagree"),
                ))
            }
            (_, true, false) => Ok(Self::Index(
                json::parse(bytes).map_err(|e| bad("index", e))?,
            )),
            (_, false, true) => Ok(Self::Manifest(
                json::parse(bytes).map_err(|e| bad("manifest", e))?,
            )),
            (_, false, false) => Err(PullError::UnsupportedMediaType {
                what: "manifest".into(),
                media_type: shown(&said),
            }),
        }
    }
}

impl Index {
    /// The entries to try, the best first: those that fit this machine, or
    /// those without a platform where none names one that fits.
    #[must_use]
    pub(crate) fn candidates(&self, machine: &Machine) -> Vec<&Descriptor> {
        let usable = |d: &&Descriptor| {
            matches!(
                d.media_type.as_str(),
                "" | OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST
            )
        };
        let mut fitting: Vec<(usize, &Descriptor)> = self
            .manifests
            .iter()
            .filter(usable)
            .filter_map(|d| Some((machine.rank(d.platform.as_ref()?)?, d)))
            .collect();
        fitting.sort_by_key(|(rank, _)| *rank);
        if let Some((_, best)) = fitting.first() {
            return vec![best];
        }
        self.manifests
            .iter()
            .filter(usable)
            .filter(|d| d.platform.as_ref().is_none_or(Platform::is_unsaid))
            .take(MAX_UNSAID)
            .collect()
    }

    /// The platforms there are, for messages.
    #[must_use]
    pub(crate) fn offered(&self) -> String {
        let names: Vec<String> = self
            .manifests
            .iter()
            .filter_map(|d| d.platform.as_ref().map(ToString::to_string))
            .take(MAX_OFFERED + 1)
            .collect();
        match names.len() {
            0 => "none".to_owned(),
            1..=MAX_OFFERED => names.join(", "),
            _ => format!("{} and more", names[..MAX_OFFERED].join(", ")),
        }
    }
}

impl Manifest {
    /// Refuses what is no container image before anything is fetched.
    pub(crate) fn check(&self) -> Result<(), PullError> {
        let config = &self.config;
        if !matches!(
            config.media_type.as_str(),
            OCI_CONFIG | DOCKER_CONFIG | UNSAID_CONFIG | ""
        ) {
            return Err(PullError::UnsupportedMediaType {
                what: "configuration".into(),
                media_type: shown(&config.media_type),
            });
        }
        if config.size > MAX_CONFIG {
            return Err(PullError::TooLarge {
                what: "configuration".into(),
                size: config.size,
                limit: MAX_CONFIG,
            });
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(bad("manifest", Nonsense("more than 498 layers")));
        }
        self.layers.iter().try_for_each(check_layer)
    }

    /// Joins the layers with the plain digests of the configuration.
    pub(crate) fn layers(&self, config: &Config) -> Result<Vec<Layer>, PullError> {
        if self.layers.len() != config.diff_ids.len() {
            return Err(bad(
                "manifest",
                Nonsense("another number of layers than the configuration"),
            ));
        }
        let join = |(descriptor, diff_id): (&Descriptor, &DiffId)| Layer {
            diff_id: *diff_id,
            blob: LayerDigest(descriptor.digest),
            size: descriptor.size,
            urls: if is_foreign(&descriptor.media_type) {
                descriptor.urls.clone().unwrap_or_default()
            } else {
                Vec::new()
            },
        };
        Ok(self.layers.iter().zip(&config.diff_ids).map(join).collect())
    }
}

/// Layers that the registry itself may not have.
fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

fn check_layer(layer: &Descriptor) -> Result<(), PullError> {
    let base = layer
        .media_type
        .strip_suffix("+gzip")
        .or_else(|| layer.media_type.strip_suffix("+zstd"))
        .or_else(|| layer.media_type.strip_suffix(".gzip"))
        .or_else(|| layer.media_type.strip_suffix(".zstd"))
        .unwrap_or(&layer.media_type);
    let known = matches!(
        base,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
    );
    let fetchable = !is_foreign(base) || layer.urls.as_ref().is_some_and(|u| !u.is_empty());
    if known && fetchable {
        return Ok(());
    }
    Err(PullError::UnsupportedMediaType {
        what: format!("layer {}", layer.digest),
        media_type: shown(&layer.media_type),
    })
}

impl Config {
    /// Reads a configuration whose bytes have the digest `id`.
    pub(crate) fn parse(id: ImageId, bytes: &[u8]) -> Result<Self, PullError> {
        let fail = |e: JsonError| bad("configuration", e);
        let form = |e: serde_json::Error| bad("configuration", e);
        let value = lenient(bytes).map_err(fail)?;
        let ConfigProbe { platform, rootfs } = ConfigProbe::deserialize(&value).map_err(form)?;
        let parsed: ImageConfiguration = serde_json::from_value(value).map_err(form)?;
        let inner = parsed.config().clone().unwrap_or_default();
        check_sizes(&inner).map_err(|e| bad("configuration", e))?;
        let text = std::str::from_utf8(bytes)
            .map_err(|e| bad("configuration", e))?
            .to_owned();
        Ok(Self {
            id,
            summary: Summary::of(&inner),
            texts: Texts {
                config: text,
                process: of_process(inner),
            },
            platform,
            diff_ids: rootfs.diff_ids,
        })
    }
}

/// What a process is started with is in memory at every start, and in the records of
/// containers: a configuration that has too much of it is refused at once.
fn check_sizes(config: &oci_spec::image::Config) -> Result<(), TooLong> {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let lists = [
        config.env(),
        config.entrypoint(),
        config.cmd(),
        config.volumes(),
    ];
    let texts = || lists.into_iter().flatten().flatten();
    let run = texts().map(String::len).sum::<usize>() + length(config.working_dir());
    let what = "Env, Entrypoint, Cmd, Volumes and WorkingDir";
    for (what, has, most, unit) in [
        ("User", length(config.user()), MAX_USER, "bytes"),
        (
            "StopSignal",
            length(config.stop_signal()),
            MAX_SIGNAL,
            "bytes",
        ),
        (what, run, MAX_RUN, "bytes"),
        (what, texts().count(), MAX_RUN_TEXTS, "texts"),
    ] {
        if has > most {
            return Err(TooLong { what, most, unit });
        }
    }
    Ok(())
}

/// What of a configuration the processes of containers get.
fn of_process(config: oci_spec::image::Config) -> oci_spec::image::Config {
    let mut process = config;
    process.set_labels(None).set_exposed_ports(None);
    process
}

/// Reads a whole configuration that was accepted before.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<ImageConfiguration, JsonError> {
    Ok(serde_json::from_value(lenient(bytes)?)?)
}

/// Builders leave out what the standard asks for, and write `null` for what is
/// empty.
fn lenient(bytes: &[u8]) -> Result<Value, JsonError> {
    let mut value: Value = json::parse(bytes)?;
    // Sets, as Go writes them: a member is a member, whatever stands behind it.
    for set in ["ExposedPorts", "Volumes"] {
        let members = value.get_mut("config").and_then(|c| c.get_mut(set));
        for member in members.and_then(Value::as_object_mut).into_iter().flatten() {
            *member.1 = Value::Object(serde_json::Map::new());
        }
    }
    json::without_nulls(&mut value);
    let Some(object) = value.as_object_mut() else {
        return Ok(value);
    };
    for text in ["architecture", "os"] {
        object.entry(text).or_insert_with(|| "".into());
    }
    if object.get("created").and_then(Value::as_str) == Some("") {
        object.remove("created");
    }
    let rootfs = object
        .entry("rootfs")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(rootfs) = rootfs.as_object_mut() {
        rootfs.entry("type").or_insert_with(|| "layers".into());
        rootfs
            .entry("diff_ids")
            .or_insert_with(|| Value::Array(Vec::new()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(config: &str, layers: &[&str]) -> String {
        let layers: Vec<String> = layers
            .iter()
            .map(|t| format!(r#"{{"mediaType":"{t}","digest":"{D}","size":1}}"#))
            .collect();
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{D}","size":2}},"layers":[{}]}}"#,
            layers.join(",")
        )
    }

    fn check(text: &str) -> Result<(), PullError> {
        match Document::parse(text.as_bytes(), None)? {
            Document::Manifest(m) => m.check(),
            Document::Index(_) => panic!("an index"),
        }
    }

    #[test]
    fn docker_and_oci_layers_are_known() {
        let layers = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
        ];
        check(&manifest(OCI_CONFIG, &layers)).unwrap();
        check(&manifest(DOCKER_CONFIG, &layers)).unwrap();
    }

    #[test]
    fn what_is_no_image_is_refused_by_media_type() {
        let helm = "application/vnd.cncf.helm.config.v1+json";
        for (text, want) in [
            (manifest(helm, &[]), helm),
            (
                manifest(OCI_CONFIG, &["application/x-thing"]),
                "application/x-thing",
            ),
            (
                manifest(
                    OCI_CONFIG,
                    &["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"],
                ),
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
                "application/vnd.docker.distribution.manifest.v1+json",
            ),
            (r#"{"schemaVersion":2,"mediaType":"a/b"}"#.to_owned(), "a/b"),
        ] {
            match check(&text) {
                Err(PullError::UnsupportedMediaType { media_type, .. }) => {
                    assert_eq!(media_type, want);
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn documents_of_two_minds_are_refused() {
        let both = format!(
            r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{D}","size":1}},"layers":[]}}"#
        );
        let lying = format!(r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        for text in [both, lying, "[]".into(), "{".into()] {
            assert!(
                matches!(check(&text), Err(PullError::BadManifest { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn index_gives_the_entry_for_this_machine() {
        let machine = Machine::current();
        let arch = machine.to_string();
        let arch = arch.split('/').nth(1).unwrap();
        let entry = |os: &str, arch: &str| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":1,"platform":{{"os":"{os}","architecture":"{arch}"}}}}"#
            )
        };
        let text = format!(
            r#"{{"manifests":[{},{},{}]}}"#,
            entry("unknown", "unknown"),
            entry("windows", arch),
            entry("linux", arch)
        );
        let Document::Index(index) = Document::parse(text.as_bytes(), Some(OCI_INDEX)).unwrap()
        else {
            panic!("no index")
        };
        let found = index.candidates(&machine);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].platform.as_ref().unwrap().os, "linux");
        assert!(index.offered().contains("windows/"));
    }

    #[test]
    fn sloppy_configurations_are_read() {
        let text = format!(
            r#"{{"created":"","history":null,"config":{{"Env":null,"Cmd":["a"],"Healthcheck":{{"Test":["x"]}},
                "ExposedPorts":{{"80/tcp":{{}}}},"Volumes":{{"/v":{{}}}},"OnBuild":null,"Labels":null}},
                "rootfs":{{"diff_ids":["{D}"]}},"container":"abc","docker_version":"1"}}"#
        );
        let config = Config::parse(ImageId(Digest::of(text.as_bytes())), text.as_bytes()).unwrap();
        assert_eq!(config.diff_ids.len(), 1);
        let inner = inner(&text);
        assert_eq!(inner.cmd().as_ref().unwrap(), &["a"]);
        assert!(Machine::current().runs(&config.platform));
        assert!(parse_config(b"{}").is_ok());
    }

    fn inner(text: &str) -> oci_spec::image::Config {
        let parsed = parse_config(text.as_bytes()).unwrap();
        parsed.config().clone().unwrap()
    }

    #[test]
    fn what_processes_start_with_is_bounded() {
        let config = |field: &str, value: &str| {
            read_config(&format!(
                r#"{{"config":{{"{field}":{value}}},"rootfs":{{"diff_ids":[]}}}}"#
            ))
        };
        let text = |bytes: usize| format!(r#""{}""#, "x".repeat(bytes));
        for (field, most) in [("User", MAX_USER), ("StopSignal", MAX_SIGNAL)] {
            config(field, &text(most)).unwrap();
            assert!(config(field, &text(most + 1)).is_err(), "{field}");
        }
        config("WorkingDir", &text(MAX_RUN)).unwrap();
        for field in ["Env", "Cmd", "Entrypoint"] {
            let list = |bytes| format!("[{}]", text(bytes));
            config(field, &list(MAX_RUN)).unwrap();
            let many = format!("[{}\"a=b\"]", "\"a=b\",".repeat(MAX_RUN_TEXTS));
            assert!(config(field, &many).is_err(), "{field}");
            let error = config(field, &list(MAX_RUN + 1)).unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(field), "{source}");
        }
        config("Labels", &format!(r#"{{"a":{}}}"#, text(2 * MAX_RUN))).unwrap();
    }

    fn read_config(text: &str) -> Result<Config, PullError> {
        Config::parse(ImageId(Digest::of(text.as_bytes())), text.as_bytes())
    }

    #[test]
    fn nulls_at_every_depth_count_as_absent_and_members_of_sets_stay() {
        let text = r#"{"architecture":null,"os":null,"variant":null,"created":null,
            "config":{"Volumes":{"/a":null,"/b":{}},"ExposedPorts":{"80/tcp":null},"Labels":{"x":null,"y":"z"},
                "Env":[null,"A=b"],"Entrypoint":null,"WorkingDir":null},
            "rootfs":null,"history":[null,{"created":null,"empty_layer":null}]}"#;
        let config = read_config(text).unwrap();
        assert!(config.platform.is_unsaid() && config.diff_ids.is_empty());
        let inner = inner(text);
        let mut volumes = inner.volumes().clone().unwrap();
        volumes.sort();
        assert_eq!(volumes, ["/a", "/b"]);
        assert_eq!(inner.exposed_ports().as_ref().unwrap(), &["80/tcp"]);
        assert_eq!(inner.env().as_ref().unwrap(), &["A=b"]);
        assert_eq!(inner.labels().as_ref().unwrap().len(), 1);
        for text in [
            r#"{"config":null}"#,
            r#"{"rootfs":{"type":null,"diff_ids":null}}"#,
        ] {
            read_config(text).unwrap();
        }
    }

    #[test]
    fn manifests_without_layers_or_types_are_read() {
        for config in [
            format!(r#"{{"digest":"{D}","size":2}}"#),
            format!(r#"{{"mediaType":null,"digest":"{D}","size":2}}"#),
            format!(r#"{{"mediaType":"application/octet-stream","digest":"{D}","size":2}}"#),
        ] {
            check(&format!(
                r#"{{"schemaVersion":2,"config":{config},"layers":null}}"#
            ))
            .unwrap();
            check(&format!(r#"{{"schemaVersion":2,"config":{config}}}"#)).unwrap();
        }
        let index = Document::parse(
            br#"{"manifests":null,"mediaType":"application/vnd.oci.image.index.v1+json"}"#,
            None,
        );
        assert!(index.is_err(), "neither an index nor an image");
    }
}
