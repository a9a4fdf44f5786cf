//! Whether the configured network could take a pod.
//!
//! Owns the last answer, which status calls read without I/O. A plugin that is
//! built in needs no executable; one that is not must be installed. Where the
//! version of CNI has STATUS, the plugins are asked.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cni::Command;

use super::chain::{Arguments, Chain, Limits, Runner, runners};
use super::conf::{self, NetworkList, kind};
use super::plugin::installed;
use super::{NetworkError, failed};
use crate::causes::with_causes;
use crate::config::Cni;

/// How long plugins may take to say how they are.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the word of plugins that are processes counts: each question
/// starts some.
const WORD_COUNTS: Duration = Duration::from_secs(60);

/// What status says of the configured network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Pods can be attached.
    Ready,
    /// They cannot, with the reason.
    NotReady(String),
}

/// The last answer.
pub(super) struct Watch {
    now: RwLock<Arc<Readiness>>,
    /// When plugins that are processes were asked last, about which list.
    asked: Mutex<Option<(Instant, NetworkList, Readiness)>>,
}

impl Watch {
    /// Looks once, and asks nobody.
    pub(super) fn new(cni: &Cni) -> Self {
        let now = match look(cni) {
            Ok(_) => Readiness::Ready,
            Err(not_ready) => not_ready,
        };
        Self {
            now: RwLock::new(Arc::new(now)),
            asked: Mutex::default(),
        }
    }

    /// The last answer.
    pub(super) fn now(&self) -> Arc<Readiness> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks again, and asks the plugins.
    pub(super) async fn refresh(&self, cni: &Cni, limits: &Limits) {
        let now = match look(cni) {
            Ok(list) if list.has_status() => self.ask(cni, limits, list).await,
            Ok(_) => Readiness::Ready,
            Err(not_ready) => not_ready,
        };
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
    }

    async fn ask(&self, cni: &Cni, limits: &Limits, list: NetworkList) -> Readiness {
        let runners = runners(cni, &list);
        let starts_processes = runners.contains(&Runner::External);
        if starts_processes && let Some(word) = self.last_word(&list) {
            return word;
        }
        let chain = Chain {
            cni,
            limits,
            list: &list,
            runners: &runners,
            arguments: Arguments::about_none(Command::Status),
            deadline: Instant::now() + PATIENCE,
        };
        let word = match chain.others(None).await.into_iter().next() {
            None => Readiness::Ready,
            Some(failure) => not_ready(&failed(&list, "STATUS", failure)),
        };
        if starts_processes {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            *asked = Some((Instant::now(), list, word.clone()));
        }
        word
    }

    fn last_word(&self, list: &NetworkList) -> Option<Readiness> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (when, about, word) = asked.as_ref()?;
        // Bad news is looked at again soon: nobody can start a pod until then.
        let counts = when.elapsed() < WORD_COUNTS && *word == Readiness::Ready;
        (counts && about == list).then(|| word.clone())
    }
}

fn not_ready(error: &NetworkError) -> Readiness {
    Readiness::NotReady(with_causes(error))
}

/// The configured network, if all its plugins are there.
fn look(cni: &Cni) -> Result<NetworkList, Readiness> {
    let list = conf::load(&cni.conf_dir).map_err(|error| not_ready(&error))?;
    let list = match list {
        Some(list) => list,
        None if cni.loopback_only => return Err(Readiness::Ready),
        None => {
            let dir = cni.conf_dir.clone();
            return Err(not_ready(&NetworkError::NotConfigured { dir }));
        }
    };
    for (plugin, runner) in list.plugins().zip(runners(cni, &list)) {
        let name = kind(plugin);
        if runner == Runner::External && installed(&cni.bin_dirs, name).is_none() {
            let network = list.name();
            let dirs = &cni.bin_dirs;
            let text =
                format!("network {network}: plugin {name} is not built in and in none of {dirs:?}");
            return Err(Readiness::NotReady(text));
        }
    }
    Ok(list)
}

/// The configured network in words: its name and how its plugins run.
pub(super) fn describe(cni: &Cni) -> String {
    let list = match look(cni) {
        Ok(list) => list,
        Err(Readiness::NotReady(why)) => return why,
        Err(Readiness::Ready) => return "loopback only".to_owned(),
    };
    let plugins = list.plugins().zip(runners(cni, &list));
    let plugins: Vec<String> = plugins
        .map(|(plugin, runner)| match runner {
            Runner::Builtin => format!("{} (built in)", kind(plugin)),
            Runner::External => {
                let path = installed(&cni.bin_dirs, kind(plugin)).unwrap_or_default();
                format!("{} ({})", kind(plugin), path.display())
            }
        })
        .collect();
    format!("{}: {}", list.name(), plugins.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn cni(dir: &Path, external: &[&str]) -> Cni {
        Cni {
            conf_dir: dir.join("net.d"),
            bin_dirs: vec![dir.join("bin")],
            netns_dir: dir.join("netns"),
            external_plugins: external.iter().map(|name| (*name).to_owned()).collect(),
            loopback_only: false,
        }
    }

    fn write(dir: &Path, plugins: &serde_json::Value) {
        let list = json!({"name": "n", "cniVersion": "1.1.0", "plugins": plugins});
        std::fs::create_dir_all(dir.join("net.d")).expect("folder");
        std::fs::write(dir.join("net.d/a.conflist"), list.to_string()).expect("write");
    }

    fn bridge(dir: &Path, subnet: &str) -> serde_json::Value {
        json!({"type": "bridge", "ipam": {"type": "host-local", "dataDir": dir, "subnet": subnet}})
    }

    #[test]
    fn only_plugins_that_are_not_built_in_must_be_installed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let dir = dir.path();
        let ready = |external: &[&str]| Watch::new(&cni(dir, external)).now();
        assert!(matches!(&*ready(&[]), Readiness::NotReady(why) if why.contains("net.d")));
        let loopback = Cni {
            loopback_only: true,
            ..cni(dir, &[])
        };
        assert_eq!(*Watch::new(&loopback).now(), Readiness::Ready);
        write(dir, &json!([bridge(dir, "10.0.0.0/24")]));
        assert_eq!(*ready(&[]), Readiness::Ready);
        for external in ["bridge", "host-local", "*"] {
            let ready = ready(&[external]);
            assert!(matches!(&*ready, Readiness::NotReady(why) if why.contains("bridge")));
        }
        write(
            dir,
            &json!([bridge(dir, "10.0.0.0/24"), {"type": "special"}]),
        );
        assert!(matches!(&*ready(&[]), Readiness::NotReady(why) if why.contains("special")));
        std::fs::create_dir(dir.join("bin")).expect("folder");
        std::fs::write(dir.join("bin/special"), "").expect("write");
        assert_eq!(*ready(&[]), Readiness::Ready);
        let text = describe(&cni(dir, &[]));
        assert!(
            text.contains("bridge (built in)") && text.contains("bin/special"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn plugins_say_how_they_are() {
        let dir = tempfile::tempdir().expect("tempdir");
        let dir = dir.path();
        write(dir, &json!([bridge(dir, "10.0.0.1/24")]));
        let cni = cni(dir, &[]);
        let watch = Watch::new(&cni);
        assert_eq!(*watch.now(), Readiness::Ready);
        watch.refresh(&cni, &Limits::of_this_machine()).await;
        assert!(matches!(&*watch.now(), Readiness::NotReady(why) if why.contains("host bits")));
        write(dir, &json!([bridge(dir, "10.0.0.0/24")]));
        watch.refresh(&cni, &Limits::of_this_machine()).await;
        assert_eq!(*watch.now(), Readiness::Ready);
    }
}
