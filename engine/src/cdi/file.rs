//! A CDI specification file: its shape in JSON and YAML, and what is wrong with one.
//!
//! Owns reading and checking one file; applies nothing. A key that is not known makes the
//! whole file unusable: it may ask for what would be missing in silence.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::regular_file;

/// Larger files describe no devices.
const MAX_FILE: u64 = 4 << 20;

/// Versions of the format that are known.
const VERSIONS: [&str; 9] = [
    "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0", "1.1.1",
];

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    cdi_version: String,
    /// Vendor and class, `vendor.com/class`.
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// What comes with any of the devices, once.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// A device of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What is changed in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Edits {
    /// `NAME=VALUE`.
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<Node>,
    pub(super) mounts: Vec<Mount>,
    #[serde(rename = "additionalGids")]
    pub(super) additional_gids: Vec<u32>,
    /// Programs of the node that are run meanwhile.
    pub(super) hooks: Vec<serde::de::IgnoredAny>,
    pub(super) intel_rdt: Option<serde::de::IgnoredAny>,
    pub(super) net_devices: Vec<serde::de::IgnoredAny>,
}

/// A device node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Node {
    /// In the container.
    pub(super) path: PathBuf,
    /// On the node; the same where it is not said.
    pub(super) host_path: Option<PathBuf>,
    /// `b`, `c` or `u`.
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) file_mode: Option<u32>,
    /// Some of `rwm`.
    pub(super) permissions: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A bind mount.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: PathBuf,
    pub(super) container_path: PathBuf,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

/// Reads a file and checks it.
pub(super) fn read(path: &Path) -> Result<File, String> {
    let text = regular_file::read(path, MAX_FILE).map_err(|error| error.to_string())?;
    let text = String::from_utf8(text).map_err(|error| error.to_string())?;
    parse(&text, path.extension().is_some_and(|kind| kind == "json"))
}

fn parse(text: &str, json: bool) -> Result<File, String> {
    let file: File = match json {
        true => serde_json::from_str(text).map_err(|error| error.to_string())?,
        false => serde_saphyr::from_str(text).map_err(|error| error.to_string())?,
    };
    let version = file.cdi_version.trim_start_matches('v');
    if !VERSIONS.contains(&version) {
        return Err(format!("its cdiVersion {version:?} is not known"));
    }
    if !is_kind(&file.kind) {
        return Err(format!("{:?} is no vendor and class", file.kind));
    }
    let mut names = HashSet::new();
    for device in &file.devices {
        if !is_device(&device.name) {
            return Err(format!("{:?} is no name of a device", device.name));
        }
        if !names.insert(&device.name) {
            return Err(format!("it has two devices {:?}", device.name));
        }
    }
    Ok(file)
}

/// Whether a text is the name of a device: `vendor.com/class=name`.
pub(crate) fn is_qualified(text: &str) -> bool {
    text.split_once('=')
        .is_some_and(|(kind, device)| is_kind(kind) && is_device(device))
}

/// A vendor has letters, digits, `_`, `-` and `.`, a class all of them but the last. Both
/// begin with a letter and end with a letter or digit.
fn is_kind(text: &str) -> bool {
    text.split_once('/').is_some_and(|(vendor, class)| {
        let begins = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
        begins(vendor) && begins(class) && is_word(vendor, "_-.") && is_word(class, "_-")
    })
}

fn is_device(text: &str) -> bool {
    is_word(text, "_-.:")
}

fn is_word(text: &str, others: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(plain)
        && text.ends_with(plain)
        && text.chars().all(|c| plain(c) || others.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.com/net-card
annotations: { owner: somebody }
devices:
- name: "0"
  containerEdits:
    deviceNodes: [{ path: /dev/card0, hostPath: /dev/null, fileMode: 432 }]
- name: all
containerEdits:
  env: ["CARD=yes"]
  mounts:
  - hostPath: /usr/lib/card
    containerPath: /usr/lib/card
    options: [ro, rbind]
"#;

    #[test]
    fn json_and_yaml_say_the_same() {
        let yaml = parse(YAML, false).expect("valid");
        assert_eq!(yaml.kind, "vendor.com/net-card");
        let node = &yaml.devices[0].container_edits.device_nodes[0];
        assert_eq!(node.host_path.as_deref(), Some(Path::new("/dev/null")));
        assert_eq!((node.file_mode, node.major), (Some(0o660), None));
        assert_eq!(yaml.container_edits.mounts[0].options, ["ro", "rbind"]);
        let json = r#"{ "cdiVersion": "1.0.0", "kind": "v.com/c", "devices": [
            { "name": "x", "containerEdits": { "additionalGids": [5], "hooks": [{}] } }
        ] }"#;
        let json = parse(json, true).expect("valid");
        let edits = &json.devices[0].container_edits;
        assert_eq!(
            (edits.additional_gids.as_slice(), edits.hooks.len()),
            (&[5][..], 1)
        );
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let with = |from: &str, to: &str| parse(&YAML.replace(from, to), false);
        for (from, to, word) in [
            ("0.6.0", "9.0.0", "cdiVersion"),
            ("vendor.com/net-card", "vendor.com", "vendor and class"),
            ("vendor.com/net-card", "v.com/a/b", "vendor and class"),
            ("name: all", "name: a=b", "name of a device"),
            ("name: all", "name: \"0\"", "two devices"),
            ("env:", "environment:", "environment"),
            ("containerPath: /usr/lib/card", "", "containerPath"),
        ] {
            let error = with(from, to).expect_err(to);
            assert!(error.contains(word), "{to}: {error}");
        }
        assert!(parse("", false).is_err() && parse("[", true).is_err());
        assert!(parse(&"[".repeat(100_000), false).is_err(), "it is deep");
    }

    #[test]
    fn names_are_those_of_the_specification() {
        for good in ["vendor.com/gpu=0", "v/c=a:b.c_d-e", "v-1/c_2=x"] {
            assert!(is_qualified(good), "{good}");
        }
        for bad in [
            "", "gpu", "v/c", "v/c=", "/c=x", "v/=x", "1v/c=x", "v/c=-x", "v/c=x/..", "v/c.d=x",
            "v/c=x y", "v./c=x",
        ] {
            assert!(!is_qualified(bad), "{bad}");
        }
    }
}
