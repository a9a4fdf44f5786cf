//! The `portmap` plugin: not built in yet.

use serde_json::Value;

use crate::{Error, Invocation};

/// Nothing yet: every configuration is executed.
pub(super) fn accepts(_config: &Value) -> bool {
    false
}

/// Does what the invocation says.
pub(super) fn run(_call: &Invocation<'_>) -> Result<Value, Error> {
    Err(Error::internal("portmap is not built in yet"))
}
