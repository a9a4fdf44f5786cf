//! Bounds and patience: what tests and unusual nodes may want otherwise.

use std::time::Duration;

pub use crate::unpack::Limits;

/// How the store treats registries and archives.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Bounds of one layer.
    pub limits: Limits,
    /// How long a host may take until its answer begins. Registries that fetch
    /// an image from elsewhere first need more.
    pub first_byte: Duration,
    /// A connection that brings nothing for this long is given up.
    pub stall: Duration,
    /// A connection that brings less than this many bytes in a second, over
    /// the time of `stall`, is given up too.
    pub min_speed: u64,
    /// Attempts at one host before the next is asked.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles with each.
    pub backoff: Duration,
    /// How long connecting may take where `hosts.toml` does not say.
    pub connect: Duration,
    /// Layers fetched and unpacked at the same time in one pull.
    pub parallel: usize,
    /// Hosts, with their port unless it is 443, that layers may come from when
    /// their manifest says that they are not in the registry. None: such images
    /// are refused.
    pub foreign_layer_hosts: Vec<String>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            first_byte: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            min_speed: 1024,
            attempts: 3,
            backoff: Duration::from_millis(500),
            connect: Duration::from_secs(15),
            parallel: 4,
            foreign_layer_hosts: Vec::new(),
        }
    }
}
