//! Measures CRI engines side by side through their sockets.
//!
//! Owns the pods that it makes, all of which carry its label, and nothing else of
//! an engine. What is killed in the middle leaves such pods behind; what fails or
//! is interrupted does not.

pub mod burst;
pub mod contestant;
pub mod exec;
pub mod figures;
pub mod latency;
pub mod logs;
pub mod machine;
pub mod plan;
pub mod plot;
pub mod population;
pub mod report;
pub mod streams;

use std::io::IsTerminal;

/// Says on standard error what is measured now, where a person looks on.
#[derive(Debug)]
pub struct Progress(bool);

impl Progress {
    /// Quiet unless standard error is a terminal.
    #[must_use]
    pub fn new() -> Self {
        Self(std::io::stderr().is_terminal())
    }

    /// Says it.
    pub fn say(&self, what: impl AsRef<str>) {
        if self.0 {
            eprint!("\r\x1b[K{}", what.as_ref());
        }
    }

    /// Clears the line.
    pub fn done(&self) {
        self.say("");
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
