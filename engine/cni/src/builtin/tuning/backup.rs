//! What an interface was like before it was tuned, in the plugin's own files.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};

use super::config::Config;
use crate::netlink::Message;
use crate::rtnl::link::{self, IFF_ALLMULTI, IFF_PROMISC, Link, Mac};
use crate::{Error, Invocation};

/// Only what the configuration changes.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Backup {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The file of an attachment.
pub(super) fn file(config: &Config, call: &Invocation<'_>) -> PathBuf {
    let name = format!("{}_{}.json", call.container_id, call.interface);
    config.data_dir.join(name)
}

impl Backup {
    /// What the configuration will change of a link.
    pub(super) fn of(link: &Link, config: &Config) -> Self {
        let mac = config.mac.as_ref().map(|_| link.mac.to_string());
        Self {
            mac: mac.unwrap_or_default(),
            promisc: config.promiscuous.then_some(link.promiscuity != 0),
            mtu: config.mtu.map_or(0, |_| link.mtu),
            allmulti: config.all_multicast.map(|_| link.flags & IFF_ALLMULTI != 0),
            queue: config.queue.map(|_| link.queue),
        }
    }

    /// Keeps it; the folder is made where it is missing.
    pub(super) fn write(&self, file: &Path) -> Result<(), Error> {
        let failed =
            |error| Error::because(format!("failed to save file {}", file.display()), error);
        let mut text = Vec::new();
        let form = PrettyFormatter::with_indent(b" ");
        self.serialize(&mut Serializer::with_formatter(&mut text, form))
            .map_err(|error| Error::because("failed to save the interface's settings", error))?;
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(file)
        };
        let opened = match open() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut builder = DirBuilder::new();
                builder.recursive(true).mode(0o600);
                let dir = file.parent().unwrap_or(Path::new("/"));
                builder.create(dir).and_then(|()| open())
            }
            opened => opened,
        };
        opened
            .and_then(|mut opened| opened.write_all(&text))
            .map_err(failed)
    }

    /// Reads it; `None` where there is none, or none that says anything.
    pub(super) fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// What makes a link as it was.
    pub(super) fn changes(&self, index: u32) -> Vec<Message> {
        let flag = |flag: u32, on: bool| link::set_flags(index, if on { flag } else { 0 }, flag);
        let mtu = (self.mtu != 0).then(|| link::set_mtu(index, self.mtu));
        let mac = self
            .mac
            .parse::<Mac>()
            .ok()
            .map(|mac| link::set_mac(index, mac));
        let promiscuous = self.promisc.map(|on| flag(IFF_PROMISC, on));
        let all_multicast = self.allmulti.map(|on| flag(IFF_ALLMULTI, on));
        let queue = self.queue.map(|length| link::set_queue(index, length));
        [mtu, mac, promiscuous, all_multicast, queue]
            .into_iter()
            .flatten()
            .collect()
    }
}
