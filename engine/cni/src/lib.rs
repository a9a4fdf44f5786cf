//! The usual CNI plugins as functions over netlink.
//!
//! Owns what each built-in does for ADD, DEL, CHECK, STATUS and GC, with the
//! configuration, the results, the error codes and the files of
//! containernetworking/plugins v1.9.1, so that either side can undo what the
//! other did. Never executes a program, never changes the network namespace
//! of the calling thread, and knows neither the engine nor its records. A
//! crash leaves what a killed plugin would have left: DEL takes it away.

mod address;
mod builtin;
mod config;
mod conntrack;
mod error;
mod guest;
mod masquerade;
mod namespace;
pub mod netlink;
mod nft;
mod outside;
mod result;
mod rtnl;
mod spelling;
mod sysctl;
#[cfg(test)]
mod testing;
mod veth;

use std::path::Path;

use serde_json::Value;

pub use error::{Error, code};
pub use outside::delete_ends;

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Take an attachment away; of what is gone already, too.
    Del,
    /// Look whether an attachment still is what ADD made.
    Check,
    /// Say whether ADD could work.
    Status,
    /// Take away everything that belongs to no attachment of a list.
    Gc,
}

impl Command {
    /// The value of `CNI_COMMAND`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

/// What a plugin would find in its environment and on its standard input.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for STATUS and GC.
    pub container_id: &'a str,
    /// `CNI_NETNS`; a DEL may have none.
    pub netns: Option<&'a Path>,
    /// `CNI_IFNAME`; empty for STATUS and GC.
    pub interface: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// Standard input: the plugin's configuration with `name`, `cniVersion`,
    /// `runtimeConfig`, `prevResult` and the like.
    pub config: &'a Value,
    /// The caller drops the network namespace right after this DEL. Links in
    /// it are then left to the namespace's end, which spares the wait of a
    /// deletion; they may be seen for some milliseconds more.
    pub netns_will_go: bool,
}

/// Whether a type of plugin has a built-in.
pub fn is_builtin(kind: &str) -> bool {
    builtin::find(kind).is_some()
}

/// Whether the built-in of a configuration's type does all that this
/// configuration asks for. What says no must be executed.
pub fn is_builtin_config(config: &Value) -> bool {
    let kind = config["type"].as_str().unwrap_or_default();
    let accepts = |plugin: &builtin::Plugin| (plugin.accepts)(config);
    builtin::find(kind).is_some_and(accepts) && !spelling::is_odd(config)
}

/// Runs a built-in plugin. The result of ADD is in the configuration's
/// `cniVersion`; other commands answer null. Blocks.
pub fn run(kind: &str, call: &Invocation<'_>) -> Result<Value, Error> {
    let plugin = builtin::find(kind).ok_or_else(|| {
        let msg = format!("failed to find plugin {kind:?} among the built-in ones");
        Error::new(code::INVALID_ENVIRONMENT, msg)
    })?;
    config::check_call(call)?;
    (plugin.run)(call)
}
