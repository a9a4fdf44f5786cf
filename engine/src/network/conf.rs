//! Network configuration lists: found, parsed, and made ready for a plugin.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::NetworkError;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfError {
    /// It could not be read.
    #[error("read")]
    Read(#[source] std::io::Error),
    /// It is no JSON.
    #[error("parse")]
    Parse(#[source] serde_json::Error),
    /// A key is missing or of the wrong type.
    #[error("{0}")]
    Shape(String),
}

/// One network: a name and the chain of its plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    name: String,
    cni_version: String,
    /// Nothing is ever collected as garbage.
    #[serde(default)]
    disable_gc: bool,
    plugins: Vec<Value>,
}

impl NetworkList {
    /// The name of the network.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether its version of CNI has STATUS and GC.
    pub(crate) fn has_status(&self) -> bool {
        order(&self.cni_version) >= order("1.1.0")
    }

    /// Whether attachments that nobody needs any more may be given back unasked.
    pub(crate) fn allows_gc(&self) -> bool {
        !self.disable_gc
    }

    /// The list as a file of it would say it.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "cniVersion": self.cni_version,
            "disableGC": self.disable_gc,
            "plugins": self.plugins,
        })
    }

    /// The plugins in the order of ADD.
    pub(crate) fn plugins(&self) -> impl ExactSizeIterator<Item = &Value> {
        self.plugins.iter()
    }

    /// Whether any plugin of the chain asks for this capability.
    pub(crate) fn has_capability(&self, name: &str) -> bool {
        self.plugins
            .iter()
            .any(|plugin| plugin["capabilities"][name] == Value::Bool(true))
    }

    /// What one plugin gets on its standard input.
    pub(crate) fn input(
        &self,
        plugin: &Value,
        capabilities: &std::collections::BTreeMap<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let mut input = plugin.as_object().cloned().unwrap_or_default();
        let asked = input.remove("capabilities");
        input.insert("name".into(), json!(self.name));
        input.insert("cniVersion".into(), json!(self.cni_version));
        let wants = |name: &str| {
            asked
                .as_ref()
                .is_some_and(|asked| asked[name] == Value::Bool(true))
        };
        let runtime: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| wants(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !runtime.is_empty() {
            input.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        Value::Object(input)
    }
}

/// The type of a plugin.
pub(super) fn kind(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

/// The first configuration of a folder in name order; `None` where there is none.
pub(super) fn load(dir: &Path) -> Result<Option<NetworkList>, NetworkError> {
    let named = |path: &Path, source| NetworkError::Conf {
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(named(dir, ConfError::Read(error))),
    };
    let kinds = ["conflist", "conf", "json"];
    let wanted = |path: &PathBuf| {
        path.extension()
            .and_then(|kind| kind.to_str())
            .is_some_and(|kind| kinds.contains(&kind))
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(wanted)
        .collect();
    files.sort();
    let Some(first) = files.first() else {
        return Ok(None);
    };
    let text = std::fs::read(first).map_err(|error| named(first, ConfError::Read(error)))?;
    let is_list = first.extension().is_some_and(|kind| kind == "conflist");
    parse(&text, is_list)
        .map(Some)
        .map_err(|source| named(first, source))
}

/// Parses a list, or a single plugin as a list of one.
pub(super) fn parse(text: &[u8], is_list: bool) -> Result<NetworkList, ConfError> {
    let value: Value = serde_json::from_slice(text).map_err(ConfError::Parse)?;
    let shape = |text: &str| ConfError::Shape(text.to_owned());
    let name = value["name"].as_str().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| shape("\"name\" is missing"))?.to_owned();
    // The name becomes part of a file name of the cache.
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if !name.chars().all(plain) || name.starts_with('.') {
        return Err(ConfError::Shape(format!(
            "name {name:?} is not made of letters, digits, . _ -"
        )));
    }
    let cni_version = newest(&value);
    let disable_gc = match &value["disableGC"] {
        Value::Bool(disabled) => *disabled,
        Value::String(text) => text.eq_ignore_ascii_case("true"),
        _ => false,
    };
    let plugins = if is_list {
        let plugins = value["plugins"]
            .as_array()
            .filter(|plugins| !plugins.is_empty());
        plugins
            .ok_or_else(|| shape("\"plugins\" is missing or empty"))?
            .clone()
    } else {
        vec![value]
    };
    for plugin in &plugins {
        let kind = kind(plugin);
        if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
            return Err(ConfError::Shape(format!(
                "plugin type {kind:?} is no file name"
            )));
        }
    }
    Ok(NetworkList {
        name,
        cni_version,
        disable_gc,
        plugins,
    })
}

/// A version as numbers, to compare it with another.
fn order(version: &str) -> Vec<u32> {
    version
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// The newest version that a configuration offers and the engine knows.
fn newest(value: &Value) -> String {
    let known = |version: &&str| order(version) <= order("1.1.0");
    let offered = value["cniVersions"].as_array().into_iter().flatten();
    let offered = offered.filter_map(Value::as_str).filter(known);
    let all = value["cniVersion"].as_str().into_iter().chain(offered);
    let newest = all.max_by_key(|version| order(version));
    newest.unwrap_or("0.2.0").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &[u8] = br#"{"name":"net","cniVersion":"1.0.0","plugins":[
        {"type":"bridge","bridge":"b0"},
        {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

    #[test]
    fn a_plugin_gets_only_the_capabilities_it_asks_for() {
        let list = parse(CHAIN, true).expect("valid");
        let given = [
            ("portMappings".to_owned(), json!([1])),
            ("dns".to_owned(), json!({})),
        ]
        .into();
        let plugins: Vec<_> = list.plugins().collect();
        let bridge = list.input(plugins[0], &given, None);
        assert_eq!(bridge.get("runtimeConfig"), None);
        let portmap = list.input(plugins[1], &given, Some(&json!({"ips": []})));
        assert_eq!(portmap["runtimeConfig"], json!({"portMappings": [1]}));
        assert_eq!(portmap["prevResult"], json!({"ips": []}));
        assert_eq!(
            (portmap["name"].as_str(), portmap["cniVersion"].as_str()),
            (Some("net"), Some("1.0.0"))
        );
    }

    #[test]
    fn the_newest_version_offered_counts_and_gc_may_be_switched_off() {
        for (text, version, gc) in [
            (r#"{"name":"n","type":"t"}"#, "0.2.0", true),
            (
                r#"{"name":"n","type":"t","cniVersion":"1.0.0"}"#,
                "1.0.0",
                true,
            ),
            (
                r#"{"name":"n","type":"t","cniVersion":"1.1.0"}"#,
                "1.1.0",
                true,
            ),
            (
                r#"{"name":"n","type":"t","cniVersion":"1.1.0","disableGC":true}"#,
                "1.1.0",
                false,
            ),
            (
                r#"{"name":"n","type":"t","cniVersions":["0.3.1","1.1.0","1.2.0"],"cniVersion":"1.0.0"}"#,
                "1.1.0",
                true,
            ),
        ] {
            let list = parse(text.as_bytes(), false).expect(text);
            assert_eq!(
                (list.cni_version.as_str(), list.allows_gc()),
                (version, gc),
                "{text}"
            );
        }
    }

    #[test]
    fn broken_configurations_are_refused_with_a_reason() {
        for (text, list, word) in [
            ("{}", false, "name"),
            (r#"{"name":"../x","type":"a"}"#, false, "name"),
            (r#"{"name":"x","plugins":[]}"#, true, "plugins"),
            (r#"{"name":"x","type":"../sh"}"#, false, "type"),
            ("nope", false, "parse"),
        ] {
            let error = parse(text.as_bytes(), list).expect_err(text);
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_file_in_name_order_counts() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (file, name) in [
            ("20-b.conf", "b"),
            ("10-a.conf", "a"),
            ("00-readme.txt", "x"),
        ] {
            let text = format!(r#"{{"name":"{name}","type":"t"}}"#);
            std::fs::write(dir.path().join(file), text).expect("write");
        }
        assert_eq!(load(dir.path()).expect("valid").expect("there").name(), "a");
        assert!(
            load(&dir.path().join("missing"))
                .expect("no error")
                .is_none()
        );
    }
}
