//! The cached result of ADD, in the format and under the name that CNI's own
//! library uses, so that its tools find it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Attachment, INTERFACE, NetworkError};
use crate::ids::PodId;

fn file(cache: &Path, id: &PodId, attachment: &Attachment) -> PathBuf {
    cache
        .join("results")
        .join(format!("{}-{id}-{INTERFACE}", attachment.list.name()))
}

/// Keeps the result; written to a temporary name and renamed.
pub(super) fn store(
    cache: &Path,
    id: &PodId,
    attachment: &Attachment,
    result: &Value,
) -> Result<(), NetworkError> {
    let path = file(cache, id, attachment);
    let entry = json!({
        "kind": "cniCacheV1",
        "containerId": id.as_str(),
        "ifName": INTERFACE,
        "networkName": attachment.list.name(),
        "cniArgs": pairs(&attachment.args),
        "capabilityArgs": attachment.capabilities,
        "result": result,
    });
    let write = || {
        std::fs::create_dir_all(cache.join("results"))?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, entry.to_string())?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(|source| NetworkError::Cache {
        path: path.clone(),
        source,
    })
}

fn pairs(args: &str) -> Vec<[&str; 2]> {
    args.split(';')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| [key, value])
        .collect()
}

/// The result of ADD; `None` where ADD never ended or the file is unreadable:
/// DEL works without it.
pub(super) fn load(cache: &Path, id: &PodId, attachment: &Attachment) -> Option<Value> {
    let text = std::fs::read(file(cache, id, attachment)).ok()?;
    let mut entry: Value = serde_json::from_slice(&text).ok()?;
    Some(entry["result"].take()).filter(|result| !result.is_null())
}

/// Forgets the result; a file that stays is only waste.
pub(super) fn forget(cache: &Path, id: &PodId, attachment: &Attachment) {
    let path = file(cache, id, attachment);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cached network result stays");
        }
        _ => {}
    }
}
