//! Pods: a pure state machine, one task per pod, and the work they order.
//!
//! - `machine`: what a container and a sandbox may become; no I/O.
//! - `task`: the one owner of a pod; handlers send it commands.
//! - `launch`, `container`, `teardown`: the work, idempotent where it undoes.
//! - `prepare`: from a container's record to the order that has its monitor make it.
//! - `record`: what is on disk; `restore` reads it at start, `unreadable` has what it
//!   cannot read.
//! - `upgrade`: has monitors of an earlier build go on as this engine's.
//! - `view` and `index`: what lists and statuses answer from, without I/O.
//!
//! A crash at any point leaves records whose intents were written before their
//! side effects; `restore` finishes or undoes them.

mod backoff;
pub(crate) mod container;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod files;
mod image_mounts;
pub(crate) mod image_names;
pub(crate) mod index;
pub(crate) mod launch;
pub(crate) mod machine;
mod placeholder;
mod prepare;
pub(crate) mod record;
pub(crate) mod restore;
pub(crate) mod task;
pub(crate) mod teardown;
mod unreadable;
mod upgrade;
pub(crate) mod view;
mod volumes;
