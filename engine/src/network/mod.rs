//! The network of pods: CNI by executing plugins, or loopback only where no
//! network is configured.
//!
//! Owns the cached results below `<root>/cni`; never makes a network namespace.
//! A crash leaves the cached result or, before it, the intent in the pod's
//! record: either is enough for a DEL.

mod cache;
mod conf;
mod plugin;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use conf::NetworkList;
use plugin::Call;
pub(crate) use plugin::PluginError;

use crate::config::Cni;
use crate::ids::PodId;
use crate::model::SandboxConfig;

/// The name of the pod's interface, as the kubelet and CNI users know it.
pub(crate) const INTERFACE: &str = "eth0";
/// RunPodSandbox has four minutes from the kubelet; the network must give up before.
const ADD_DEADLINE: Duration = Duration::from_secs(200);
const DEL_DEADLINE: Duration = Duration::from_secs(60);

/// What can go wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The folder of configurations has something that is no configuration.
    #[error("network configuration {}", path.display())]
    Conf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: conf::ConfError,
    },
    /// A plugin failed.
    #[error("network {network}: {command} by plugin {plugin}")]
    Plugin {
        /// Name of the network.
        network: String,
        /// ADD or DEL.
        command: &'static str,
        /// Type of the plugin.
        plugin: String,
        /// Its error.
        source: PluginError,
    },
    /// The result has no address, or is not understood.
    #[error("network {network}: the result of the last plugin {problem}")]
    Result {
        /// Name of the network.
        network: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The cached result could not be kept.
    #[error("network cache {}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// What a pod is, or may be, attached to: enough to detach it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// The configuration as it was at ADD.
    list: NetworkList,
    /// `CNI_ARGS`.
    args: String,
    /// Values for the plugins' capabilities.
    capabilities: BTreeMap<String, Value>,
}

/// What lists and status say of the configured network.
#[derive(Debug, Clone)]
pub(crate) enum Readiness {
    Ready,
    NotReady(String),
}

/// The pods' network.
pub(crate) struct Network {
    cni: Cni,
    cache: PathBuf,
    readiness: RwLock<Arc<Readiness>>,
}

impl Network {
    /// Reads the configuration once; [`Network::refresh`] does so again.
    pub(crate) fn new(cni: Cni, cache: PathBuf) -> Self {
        let starting = Arc::new(Readiness::NotReady("not looked for yet".into()));
        let network = Self {
            cni,
            cache,
            readiness: RwLock::new(starting),
        };
        network.refresh();
        network
    }

    /// Whether a network for pods is configured; without I/O.
    pub(crate) fn readiness(&self) -> Arc<Readiness> {
        Arc::clone(
            &self
                .readiness
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Looks at the configuration folder again.
    pub(crate) fn refresh(&self) {
        let now = match conf::load(&self.cni.conf_dir) {
            Ok(Some(_)) => Readiness::Ready,
            Ok(None) => Readiness::NotReady(format!(
                "no CNI configuration in {}; pods get a loopback interface only",
                self.cni.conf_dir.display()
            )),
            Err(error) => Readiness::NotReady(chain(&error)),
        };
        *self
            .readiness
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
    }

    /// What a new pod will be attached to; `None` = loopback only.
    pub(crate) fn plan(
        &self,
        id: &PodId,
        config: &SandboxConfig,
    ) -> Result<Option<Attachment>, NetworkError> {
        let Some(list) = conf::load(&self.cni.conf_dir)? else {
            return Ok(None);
        };
        let key = &config.key;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={}",
            key.namespace, key.name, key.uid
        );
        let mut capabilities = BTreeMap::new();
        if !config.port_mappings.is_empty() {
            let mappings: Vec<Value> = config.port_mappings.iter().map(mapping).collect();
            if !list.has_capability("portMappings") {
                tracing::warn!(pod = %id, network = list.name(), "no plugin maps host ports");
            }
            capabilities.insert("portMappings".to_owned(), Value::Array(mappings));
        }
        if let Some(dns) = &config.dns {
            let (servers, searches) = (&dns.servers, &dns.searches);
            let dns = json!({"servers": servers, "searches": searches, "options": dns.options});
            capabilities.insert("dns".to_owned(), dns);
        }
        bandwidth(config, &mut capabilities);
        let annotations = json!(config.annotations);
        capabilities.insert("io.kubernetes.cri.pod-annotations".to_owned(), annotations);
        Ok(Some(Attachment {
            list,
            args,
            capabilities,
        }))
    }

    /// Attaches a pod and answers its addresses.
    pub(crate) async fn attach(
        &self,
        id: &PodId,
        netns: &Path,
        attachment: &Attachment,
    ) -> Result<Vec<String>, NetworkError> {
        let list = &attachment.list;
        let call = Call {
            command: "ADD",
            id,
            netns,
            args: &attachment.args,
            bin_dirs: &self.cni.bin_dirs,
            deadline: Instant::now() + ADD_DEADLINE,
        };
        let mut previous = None;
        for plugin in list.plugins() {
            let result = call
                .run(plugin, list, &attachment.capabilities, previous.as_ref())
                .await
                .map_err(|source| failed(list, "ADD", plugin, source))?;
            previous = Some(result);
        }
        let result = previous.unwrap_or(Value::Null);
        cache::store(&self.cache, id, attachment, &result)?;
        addresses(list, &result)
    }

    /// Gives a pod's network back. Succeeds where nothing was attached, and
    /// where a plugin is not installed any more: there is nothing left to ask.
    pub(crate) async fn detach(
        &self,
        id: &PodId,
        netns: &Path,
        attachment: &Attachment,
    ) -> Result<(), NetworkError> {
        let list = &attachment.list;
        let result = cache::load(&self.cache, id, attachment);
        let call = Call {
            command: "DEL",
            id,
            netns,
            args: &attachment.args,
            bin_dirs: &self.cni.bin_dirs,
            deadline: Instant::now() + DEL_DEADLINE,
        };
        let mut failure = None;
        for plugin in list.plugins().rev() {
            match call
                .run(plugin, list, &attachment.capabilities, result.as_ref())
                .await
            {
                Ok(_) => {}
                Err(PluginError::NotInstalled { .. }) => {
                    tracing::warn!(pod = %id, plugin = conf::kind(plugin), "plugin for DEL is gone");
                }
                // The others still have something to give back.
                Err(source) => {
                    failure.get_or_insert(failed(list, "DEL", plugin, source));
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        cache::forget(&self.cache, id, attachment);
        Ok(())
    }
}

fn failed(
    list: &NetworkList,
    command: &'static str,
    plugin: &Value,
    source: PluginError,
) -> NetworkError {
    let (network, plugin) = (list.name().to_owned(), conf::kind(plugin).to_owned());
    NetworkError::Plugin {
        network,
        command,
        plugin,
        source,
    }
}

fn mapping(mapping: &crate::model::PortMapping) -> Value {
    json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.transport,
        "hostIP": mapping.host_ip,
    })
}

/// Kubernetes' bandwidth annotations, in bits per second.
fn bandwidth(config: &SandboxConfig, capabilities: &mut BTreeMap<String, Value>) {
    let rate = |name: &str| {
        let text = config
            .annotations
            .get(&format!("kubernetes.io/{name}-bandwidth"))?;
        quantity(text)
    };
    let mut value = serde_json::Map::new();
    for (direction, prefix) in [("ingress", "ingress"), ("egress", "egress")] {
        if let Some(rate) = rate(direction) {
            value.insert(format!("{prefix}Rate"), json!(rate));
            // The most a burst may be: the plugin's limit, as the kubelet's peers send it.
            value.insert(format!("{prefix}Burst"), json!(u32::MAX));
        }
    }
    if !value.is_empty() {
        capabilities.insert("bandwidth".to_owned(), Value::Object(value));
    }
}

/// A whole Kubernetes quantity such as `10M` or `1Gi`.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The pod's addresses in the result of ADD.
fn addresses(list: &NetworkList, result: &Value) -> Result<Vec<String>, NetworkError> {
    let problem = |problem: String| NetworkError::Result {
        network: list.name().to_owned(),
        problem,
    };
    let entries: Vec<&str> = match (&result["ips"], &result["ip4"], &result["ip6"]) {
        (Value::Array(ips), _, _) => ips.iter().filter_map(|ip| ip["address"].as_str()).collect(),
        // CNI 0.1 and 0.2 had one of each family.
        (_, four, six) => [four, six]
            .iter()
            .filter_map(|ip| ip["ip"].as_str())
            .collect(),
    };
    let mut addresses = Vec::new();
    for entry in entries {
        let bare = entry.split('/').next().unwrap_or_default();
        let address: IpAddr = bare
            .parse()
            .map_err(|_| problem(format!("has an address {entry:?}")))?;
        addresses.push(address.to_string());
    }
    if addresses.is_empty() {
        return Err(problem("has no address".into()));
    }
    Ok(addresses)
}

/// An error with all its causes, for a status message.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> NetworkList {
        conf::parse(
            br#"{"name":"n","type":"bridge","cniVersion":"1.0.0"}"#,
            false,
        )
        .expect("valid")
    }

    #[test]
    fn addresses_of_both_families_are_found_in_order() {
        let result = json!({"ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]});
        assert_eq!(
            addresses(&list(), &result).expect("valid"),
            ["10.0.0.2", "fd00::2"]
        );
        let old = json!({"ip4": {"ip": "10.0.0.3/24"}});
        assert_eq!(addresses(&list(), &old).expect("valid"), ["10.0.0.3"]);
    }

    #[test]
    fn a_result_without_an_address_is_an_error() {
        assert!(addresses(&list(), &json!({"ips": []})).is_err());
        assert!(addresses(&list(), &json!({"ips": [{"address": "nowhere"}]})).is_err());
    }

    #[test]
    fn quantities_have_decimal_and_binary_units() {
        for (text, rate) in [
            ("10M", Some(10_000_000)),
            ("1Ki", Some(1024)),
            ("7", Some(7)),
            ("1.5M", None),
        ] {
            assert_eq!(quantity(text), rate, "{text}");
        }
    }
}
