//! The shape of the TOML. Unknown keys fail; nothing is checked here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Raw {
    pub(crate) cdi: Cdi,
    pub(crate) cgroup: Cgroup,
    pub(crate) cni: Cni,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Registry,
    pub(crate) streaming: Streaming,
    pub(crate) runtime: Runtime,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cdi {
    pub(crate) spec_dirs: Option<Vec<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cgroup {
    pub(crate) driver: Option<String>,
    pub(crate) hierarchy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Cni {
    pub(crate) conf_dir: Option<PathBuf>,
    pub(crate) bin_dirs: Option<Vec<PathBuf>>,
    pub(crate) netns_dir: Option<PathBuf>,
    pub(crate) external_plugins: Option<Vec<String>>,
    pub(crate) loopback_only: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metrics {
    pub(crate) listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Registry {
    pub(crate) config_path: Option<PathBuf>,
    pub(crate) first_byte_timeout: Option<String>,
    pub(crate) foreign_layer_hosts: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Streaming {
    pub(crate) address: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) tls_certificate: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) tls_client_ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Runtime {
    pub(crate) default_handler: Option<String>,
    pub(crate) open_files: Option<u64>,
    pub(crate) handlers: BTreeMap<String, Handler>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Handler {
    pub(crate) launcher: Option<String>,
    pub(crate) path: Option<PathBuf>,
    pub(crate) options: Option<HandlerOptions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HandlerOptions {
    pub(crate) args: Option<Vec<String>>,
    pub(crate) allow_tracers: Option<bool>,
}
