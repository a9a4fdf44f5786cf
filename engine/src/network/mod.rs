//! The network of pods: CNI by built-in or executed plugins. Where no network is
//! configured, pods with a network of their own are refused, unless the
//! configuration has them do with a loopback interface.
//!
//! Owns the cached results below `<root>/cni`; never makes a network namespace.
//! A crash leaves the cached result or, before it, the intent in the pod's
//! record: either is enough for a DEL.

mod cache;
mod chain;
mod conf;
mod leftovers;
mod plugin;
mod readiness;
mod survivors;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cni::Command;
use runtime::netns::NetNs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use chain::{Arguments, Chain, Failure, Runner};
pub(crate) use conf::NetworkList;
pub(crate) use plugin::PluginError;
pub(crate) use readiness::Readiness;

use crate::causes::with_causes;
use crate::config::Cni;
use crate::convert::bandwidth;
use crate::ids::PodId;
use crate::model::SandboxConfig;
use crate::threads::on_disk;

/// The name of the pod's interface, as the kubelet and CNI users know it.
pub(crate) const INTERFACE: &str = "eth0";
/// RunPodSandbox has four minutes from the kubelet; the network must give up before.
const ADD_DEADLINE: Duration = Duration::from_secs(200);
const DEL_DEADLINE: Duration = Duration::from_secs(60);
/// How long killed plugins may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

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
    /// A pod needs a network of its own, and the node has none.
    #[error("no network is configured in {}", dir.display())]
    NotConfigured {
        /// `[cni] conf_dir`.
        dir: PathBuf,
    },
    /// A plugin is missing, so that none was run.
    #[error("network {network}: nothing was attached, plugin {plugin} is in none of {dirs:?}")]
    NothingAttached {
        /// Name of the network.
        network: String,
        /// Type of the plugin.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// A plugin failed.
    #[error("network {network}: {command} by plugin {plugin}")]
    Plugin {
        /// Name of the network.
        network: String,
        /// ADD, DEL or another.
        command: &'static str,
        /// Type of the plugin.
        plugin: String,
        /// Its error.
        source: PluginError,
    },
    /// A plugin that nobody waits for was killed and is still there.
    #[error("process {pid} of a plugin that was cut off does not end")]
    Survivor {
        /// Its process.
        pid: i32,
    },
    /// Plugins that nobody waits for could not be looked for, or killed.
    #[error("end processes of plugins that were cut off")]
    Processes(#[source] std::io::Error),
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// The configuration as it was at ADD.
    list: NetworkList,
    /// `CNI_ARGS`.
    args: String,
    /// Values for the plugins' capabilities.
    capabilities: BTreeMap<String, Value>,
    /// Which of the plugins ran as processes; empty where no plugin was built
    /// in yet. DEL goes the way that ADD went: an external plugin may have used
    /// a backend that the built-in one does not have.
    #[serde(default)]
    external: Vec<bool>,
}

/// The pods' network.
pub(crate) struct Network {
    cni: Cni,
    cache: PathBuf,
    readiness: readiness::Watch,
    limits: chain::Limits,
}

impl Network {
    /// Reads the configuration once; [`Network::refresh`] does so again.
    pub(crate) fn new(cni: Cni, cache: PathBuf) -> Self {
        Self {
            readiness: readiness::Watch::new(&cni),
            limits: chain::Limits::of_this_machine(),
            cni,
            cache,
        }
    }

    /// Whether a network for pods is configured; without I/O.
    pub(crate) fn readiness(&self) -> Arc<Readiness> {
        self.readiness.now()
    }

    /// Looks at the configuration folder again, and asks the plugins.
    pub(crate) async fn refresh(&self) {
        self.readiness.refresh(&self.cni, &self.limits).await;
    }

    /// The configured network in words, for a person.
    pub(crate) fn describe(&self) -> String {
        readiness::describe(&self.cni)
    }

    /// What a new pod will be attached to. `None`: it has a loopback interface and
    /// nothing else, which `[cni] loopback_only` allows where no network is configured.
    pub(crate) fn plan(
        &self,
        id: &PodId,
        config: &SandboxConfig,
    ) -> Result<Option<Attachment>, NetworkError> {
        let list = match conf::load(&self.cni.conf_dir)? {
            Some(list) => list,
            None if self.cni.loopback_only => return Ok(None),
            None => {
                let dir = self.cni.conf_dir.clone();
                return Err(NetworkError::NotConfigured { dir });
            }
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
        shaping(config, &mut capabilities);
        let annotations = json!(config.annotations);
        capabilities.insert("io.kubernetes.cri.pod-annotations".to_owned(), annotations);
        let runners = chain::runners(&self.cni, &list);
        let external = runners.iter().map(|runner| *runner == Runner::External);
        Ok(Some(Attachment {
            external: external.collect(),
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
        let runners = self.runners(attachment);
        self.all_installed(list, &runners)?;
        let arguments = arguments(Command::Add, id, netns, attachment);
        let chain = self.chain(list, &runners, arguments, ADD_DEADLINE);
        let result = chain
            .add()
            .await
            .map_err(|failure| failed(list, "ADD", failure))?;
        on_disk(|| cache::store(&self.cache, id, attachment, &result))?;
        addresses(list, &result)
    }

    /// Gives a pod's network back; its namespace must be dropped after that.
    /// Succeeds where nothing was attached. A plugin that is not installed has given
    /// nothing back: it may come with a DaemonSet some time after the node's start.
    ///
    /// Where the pin holds no namespace, plugins are told of none. A crash while it was
    /// made or removed leaves an empty file, on which they would fail for ever.
    pub(crate) async fn detach(
        &self,
        id: &PodId,
        netns: &Path,
        attachment: &Attachment,
    ) -> Result<(), NetworkError> {
        let list = &attachment.list;
        let result = on_disk(|| cache::load(&self.cache, id, attachment));
        let runners = self.runners(attachment);
        let netns = match on_disk(|| NetNs::is_pinned(netns)) {
            true => netns,
            false => Path::new(""),
        };
        let arguments = arguments(Command::Del, id, netns, attachment);
        let failures = self
            .chain(list, &runners, arguments, DEL_DEADLINE)
            .others(result)
            .await;
        if let Some(failure) = failures.into_iter().next() {
            return Err(failed(list, "DEL", failure));
        }
        // Other plugins delete their interfaces, and may name the next pod's alike.
        let made_here = runners.first() == Some(&Runner::Builtin);
        match made_here {
            true => {
                let aside = on_disk(|| cache::put_aside(&self.cache, id, attachment));
                aside.into_iter().for_each(leftovers::watch);
            }
            false => on_disk(|| cache::forget(&self.cache, id, attachment)),
        }
        Ok(())
    }

    /// Ends what is left of plugins of an attachment that were cut off, by their deadline
    /// or with an earlier engine: before its DEL, beside which an ADD must not go on.
    pub(crate) async fn end_survivors(
        &self,
        id: &PodId,
        attachment: &Attachment,
    ) -> Result<(), NetworkError> {
        if self.runners(attachment).contains(&Runner::External) {
            return end_survivors(id).await;
        }
        Ok(())
    }

    /// Gives back what a pod was attached to whose record cannot be read: what the
    /// cached results say, or else what the configured network may have.
    pub(crate) async fn detach_unrecorded(
        &self,
        id: &PodId,
        netns: &Path,
    ) -> Result<(), NetworkError> {
        end_survivors(id).await?;
        let mut attachments = on_disk(|| cache::of_pod(&self.cache, id));
        if attachments.is_empty() {
            let list = on_disk(|| conf::load(&self.cni.conf_dir))?;
            attachments.extend(list.map(|list| self.unknown_attachment(list)));
        }
        for attachment in &attachments {
            self.detach(id, netns, attachment).await?;
        }
        Ok(())
    }

    fn unknown_attachment(&self, list: NetworkList) -> Attachment {
        let runners = chain::runners(&self.cni, &list);
        let external = runners.iter().map(|runner| *runner == Runner::External);
        Attachment {
            external: external.collect(),
            list,
            args: String::new(),
            capabilities: BTreeMap::new(),
        }
    }

    /// Gives back what pods of this root were attached to whose records are gone.
    ///
    /// CNI's own GC is not used: a plugin takes it for the whole network, and would give
    /// back the addresses of pods that another engine or another runtime has in it.
    /// `pods` answers which pods have records.
    pub(crate) async fn collect(
        &self,
        pods: impl FnOnce() -> std::io::Result<Vec<PodId>>,
        netns: impl Fn(&PodId) -> PathBuf,
    ) {
        let aside = on_disk(|| cache::aside(&self.cache));
        aside.into_iter().for_each(leftovers::watch);
        // Read before the records: a pod's record is there before its first result.
        let cached = on_disk(|| cache::all(&self.cache));
        let pods = match on_disk(pods) {
            Ok(pods) => pods,
            Err(error) => {
                tracing::warn!(%error, "without a list of pods no network is collected");
                return;
            }
        };
        for (id, attachment) in cached {
            if pods.contains(&id) || !attachment.list.allows_gc() {
                continue;
            }
            tracing::info!(pod = %id, "giving back the network of a pod whose record is gone");
            let netns = netns(&id);
            if let Err(error) = self.detach(&id, &netns, &attachment).await {
                let reason = with_causes(&error);
                tracing::warn!(pod = %id, reason, "leftovers of a network stay");
                continue;
            }
            if let Err(error) = on_disk(|| NetNs::unpin(&netns)) {
                tracing::warn!(pod = %id, %error, "the network namespace of a pod without a record stays");
            }
        }
    }

    /// A chain is not begun that cannot be ended, nor then be given back.
    fn all_installed(&self, list: &NetworkList, runners: &[Runner]) -> Result<(), NetworkError> {
        let dirs = &self.cni.bin_dirs;
        let missing = list.plugins().zip(runners).find(|(plugin, runner)| {
            let name = conf::kind(plugin);
            **runner == Runner::External && plugin::installed(dirs, name).is_none()
        });
        match missing {
            None => Ok(()),
            Some((plugin, _)) => Err(NetworkError::NothingAttached {
                network: list.name().to_owned(),
                plugin: conf::kind(plugin).to_owned(),
                dirs: dirs.clone(),
            }),
        }
    }

    fn runners(&self, attachment: &Attachment) -> Vec<Runner> {
        let list = &attachment.list;
        if attachment.external.len() != list.plugins().len() {
            return chain::former_runners(&self.cni, list);
        }
        let runner = |external: &bool| match external {
            true => Runner::External,
            false => Runner::Builtin,
        };
        attachment.external.iter().map(runner).collect()
    }

    fn chain<'a>(
        &'a self,
        list: &'a NetworkList,
        runners: &'a [Runner],
        arguments: Arguments,
        patience: Duration,
    ) -> Chain<'a> {
        Chain {
            cni: &self.cni,
            limits: &self.limits,
            list,
            runners,
            arguments,
            deadline: Instant::now() + patience,
        }
    }
}

async fn end_survivors(id: &PodId) -> Result<(), NetworkError> {
    let pod = id.to_string();
    let work = tokio::task::spawn_blocking(move || survivors::end(&pod, KILL_PATIENCE));
    // A process may have whoever reads its environment wait for a disk.
    match tokio::time::timeout(2 * KILL_PATIENCE, work).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => Err(NetworkError::Processes(std::io::Error::other(error))),
        Err(late) => Err(NetworkError::Processes(late.into())),
    }
}

fn arguments(command: Command, id: &PodId, netns: &Path, attachment: &Attachment) -> Arguments {
    Arguments {
        id: id.to_string(),
        netns: netns.to_owned(),
        args: attachment.args.clone(),
        capabilities: attachment.capabilities.clone(),
        ..Arguments::about_none(command)
    }
}

fn failed(list: &NetworkList, command: &'static str, failure: Failure) -> NetworkError {
    NetworkError::Plugin {
        network: list.name().to_owned(),
        command,
        plugin: failure.plugin,
        source: failure.source,
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

/// Kubernetes' bandwidth annotations for the plugin, in bits per second.
fn shaping(config: &SandboxConfig, capabilities: &mut BTreeMap<String, Value>) {
    let mut value = serde_json::Map::new();
    for direction in bandwidth::DIRECTIONS {
        // Nonsense was refused with the request.
        if let Ok(Some(rate)) = bandwidth::rate(&config.annotations, direction) {
            value.insert(format!("{direction}Rate"), json!(rate));
            // The most a burst may be: the plugin's limit, as the kubelet's peers send it.
            value.insert(format!("{direction}Burst"), json!(u32::MAX));
        }
    }
    if !value.is_empty() {
        capabilities.insert("bandwidth".to_owned(), Value::Object(value));
    }
}

/// The addresses of the pod's own interface in the result of ADD.
fn addresses(list: &NetworkList, result: &Value) -> Result<Vec<String>, NetworkError> {
    let problem = |problem: String| NetworkError::Result {
        network: list.name().to_owned(),
        problem,
    };
    // An address may say to which of the interfaces it belongs; others than the pod's
    // own are ends on the node, or of networks beside this one.
    let is_own = |ip: &&Value| match ip["interface"].as_u64() {
        None => true,
        Some(at) => {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let interface = &result["interfaces"][at];
            let text = |key: &str| interface[key].as_str().unwrap_or_default();
            interface.is_null() || (text("name") == INTERFACE && !text("sandbox").is_empty())
        }
    };
    let entries: Vec<&str> = match (&result["ips"], &result["ip4"], &result["ip6"]) {
        (Value::Array(ips), _, _) => ips
            .iter()
            .filter(is_own)
            .filter_map(|ip| ip["address"].as_str())
            .collect(),
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
        return Err(problem(format!("has no address of {INTERFACE}")));
    }
    Ok(addresses)
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
    fn only_addresses_of_the_pods_own_interface_are_the_pods() {
        let result = json!({
            "interfaces": [
                {"name": "br0"},
                {"name": "eth0", "sandbox": "/run/netns/x"},
                {"name": "net1", "sandbox": "/run/netns/x"},
                {"name": "eth0"},
            ],
            "ips": [
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.2/24", "interface": 1},
                {"address": "10.1.0.2/24", "interface": 2},
                {"address": "10.2.0.2/24", "interface": 3},
                {"address": "10.3.0.2/24"},
            ],
        });
        let found = addresses(&list(), &result).expect("valid");
        assert_eq!(found, ["10.0.0.2", "10.3.0.2"]);
    }

    #[test]
    fn a_result_without_an_address_is_an_error() {
        assert!(addresses(&list(), &json!({"ips": []})).is_err());
        assert!(addresses(&list(), &json!({"ips": [{"address": "nowhere"}]})).is_err());
    }

    #[test]
    fn an_attachment_of_an_older_engine_goes_the_way_it_came_if_that_is_there() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cni = Cni {
            conf_dir: dir.path().to_owned(),
            bin_dirs: vec![dir.path().to_owned()],
            netns_dir: dir.path().to_owned(),
            external_plugins: Vec::new(),
            loopback_only: false,
        };
        let network = Network::new(cni, dir.path().to_owned());
        let old = json!({"list": list(), "args": "", "capabilities": {}});
        let old: Attachment = serde_json::from_value(old).expect("readable");
        assert_eq!(network.runners(&old), [Runner::Builtin]);
        std::fs::write(dir.path().join("bridge"), "").expect("write");
        assert_eq!(network.runners(&old), [Runner::External]);
        let new = Attachment {
            external: vec![false],
            ..old
        };
        assert_eq!(network.runners(&new), [Runner::Builtin]);
    }
}
