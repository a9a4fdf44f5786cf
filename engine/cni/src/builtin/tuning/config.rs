//! The configuration of `tuning`.
//!
//! Owns its keys, and which files are parameters of the network.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::config::{arguments, decode};
use crate::rtnl::link::Mac;
use crate::{Command, Error, Invocation};

const DATA_DIR: &str = "/run/cni/tuning";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    data_dir: Option<PathBuf>,
    sysctl: Option<BTreeMap<String, String>>,
    mac: Option<String>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    #[serde(rename = "txQLen")]
    queue: Option<u32>,
    allmulti: Option<bool>,
    runtime_config: Option<MacOf>,
    args: Option<Args>,
}

#[derive(Debug, Deserialize)]
struct MacOf {
    mac: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Args {
    cni: Option<CniArgs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    sysctl: Option<BTreeMap<String, String>>,
    mac: Option<String>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    queue: Option<u32>,
}

/// A checked configuration.
#[derive(Debug)]
pub(super) struct Config {
    /// Where backups are.
    pub(super) data_dir: PathBuf,
    /// Kernel parameters by their keys.
    pub(super) parameters: BTreeMap<String, String>,
    /// Hardware address; not for DEL.
    pub(super) mac: Option<Wanted>,
    /// Receive what is not for it.
    pub(super) promiscuous: bool,
    /// MTU.
    pub(super) mtu: Option<u32>,
    /// Receive all multicast.
    pub(super) all_multicast: Option<bool>,
    /// Length of the queue.
    pub(super) queue: Option<u32>,
}

/// A hardware address, and how it was written.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) mac: Mac,
    pub(super) text: String,
}

/// Whether all keys have the right types.
pub(super) fn is_readable(config: &Value) -> bool {
    Raw::deserialize(config).is_ok()
}

impl Config {
    /// Reads and checks the configuration of a call.
    pub(super) fn load(call: &Invocation<'_>) -> Result<Self, Error> {
        let raw: Raw = decode(call.config)?;
        let args = raw.args.and_then(|args| args.cni).unwrap_or_default();
        let pairs = arguments(call.args, &["MAC"])?;
        let in_arguments = pairs.get("MAC").map(|text| (*text).to_owned());
        let by_runtime = raw.runtime_config.and_then(|runtime| runtime.mac);
        // The last word counts: the configuration's arguments.
        let words = [args.mac, by_runtime, in_arguments, raw.mac];
        let text = words.into_iter().flatten().find(|text| !text.is_empty());
        // What could not be added can be deleted.
        let text = text.filter(|_| call.command != Command::Del);
        let parse = |text: String| {
            let msg = "invalid MAC address";
            let mac = text.parse().map_err(|error| Error::because(msg, error))?;
            Ok(Wanted { mac, text })
        };
        let mut parameters = raw.sysctl.unwrap_or_default();
        parameters.extend(args.sysctl.unwrap_or_default());
        let data_dir = raw.data_dir.filter(|dir| !dir.as_os_str().is_empty());
        Ok(Self {
            data_dir: data_dir.unwrap_or_else(|| DATA_DIR.into()),
            parameters,
            mac: text.map(parse).transpose()?,
            promiscuous: args.promisc.or(raw.promisc).unwrap_or_default(),
            mtu: args.mtu.or(raw.mtu).filter(|mtu| *mtu != 0),
            all_multicast: args.allmulti.or(raw.allmulti),
            queue: args.queue.or(raw.queue),
        })
    }

    /// Whether anything of the interface itself is to change.
    pub(super) fn changes_link(&self) -> bool {
        let wanted = self.mac.is_some() || self.promiscuous || self.mtu.is_some();
        wanted || self.all_multicast.is_some() || self.queue.is_some()
    }
}

/// The file of a parameter. `IFNAME` in the key is the interface; anything but
/// the network's parameters is refused.
pub(super) fn file(key: &str, interface: &str) -> Result<PathBuf, Error> {
    let key = key.replace('.', "/").replacen("IFNAME", interface, 1);
    let parts: Vec<&str> = key.split('/').filter(|part| !part.is_empty()).collect();
    let climbs = parts.iter().any(|part| *part == "." || *part == "..");
    if parts.first() != Some(&"net") || parts.len() < 2 || climbs {
        let msg = format!("invalid net sysctl key: {key:?}");
        return Err(Error::internal(msg));
    }
    Ok(PathBuf::from("/proc/sys").join(parts.join("/")))
}
