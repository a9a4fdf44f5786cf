//! The cached result of ADD, in the format and under the name that CNI's own
//! library uses, so that its tools find it.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Attachment, INTERFACE, NetworkError, conf};
use crate::ids::PodId;

/// Below the cache: results whose network was given back.
const ASIDE: &str = "given-back";

fn file(cache: &Path, id: &PodId, attachment: &Attachment) -> PathBuf {
    cache.join("results").join(file_name(id, attachment))
}

fn file_name(id: &PodId, attachment: &Attachment) -> String {
    format!("{}-{id}-{INTERFACE}", attachment.list.name())
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
        "config": STANDARD.encode(attachment.list.to_json().to_string()),
        "cniArgs": pairs(&attachment.args),
        "capabilityArgs": attachment.capabilities,
        "result": result,
        // Beside what the library knows: which plugins ran as processes.
        "external": attachment.external,
    });
    let write = || {
        std::fs::create_dir_all(cache.join("results"))?;
        // Added and not put in the place of what follows a dot: a network may have one
        // in its name, which is followed by the pod's id.
        let mut temporary = path.clone().into_os_string();
        temporary.push(".tmp");
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

/// What the pods of all results are attached to.
pub(super) fn all(cache: &Path) -> Vec<(PodId, Attachment)> {
    let entries = std::fs::read_dir(cache.join("results"));
    let paths = entries.into_iter().flatten().filter_map(Result::ok);
    paths.filter_map(|entry| read(&entry.path())).collect()
}

/// What one pod is attached to.
pub(super) fn of_pod(cache: &Path, id: &PodId) -> Vec<Attachment> {
    let all = all(cache).into_iter();
    all.filter(|(owner, _)| owner == id)
        .map(|(_, attachment)| attachment)
        .collect()
}

/// A result of this engine; `None` for anything else.
fn read(path: &Path) -> Option<(PodId, Attachment)> {
    let entry: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let id = PodId::try_from(entry["containerId"].as_str()?.to_owned()).ok()?;
    let config = STANDARD.decode(entry["config"].as_str()?).ok()?;
    let pairs = entry["cniArgs"].as_array().into_iter().flatten();
    let args: Vec<String> = pairs
        .filter_map(|pair| Some(format!("{}={}", pair[0].as_str()?, pair[1].as_str()?)))
        .collect();
    let attachment = Attachment {
        list: conf::parse(&config, true).ok()?,
        args: args.join(";"),
        capabilities: serde_json::from_value(entry["capabilityArgs"].clone()).ok()?,
        external: serde_json::from_value(entry["external"].clone()).ok()?,
    };
    // Found by its name again, or it would never be forgotten.
    (file_name(&id, &attachment) == *path.file_name()?.to_str()?).then_some((id, attachment))
}

/// Puts a result aside whose network was given back, until it is sure that its interfaces
/// are gone; answers where it is, if there was one.
pub(super) fn put_aside(cache: &Path, id: &PodId, attachment: &Attachment) -> Option<PathBuf> {
    let (from, aside) = (file(cache, id, attachment), cache.join(ASIDE));
    let to = aside.join(file_name(id, attachment));
    let moved = std::fs::rename(&from, &to).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound if from.exists() => {
            std::fs::create_dir_all(&aside)?;
            std::fs::rename(&from, &to)
        }
        _ => Err(error),
    });
    match moved {
        Ok(()) => Some(to),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %from.display(), %error, "cached network result stays");
            }
            None
        }
    }
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

/// All that were put aside, by an earlier engine too.
pub(super) fn aside(cache: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache.join(ASIDE));
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).collect()
}

/// The result in a file that was put aside.
pub(super) fn result_aside(path: &Path) -> std::io::Result<Value> {
    let entry: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    Ok(entry["result"].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(name: &str) -> Attachment {
        let text =
            format!(r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"bridge"}}]}}"#);
        Attachment {
            list: conf::parse(text.as_bytes(), true).expect("valid"),
            args: "IgnoreUnknown=1;K8S_POD_NAME=p".to_owned(),
            capabilities: [("dns".to_owned(), json!({"servers": ["10.0.0.1"]}))].into(),
            external: vec![true],
        }
    }

    #[test]
    fn what_was_cached_is_enough_to_detach() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (one, other) = (PodId::random(), PodId::random());
        // Both networks begin alike up to the dot.
        for (id, name) in [(&one, "net.a"), (&other, "net.b")] {
            let result = json!({"ips": [name]});
            store(dir.path(), id, &attachment(name), &result).expect("stored");
        }
        let stray = dir.path().join("results/stray");
        std::fs::write(stray, "{}").expect("written");
        assert_eq!(all(dir.path()).len(), 2);
        assert_eq!(of_pod(dir.path(), &one), [attachment("net.a")]);
        let result = load(dir.path(), &other, &attachment("net.b"));
        assert_eq!(result, Some(json!({"ips": ["net.b"]})));
        let aside_one = put_aside(dir.path(), &one, &attachment("net.a"));
        assert_eq!(of_pod(dir.path(), &one), []);
        assert_eq!(put_aside(dir.path(), &one, &attachment("net.a")), None);
        assert_eq!(aside(dir.path()), Vec::from_iter(aside_one.clone()));
        forget(dir.path(), &other, &attachment("net.b"));
        assert!(all(dir.path()).is_empty());
        let result = result_aside(&aside_one.expect("put aside"));
        assert_eq!(result.expect("readable"), json!({"ips": ["net.a"]}));
    }
}
