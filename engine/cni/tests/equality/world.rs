//! A node and a pod to attach to it: two network namespaces and a folder, all of
//! which end with the value.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

/// The containers of every case, in their order.
const CONTAINERS: [&str; 2] = [
    "5d2f0a1c9b3e4f60718293a4b5c6d7e8f9012345678901234567890123456789",
    "7a2f0a1c9b3e4f60718293a4b5c6d7e8f9012345678901234567890123456789",
];
/// Its interface.
pub(crate) const INTERFACE: &str = "eth0";

/// Who does what a command says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The plugins of containernetworking/plugins, as processes.
    Plugins,
    /// The functions of this crate.
    Builtin,
}

/// A node with one pod, and what has been done to them.
pub(crate) struct World {
    node: File,
    pod: File,
    /// The namespace of the other pod, if there is one.
    other: Option<File>,
    container: &'static str,
    dir: tempfile::TempDir,
}

impl World {
    /// An empty node and an empty pod, loopback up in the node.
    pub(crate) fn new() -> Self {
        let world = Self {
            node: new_namespace(),
            pod: new_namespace(),
            other: None,
            container: CONTAINERS[0],
            dir: tempfile::tempdir().expect("a temporary folder"),
        };
        for namespace in [&world.node, &world.pod] {
            // Addresses of IPv6 are ready at once, so that nothing depends on when
            // it is looked at.
            inside(namespace, || {
                for (name, value) in [("dad_transmits", "0"), ("router_solicitation_delay", "0")] {
                    let file = format!("/proc/sys/net/ipv6/conf/default/{name}");
                    std::fs::write(file, value).expect("a sysctl");
                }
            });
        }
        world.node_says(&["ip", "link", "set", "lo", "up"]);
        let resolv = "nameserver 10.9.9.9\nsearch a.example b.example\noptions ndots:5\n";
        std::fs::write(world.dir.path().join("resolv.conf"), resolv).expect("a file");
        world
    }

    /// Another pod on the same node; the former one ends.
    pub(crate) fn next_pod(&mut self) {
        self.pod = new_namespace();
    }

    /// Turns to the other pod of the node.
    pub(crate) fn turn(&mut self) {
        let other = self.other.take().unwrap_or_else(new_namespace);
        self.other = Some(std::mem::replace(&mut self.pod, other));
        let [first, second] = CONTAINERS;
        self.container = if self.container == first {
            second
        } else {
            first
        };
    }

    /// The folder of what plugins keep, `<dir>` in configurations.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of the pod's namespace, as CNI_NETNS.
    pub(crate) fn pod_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.pod.as_raw_fd()).into()
    }

    /// Runs a program on the node; what it prints.
    pub(crate) fn node_says(&self, command: &[&str]) -> String {
        inside(&self.node, || says(command))
    }

    /// Runs a program in the pod's network; what it prints.
    pub(crate) fn pod_says(&self, command: &[&str]) -> String {
        inside(&self.pod, || says(command))
    }

    /// Work in the node's or the pod's network.
    pub(crate) fn inside<T: Send>(&self, pod: bool, work: impl FnOnce() -> T + Send) -> T {
        inside(if pod { &self.pod } else { &self.node }, work)
    }

    /// Joins two nodes: 192.0.2.1 here, 192.0.2.2 there.
    pub(crate) fn join(&self, other: &Self) {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.node.as_raw_fd());
        let link = [
            "ip", "link", "add", "up0", "type", "veth", "peer", "up0", "netns",
        ];
        self.node_says(&[&link[..], &[there.as_str()]].concat());
        for (node, address) in [(self, "192.0.2.1/24"), (other, "192.0.2.2/24")] {
            node.node_says(&["ip", "address", "add", address, "dev", "up0"]);
            node.node_says(&["ip", "link", "set", "up0", "up"]);
        }
    }

    /// ADD of the last plugin of a chain alone.
    pub(crate) fn add_last(
        &self,
        side: Side,
        chain: &Chain,
        previous: &Value,
    ) -> Result<Value, String> {
        let last = chain.plugins.len() - 1;
        self.call((side, "ADD"), chain, last, Some(previous))
    }

    /// ADD of a chain: the result of the last plugin.
    pub(crate) fn add(&self, side: Side, chain: &Chain) -> Result<Value, String> {
        let mut previous = None;
        for plugin in 0..chain.plugins.len() {
            let result = self.call((side, "ADD"), chain, plugin, previous.as_ref())?;
            previous = Some(result);
        }
        Ok(previous.unwrap_or(Value::Null))
    }

    /// DEL of a chain, in its order: from the last plugin to the first.
    pub(crate) fn del(
        &self,
        side: Side,
        chain: &Chain,
        result: Option<&Value>,
    ) -> Result<(), String> {
        for plugin in (0..chain.plugins.len()).rev() {
            self.call((side, "DEL"), chain, plugin, result)?;
        }
        Ok(())
    }

    /// CHECK of a chain.
    pub(crate) fn check(&self, side: Side, chain: &Chain, result: &Value) -> Result<(), String> {
        for plugin in 0..chain.plugins.len() {
            self.call((side, "CHECK"), chain, plugin, Some(result))?;
        }
        Ok(())
    }

    /// One plugin; the error is its message.
    fn call(
        &self,
        (side, command): (Side, &str),
        chain: &Chain,
        plugin: usize,
        previous: Option<&Value>,
    ) -> Result<Value, String> {
        let side = if plugin < chain.given {
            Side::Plugins
        } else {
            side
        };
        let text = chain.plugins[plugin].to_string();
        let text = text.replace("<dir>", &self.dir.path().display().to_string());
        let mut config: Value = serde_json::from_str(&text).expect("still JSON");
        config["name"] = json!(chain.name);
        config["cniVersion"] = json!(chain.version);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let kind = config["type"].as_str().expect("a type").to_owned();
        let done = inside(&self.node, || match side {
            Side::Plugins => self.execute(&kind, command, chain, &config),
            Side::Builtin => self.run(&kind, command, chain, &config),
        });
        done.map_err(|error| format!("{command} by {kind} ({side:?}): {error}"))
    }

    fn run(
        &self,
        kind: &str,
        command: &str,
        chain: &Chain,
        config: &Value,
    ) -> Result<Value, String> {
        assert!(cni::is_builtin_config(config), "no built-in for {config}");
        let netns = self.pod_path();
        let call = cni::Invocation {
            command: match command {
                "ADD" => cni::Command::Add,
                "DEL" => cni::Command::Del,
                _ => cni::Command::Check,
            },
            container_id: self.container,
            netns: Some(&netns),
            interface: INTERFACE,
            args: &chain.args,
            config,
            netns_will_go: chain.pod_goes,
        };
        cni::run(kind, &call).map_err(|error| error.to_value(&chain.version).to_string())
    }

    fn execute(
        &self,
        kind: &str,
        command: &str,
        chain: &Chain,
        config: &Value,
    ) -> Result<Value, String> {
        let plugins = plugins();
        let mut child = Command::new(plugins.join(kind))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.container)
            .env("CNI_NETNS", self.pod_path())
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", &chain.args)
            .env("CNI_PATH", plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut stdin = child.stdin.take().expect("piped");
        stdin
            .write_all(config.to_string().as_bytes())
            .map_err(|error| error.to_string())?;
        drop(stdin);
        let output = child
            .wait_with_output()
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            return Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }
}

/// A network: plugins one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    /// Name of the network.
    pub(crate) name: String,
    /// Version of CNI.
    pub(crate) version: String,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// How many of the first are the plugins' in every world: what the others
    /// build upon.
    pub(crate) given: usize,
    /// Whether the plugins' own CHECK is content with what they make.
    pub(crate) is_checked: bool,
    /// Whether the results are alike.
    pub(crate) compares_result: bool,
    /// Whether the built-in plugins may leave links to the end of the namespace.
    pub(crate) pod_goes: bool,
    /// Their configurations, `runtimeConfig` included.
    pub(crate) plugins: Vec<Value>,
}

impl Chain {
    /// Plugins in CNI 1.0.0.
    pub(crate) fn new(plugins: impl IntoIterator<Item = Value>) -> Self {
        Self {
            name: "test-net".into(),
            version: "1.0.0".into(),
            args: String::new(),
            given: 0,
            is_checked: true,
            compares_result: true,
            pod_goes: false,
            plugins: plugins.into_iter().collect(),
        }
    }

    /// The same in another version.
    pub(crate) fn version(mut self, version: &str) -> Self {
        self.version = version.into();
        self
    }

    /// The same without a look at the result.
    pub(crate) fn without_result(mut self) -> Self {
        self.compares_result = false;
        self
    }

    /// The same where the plugins' CHECK may fail even for what they made.
    pub(crate) fn unchecked(mut self, why: &str) -> Self {
        println!("the plugins may not CHECK what they make: {why}");
        self.is_checked = false;
        self
    }

    /// The same with only the others to compare.
    pub(crate) fn given(mut self, given: usize) -> Self {
        self.given = given;
        self
    }

    /// The same where the pod's namespace is dropped after DEL.
    pub(crate) fn pod_goes(mut self) -> Self {
        self.pod_goes = true;
        self
    }

    /// The same with `CNI_ARGS`.
    pub(crate) fn args(mut self, args: &str) -> Self {
        self.args = args.into();
        self
    }
}

/// Where the plugins are; ends the test where they are not.
fn plugins() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/conformance/plugins");
    dir.canonicalize().unwrap_or_else(|_| {
        panic!(
            "the CNI plugins to compare with are not built: run conformance/cni/prepare (it needs Go), or `make plugins`"
        )
    })
}

fn new_namespace() -> File {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: the tests need root");
        File::open("/proc/thread-self/ns/net").expect("a namespace file")
    })
}

fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
        work()
    })
}

/// Namespaces belong to threads: what changes them gets one of its own.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn says(command: &[&str]) -> String {
    let output = Command::new(command[0])
        .args(&command[1..])
        .stderr(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
