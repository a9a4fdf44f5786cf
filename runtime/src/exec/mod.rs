//! Processes that are run in a container beside its first one.
//!
//! Owns the way from a description ([`Plan`]) to a process that has every
//! property of the container: namespaces, cgroups, capabilities, seccomp. All
//! is prepared before the clone; the child only makes system calls. A property
//! that cannot be given ends the process with the step's name, never starts it
//! without.

pub(crate) mod birth;
mod child;
pub mod keyring;
mod plan;
mod program;
mod report;
pub(crate) mod steps;

pub use child::{Begun, Stdio, Streams, spawn};
pub use plan::{BadProcess, Plan, capability_number};
pub use program::{Command, DEFAULT_PATH, Program, Refused};
pub use report::{Problem, Step};
