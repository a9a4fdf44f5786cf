//! Container logs in CRI's format.
//!
//! Owns the splitting of output into lines ([`LineSplitter`]), the time stamps
//! and the log file ([`LogFile`]). Never keeps a container waiting for a disk
//! that is full: what cannot be written is counted and dropped. A crash loses
//! at most the output that was in the pipes and an unfinished line.

mod file;
mod splitter;
mod stamp;

pub use file::{LogError, LogFile, open};
pub use splitter::{LineSplitter, MAX_LINE, Stream};
pub use stamp::Stamp;

/// What a container's log writer, a process of its own, calls itself.
pub const WRITER_NAME: &str = "slipway-log";
