//! The built-in plugins by their type.
//!
//! Owns the table; each module below is one plugin.

mod bandwidth;
mod bridge;
mod firewall;
mod host_local;
mod ipam;
mod loopback;
mod portmap;
mod ptp;
mod statically;
mod tuning;

use serde_json::Value;

use crate::{Error, Invocation};

/// One plugin.
pub(crate) struct Plugin {
    kind: &'static str,
    /// Whether the built-in does all that a configuration asks for.
    pub(crate) accepts: fn(&Value) -> bool,
    /// Does what the invocation says.
    pub(crate) run: fn(&Invocation<'_>) -> Result<Value, Error>,
}

const PLUGINS: &[Plugin] = &[
    Plugin {
        kind: "bandwidth",
        accepts: bandwidth::accepts,
        run: bandwidth::run,
    },
    Plugin {
        kind: "bridge",
        accepts: bridge::accepts,
        run: bridge::run,
    },
    Plugin {
        kind: "firewall",
        accepts: firewall::accepts,
        run: firewall::run,
    },
    Plugin {
        kind: "host-local",
        accepts: host_local::accepts,
        run: host_local::run,
    },
    Plugin {
        kind: "loopback",
        accepts: loopback::accepts,
        run: loopback::run,
    },
    Plugin {
        kind: "portmap",
        accepts: portmap::accepts,
        run: portmap::run,
    },
    Plugin {
        kind: "ptp",
        accepts: ptp::accepts,
        run: ptp::run,
    },
    Plugin {
        kind: "static",
        accepts: statically::accepts,
        run: statically::run,
    },
    Plugin {
        kind: "tuning",
        accepts: tuning::accepts,
        run: tuning::run,
    },
];

/// The plugin of a type.
pub(crate) fn find(kind: &str) -> Option<&'static Plugin> {
    PLUGINS.iter().find(|plugin| plugin.kind == kind)
}
