//! What all plugins check of a call before they look at their own keys.
//!
//! Owns the versions of CNI that the built-ins speak and `CNI_ARGS`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Command, Error, Invocation, code};

/// Versions of CNI in their order.
pub(crate) const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

/// The version of a configuration; a missing one is the oldest.
pub(crate) fn version(config: &Value) -> &str {
    match config["cniVersion"].as_str() {
        None | Some("") => "0.1.0",
        Some(version) => version,
    }
}

/// Whether a version is at least another; both must be of [`VERSIONS`].
pub(crate) fn at_least(version: &str, least: &str) -> bool {
    let place = |wanted: &str| VERSIONS.iter().position(|known| *known == wanted);
    place(version) >= place(least)
}

/// The name of the network.
pub(crate) fn network(config: &Value) -> &str {
    config["name"].as_str().unwrap_or_default()
}

/// A plugin's own view of its configuration.
pub(crate) fn decode<T: DeserializeOwned>(config: &Value) -> Result<T, Error> {
    T::deserialize(config).map_err(|source| Error::because("failed to load netconf", source))
}

/// An attachment that is not garbage.
#[derive(Debug, Deserialize)]
pub(crate) struct Valid {
    /// The container.
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    /// The interface in it.
    #[serde(rename = "ifname")]
    pub(crate) interface: String,
}

/// The attachments that GC must leave alone. Without a list nothing can be
/// told to be garbage.
pub(crate) fn valid_attachments(config: &Value) -> Result<Option<Vec<Valid>>, Error> {
    const KEY: &str = "cni.dev/valid-attachments";
    Option::deserialize(&config[KEY]).map_err(|source| Error::because(KEY, source))
}

/// Checks of a call what every plugin's frame checks.
pub(crate) fn check_call(call: &Invocation<'_>) -> Result<(), Error> {
    let invalid = |msg: &str| Err(Error::new(code::INVALID_CONFIG, msg));
    if network(call.config).is_empty() {
        return invalid("missing network name");
    }
    let version = version(call.config);
    if !VERSIONS.contains(&version) {
        let details = format!("config is {version:?}, plugin supports {VERSIONS:?}");
        let error = Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions");
        return Err(error.details(details));
    }
    let least = match call.command {
        Command::Add | Command::Del => "0.1.0",
        Command::Check => "0.4.0",
        Command::Status | Command::Gc => "1.1.0",
    };
    if !at_least(version, least) {
        let msg = format!("config version does not allow {}", call.command.name());
        return Err(Error::new(code::INCOMPATIBLE_VERSION, msg));
    }
    check_environment(call)?;
    if matches!(call.command, Command::Add | Command::Del) {
        crate::namespace::check_foreign(call)?;
    }
    Ok(())
}

/// Refuses calls without what their command needs.
fn check_environment(call: &Invocation<'_>) -> Result<(), Error> {
    let mut missing = Vec::new();
    if matches!(call.command, Command::Add | Command::Check | Command::Del) {
        if call.container_id.is_empty() {
            missing.push("CNI_CONTAINERID");
        }
        if call.netns.is_none() && call.command != Command::Del {
            missing.push("CNI_NETNS");
        }
        if call.interface.is_empty() {
            missing.push("CNI_IFNAME");
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let msg = format!("required env variables [{}] missing", missing.join(","));
    Err(Error::new(code::INVALID_ENVIRONMENT, msg))
}

/// `CNI_ARGS` as pairs. A plugin knows some keys; any other is refused unless
/// `IgnoreUnknown` is set.
pub(crate) fn arguments<'a>(
    args: &'a str,
    known: &[&str],
) -> Result<BTreeMap<&'a str, &'a str>, Error> {
    let mut pairs = BTreeMap::new();
    if args.is_empty() {
        return Ok(pairs);
    }
    for pair in args.split(';') {
        let mut parts = pair.split('=');
        let (Some(key), Some(value), None) = (parts.next(), parts.next(), parts.next()) else {
            let msg = format!("ARGS: invalid pair {pair:?}");
            return Err(Error::internal(msg));
        };
        pairs.insert(key, value);
    }
    let ignore = match pairs.get("IgnoreUnknown").map(|value| value.to_lowercase()) {
        None => false,
        Some(value) if value == "1" || value == "true" => true,
        Some(value) if value == "0" || value == "false" => false,
        Some(value) => {
            let msg = format!("ARGS: error parsing value of pair \"IgnoreUnknown={value}\"");
            return Err(Error::internal(msg));
        }
    };
    if !ignore {
        let foreign = |key: &&&str| **key != "IgnoreUnknown" && !known.contains(*key);
        let unknown: Vec<_> = pairs.keys().filter(foreign).collect();
        if !unknown.is_empty() {
            return Err(Error::internal(format!("ARGS: unknown args {unknown:?}")));
        }
    }
    Ok(pairs)
}
