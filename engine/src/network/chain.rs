//! One command for all plugins of a list: built-in ones as functions, the
//! others as processes.
//!
//! Owns which of both a plugin is. Neighbours that are built in share one
//! blocking call.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cni::{Command, Invocation};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::conf::{NetworkList, kind};
use super::plugin::{Call, PluginError, installed};
use crate::config::Cni;

/// Plugins that attach as processes at once: most of them wait for a daemon of theirs.
const MOST_PROCESSES: usize = 32;

/// How a plugin runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Runner {
    /// As a function of the engine.
    Builtin,
    /// As a process.
    External,
}

/// How the plugins of a list run, in their order.
pub(super) fn runners(cni: &Cni, list: &NetworkList) -> Vec<Runner> {
    list.plugins().map(|plugin| runner(cni, plugin)).collect()
}

fn runner(cni: &Cni, plugin: &Value) -> Runner {
    let ipam = plugin["ipam"]["type"].as_str().unwrap_or_default();
    // A built-in plugin would use the built-in address management.
    if cni.is_external(kind(plugin)) || cni.is_external(ipam) {
        return Runner::External;
    }
    match accepted(plugin) {
        true => Runner::Builtin,
        false => Runner::External,
    }
}

/// What was decided of the firewalls that are configured.
static FIREWALLS: Decisions = Decisions(Mutex::new(BTreeMap::new()));

/// Whether the built-in does all that a configuration asks for. For a firewall that
/// depends on what else filters packets on the node, and is decided once: the rules of
/// pods must not go one way today and another when a module was loaded.
fn accepted(plugin: &Value) -> bool {
    match kind(plugin) {
        "firewall" => FIREWALLS.of(plugin, cni::is_builtin_config),
        _ => cni::is_builtin_config(plugin),
    }
}

/// Answers that stay, by the configuration that they are about.
struct Decisions(Mutex<BTreeMap<String, bool>>);

impl Decisions {
    fn of(&self, plugin: &Value, decide: impl FnOnce(&Value) -> bool) -> bool {
        let mut decided = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = decided.entry(plugin.to_string());
        *entry.or_insert_with(|| decide(plugin))
    }
}

/// How the plugins ran that made an attachment whose record does not say it:
/// an engine without built-in plugins wrote it.
pub(super) fn former_runners(cni: &Cni, list: &NetworkList) -> Vec<Runner> {
    let former = |plugin| match installed(&cni.bin_dirs, kind(plugin)) {
        Some(_) => Runner::External,
        None => runner(cni, plugin),
    };
    list.plugins().map(former).collect()
}

/// What all plugins of a list are told.
#[derive(Debug, Clone)]
pub(super) struct Arguments {
    pub(super) command: Command,
    /// Empty for STATUS, like the next two.
    pub(super) id: String,
    pub(super) netns: PathBuf,
    pub(super) args: String,
    pub(super) capabilities: BTreeMap<String, Value>,
}

/// One command on its way through a list.
pub(super) struct Chain<'a> {
    pub(super) cni: &'a Cni,
    pub(super) limits: &'a Limits,
    pub(super) list: &'a NetworkList,
    pub(super) runners: &'a [Runner],
    pub(super) arguments: Arguments,
    /// For all plugins that are processes.
    pub(super) deadline: Instant,
}

/// A plugin's failure, with its type.
pub(super) struct Failure {
    pub(super) plugin: String,
    pub(super) source: PluginError,
}

impl Chain<'_> {
    /// ADD: each plugin gets the result of the one before; the first failure
    /// ends it.
    pub(super) async fn add(&self) -> Result<Value, Failure> {
        let mut result = None;
        for (runner, plugins) in self.parts(false) {
            let results = self.run(runner, plugins, result.take(), true).await;
            for (_, one) in results {
                result = Some(one?);
            }
        }
        Ok(result.unwrap_or(Value::Null))
    }

    /// Any other command: each plugin gets the result of ADD, in the order of
    /// DEL for that, and all are asked.
    pub(super) async fn others(&self, result: Option<Value>) -> Vec<Failure> {
        let mut failures = Vec::new();
        for (runner, plugins) in self.parts(self.arguments.command == Command::Del) {
            let results = self.run(runner, plugins, result.clone(), false).await;
            failures.extend(results.into_iter().filter_map(|(_, one)| one.err()));
        }
        failures
    }

    /// Neighbours that run the same way.
    fn parts(&self, reverse: bool) -> Vec<(Runner, Vec<Value>)> {
        let mut all: Vec<_> = self.list.plugins().zip(self.runners).collect();
        if reverse {
            all.reverse();
        }
        let mut parts: Vec<(Runner, Vec<Value>)> = Vec::new();
        for (plugin, runner) in all {
            match parts.last_mut() {
                Some((Runner::Builtin, plugins)) if *runner == Runner::Builtin => {
                    plugins.push(plugin.clone());
                }
                _ => parts.push((*runner, vec![plugin.clone()])),
            }
        }
        parts
    }

    async fn run(
        &self,
        runner: Runner,
        plugins: Vec<Value>,
        previous: Option<Value>,
        chained: bool,
    ) -> Vec<(String, Result<Value, Failure>)> {
        let names: Vec<String> = plugins
            .iter()
            .map(|plugin| kind(plugin).to_owned())
            .collect();
        let results = match runner {
            Runner::External => self.execute(&plugins, previous.as_ref()).await,
            Runner::Builtin => self.call(plugins, previous, chained).await,
        };
        let named = names.into_iter().zip(results);
        named
            .map(|(plugin, result)| {
                let result = result.map_err(|source| Failure {
                    plugin: plugin.clone(),
                    source,
                });
                (plugin, result)
            })
            .collect()
    }

    async fn execute(
        &self,
        plugins: &[Value],
        previous: Option<&Value>,
    ) -> Vec<Result<Value, PluginError>> {
        let call = Call {
            command: self.arguments.command.name(),
            id: &self.arguments.id,
            netns: &self.arguments.netns,
            args: &self.arguments.args,
            bin_dirs: &self.cni.bin_dirs,
            deadline: self.deadline,
        };
        let turns = self
            .limits
            .processes(self.list.name(), self.arguments.command);
        let mut results = Vec::new();
        for plugin in plugins {
            let input = self
                .list
                .input(plugin, &self.arguments.capabilities, previous);
            let Ok(_turn) = turns.acquire().await else {
                results.push(Err(PluginError::Defect("the engine ends".into())));
                break;
            };
            let result = call.run(kind(plugin), input).await;
            let failed = result.is_err();
            results.push(result);
            if failed && self.arguments.command == Command::Add {
                break;
            }
        }
        results
    }

    async fn call(
        &self,
        plugins: Vec<Value>,
        previous: Option<Value>,
        chained: bool,
    ) -> Vec<Result<Value, PluginError>> {
        let turns = self
            .limits
            .builtin(self.list.name(), self.arguments.command);
        let Ok(permit) = turns.acquire_owned().await else {
            return vec![Err(PluginError::Defect("the engine ends".into()))];
        };
        let (arguments, list) = (self.arguments.clone(), self.list.clone());
        let work = move || {
            let results = call_all(&arguments, &list, &plugins, previous, chained);
            // With the work, even if nobody waits for it any more.
            drop(permit);
            results
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(results) => results,
            Err(error) => vec![Err(PluginError::Defect(error.to_string()))],
        }
    }
}

impl Arguments {
    /// A command about no attachment.
    pub(super) fn about_none(command: Command) -> Self {
        Self {
            command,
            id: String::new(),
            netns: PathBuf::new(),
            args: String::new(),
            capabilities: BTreeMap::new(),
        }
    }

    /// Calls one built-in plugin.
    pub(super) fn call(&self, kind: &str, input: &Value) -> Result<Value, PluginError> {
        let about_one = matches!(self.command, Command::Add | Command::Del | Command::Check);
        let call = Invocation {
            command: self.command,
            container_id: &self.id,
            netns: Some(self.netns.as_path()).filter(|path| *path != Path::new("")),
            interface: if about_one { super::INTERFACE } else { "" },
            args: &self.args,
            config: input,
            // Nobody but the engine has the namespace, and it drops it after DEL.
            netns_will_go: self.command == Command::Del,
        };
        cni::run(kind, &call).map_err(|error| PluginError::Builtin(Box::new(error)))
    }
}

fn call_all(
    arguments: &Arguments,
    list: &NetworkList,
    plugins: &[Value],
    mut previous: Option<Value>,
    chained: bool,
) -> Vec<Result<Value, PluginError>> {
    let mut results = Vec::new();
    for plugin in plugins {
        let input = list.input(plugin, &arguments.capabilities, previous.as_ref());
        let result = arguments.call(kind(plugin), &input);
        let failed = result.is_err();
        if chained {
            previous = result.as_ref().ok().cloned();
        }
        results.push(result);
        if chained && failed {
            break;
        }
    }
    results
}

/// How many plugins run at once: for each network, and in it for each command that must
/// not wait for another. Some wait for whoever else uses the network's folder, or for a
/// daemon that is away.
pub(super) struct Limits {
    turns: Mutex<HashMap<Turns, Arc<Semaphore>>>,
    /// Built in: as many as keep the kernel's one lock for links busy.
    builtin: usize,
}

/// Who takes turns with one another.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Turns {
    network: String,
    command: &'static str,
    builtin: bool,
}

impl Limits {
    pub(super) fn of_this_machine() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            turns: Mutex::default(),
            builtin: cores * 2,
        }
    }

    /// The turns of built-in plugins for a command of a network.
    fn builtin(&self, network: &str, command: Command) -> Arc<Semaphore> {
        self.turns(network, command, true, self.builtin)
    }

    /// The turns of plugins that are processes.
    fn processes(&self, network: &str, command: Command) -> Arc<Semaphore> {
        let most = match command {
            Command::Add => MOST_PROCESSES,
            _ => MOST_PROCESSES / 2,
        };
        self.turns(network, command, false, most)
    }

    fn turns(&self, network: &str, command: Command, builtin: bool, most: usize) -> Arc<Semaphore> {
        let key = Turns {
            network: network.to_owned(),
            command: command.name(),
            builtin,
        };
        let all = self.turns.lock();
        let mut all = all.unwrap_or_else(PoisonError::into_inner);
        let turns = all.entry(key);
        Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(most))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_network_that_is_held_up_keeps_no_other_and_no_new_pod_waiting() {
        let limits = Limits::of_this_machine();
        for turns in [Limits::builtin, Limits::processes] {
            let of = |network, command| turns(&limits, network, command);
            let held_up = of("old", Command::Del);
            let all = u32::try_from(held_up.available_permits()).unwrap();
            let _all = held_up.acquire_many(all).await.unwrap();
            assert!(of("old", Command::Del).try_acquire().is_err());
            for (network, command) in [
                ("old", Command::Add),
                ("old", Command::Status),
                ("new", Command::Del),
            ] {
                assert!(of(network, command).try_acquire().is_ok(), "{network}");
            }
        }
    }

    #[test]
    fn what_a_firewall_runs_as_is_decided_once_for_each_configuration() {
        let decisions = Decisions(Mutex::default());
        let (one, other) = (
            json!({"type": "firewall"}),
            json!({"type": "firewall", "a": 1}),
        );
        assert!(decisions.of(&one, |_| true));
        assert!(decisions.of(&one, |_| false), "a module was loaded since");
        assert!(!decisions.of(&other, |_| false));
    }
}
