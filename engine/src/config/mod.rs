//! The configuration: one TOML file and the drop-ins of a folder, merged in
//! name order, checked in full before anything starts.
//!
//! Owns parsing and checking only; never touches the node. A crash leaves nothing.

mod check;
mod merge;
pub(crate) mod raw;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::cgroup::{DriverKind, Selection};
use serde::Serialize;

pub(crate) use check::ConfigError;

/// Where images, records and writable layers live unless told otherwise.
pub(crate) const DEFAULT_ROOT: &str = "/var/lib/slipway";
/// Where sockets and other things that end with the boot live.
pub(crate) const DEFAULT_STATE: &str = "/run/slipway";
/// The main configuration file.
pub(crate) const DEFAULT_FILE: &str = "/etc/slipway/slipway.toml";
/// The folder of drop-ins.
pub(crate) const DEFAULT_DIR: &str = "/etc/slipway";

/// Which code launches the containers of a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Launcher {
    /// youki's libcontainer in a binary of its own.
    Libcontainer,
    /// The pod's monitor itself.
    Native,
    /// An OCI command line runtime.
    Oci,
}

/// One runtime handler.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Handler {
    /// The code behind it.
    pub(crate) launcher: Launcher,
    /// The executable of an OCI runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathBuf>,
    /// What that is to be told besides.
    #[serde(skip_serializing_if = "HandlerOptions::is_empty")]
    pub(crate) options: HandlerOptions,
}

/// Options of a handler's launcher.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct HandlerOptions {
    /// Arguments of an OCI runtime before those that say what to do.
    pub(crate) args: Vec<String>,
    /// Whether a container that may trace others is made among processes that it shares,
    /// although the launcher's own are in its sight for a moment.
    pub(crate) allow_tracers: bool,
}

impl HandlerOptions {
    fn is_empty(&self) -> bool {
        self.args.is_empty() && !self.allow_tracers
    }
}

/// Which cgroup hierarchies pods are put in.
///
/// `Unified` is for machines where v1 hierarchies stand beside a v2 tree: to
/// measure there what a machine with v2 alone would do, or where the v1
/// controllers are somebody else's. It costs the limits and figures of those
/// controllers that the tree lacks: one warning for each controller, never an
/// error. Pods that were made under the other choice keep directories that are
/// not looked at any more, so it is changed while there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Hierarchy {
    /// All that are mounted.
    All,
    /// The v2 tree alone.
    Unified,
}

impl Hierarchy {
    /// The same, as it is asked of the cgroup module.
    pub(crate) fn selection(self) -> Selection {
        match self {
            Self::All => Selection::All,
            Self::Unified => Selection::Unified,
        }
    }
}

/// Cgroup settings.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cgroup {
    /// Who makes them.
    #[serde(serialize_with = "driver_name")]
    pub(crate) driver: DriverKind,
    /// Where pods are put.
    pub(crate) hierarchy: Hierarchy,
}

/// Where vendors describe devices.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cdi {
    /// Folders of CDI specifications; what a later one has counts.
    pub(crate) spec_dirs: Vec<PathBuf>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over by reference"
)]
fn driver_name<S: serde::Serializer>(driver: &DriverKind, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(driver.as_str())
}

/// Network settings.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cni {
    /// Where network configuration lists are looked for.
    pub(crate) conf_dir: PathBuf,
    /// Where plugins are looked for, in order.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// Where network namespaces are pinned.
    pub(crate) netns_dir: PathBuf,
    /// Types of plugins that are executed although they are built in; `*` = all.
    pub(crate) external_plugins: Vec<String>,
    /// Whether pods do with a loopback interface where no network is configured.
    pub(crate) loopback_only: bool,
}

impl Cni {
    /// Whether plugins of a type must be executed.
    pub(crate) fn is_external(&self, kind: &str) -> bool {
        let named = |name: &String| name == "*" || name == kind;
        !kind.is_empty() && self.external_plugins.iter().any(named)
    }
}

/// How registries are treated.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Registry {
    /// How long a registry may take until an answer begins.
    pub(crate) first_byte_timeout: Duration,
    /// Hosts that foreign layers may come from.
    pub(crate) foreign_layer_hosts: Vec<String>,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum MetricsAddress {
    /// On an address of the node.
    Tcp(SocketAddr),
    /// On a socket of its own.
    Unix(PathBuf),
}

/// All settings after checking.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Config {
    /// `--root`.
    pub(crate) root: PathBuf,
    /// `--state`.
    pub(crate) state: PathBuf,
    /// `--listen`.
    pub(crate) listen: PathBuf,
    /// Where exec, attach and port-forward are served; port 0: any.
    pub(crate) streaming: Streaming,
    /// Where vendors describe devices.
    pub(crate) cdi: Cdi,
    /// Cgroup settings.
    pub(crate) cgroup: Cgroup,
    /// Network settings.
    pub(crate) cni: Cni,
    /// Where metrics are served, if anywhere.
    pub(crate) metrics: Option<MetricsAddress>,
    /// Folder of `HOST[:PORT]/hosts.toml`.
    pub(crate) registry_config_path: PathBuf,
    /// How registries are treated.
    pub(crate) registry: Registry,
    /// The handler behind the empty name.
    pub(crate) default_handler: String,
    /// How many files a process of a container may have open.
    pub(crate) open_files: u64,
    /// All handlers by name.
    pub(crate) handlers: BTreeMap<String, Handler>,
}

impl Config {
    /// The handler that `name` asks for; the empty name is the default one.
    pub(crate) fn handler(&self, name: &str) -> Option<&Handler> {
        self.handlers.get(self.handler_name(name))
    }

    /// The name of a handler: the empty one is the default's.
    pub(crate) fn handler_name<'a>(&'a self, name: &'a str) -> &'a str {
        match name {
            "" => &self.default_handler,
            name => name,
        }
    }

    /// What the image store is told of registries.
    pub(crate) fn tuning(&self) -> image_store::Tuning {
        image_store::Tuning {
            first_byte: self.registry.first_byte_timeout,
            foreign_layer_hosts: self.registry.foreign_layer_hosts.clone(),
            ..image_store::Tuning::default()
        }
    }

    /// Folder of the records of all pods.
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Folder of the cached results of network plugins.
    pub(crate) fn cni_cache_dir(&self) -> PathBuf {
        self.root.join("cni")
    }

    /// Folder of the sockets of all pods.
    pub(crate) fn pods_state_dir(&self) -> PathBuf {
        self.state.join("pods")
    }
}

/// What the command line says of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// `--root`.
    pub(crate) root: PathBuf,
    /// `--state`.
    pub(crate) state: PathBuf,
    /// `--listen`; by default a socket below the state.
    pub(crate) listen: Option<PathBuf>,
    /// `--config`; if absent, the default file may be missing.
    pub(crate) file: Option<PathBuf>,
    /// `--config-dir`; if absent, the default folder may be missing.
    pub(crate) dir: Option<PathBuf>,
}

/// Reads, merges and checks everything; the first wrong thing is named.
pub(crate) fn load(places: &Places) -> Result<Config, ConfigError> {
    let mut sources = Vec::new();
    match &places.file {
        Some(file) => sources.push(merge::read(file)?),
        None => sources.extend(merge::read_if_there(Path::new(DEFAULT_FILE))?),
    }
    let dir = places
        .dir
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
    let main = places
        .file
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    let drop_ins = merge::drop_ins(&dir, places.dir.is_some())?;
    for file in drop_ins.into_iter().filter(|file| *file != main) {
        sources.push(merge::read(&file)?);
    }
    let raw = merge::merge(sources)?;
    check::check(raw, places, &dir)
}

/// The text of a file with all defaults, for `slipway config default`.
pub(crate) fn default_text() -> &'static str {
    include_str!("default.toml")
}

/// Where and how exec, attach and port-forward are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Streaming {
    /// Where; port 0: any.
    pub(crate) address: SocketAddr,
    /// `None`: in the clear.
    pub(crate) tls: Option<StreamingTls>,
}

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StreamingTls {
    /// The chain of certificates that is shown, the server's own first.
    pub(crate) certificate: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// Authorities; with them clients have to show a certificate of one of these.
    pub(crate) client_ca: Option<PathBuf>,
}

/// An address that a stream server may listen on.
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}
