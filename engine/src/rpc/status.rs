//! Status: conditions, handlers and features; without I/O.

use std::collections::HashMap;
use std::sync::Arc;

use proto::v1;
use serde_json::json;
use tonic::Status;

use crate::config::Launcher;
use crate::context::Engine;
use crate::network::Readiness;

/// Containers that a condition names at most.
const STALLED_NAMED: usize = 3;

/// What the kubelet asks every few seconds.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::StatusRequest,
) -> Result<v1::StatusResponse, Status> {
    let v1::StatusRequest { verbose } = request;
    let conditions = vec![
        runtime_ready(engine),
        network_ready(engine),
        logs_flow(engine),
    ];
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions }),
        info: if verbose {
            info(engine)
        } else {
            HashMap::new()
        },
        runtime_handlers: handlers(engine),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    })
}

fn runtime_ready(engine: &Engine) -> v1::RuntimeCondition {
    let systemd = engine.cgroups.systemd();
    let unreachable = systemd.and_then(runtime::cgroup::Systemd::trouble);
    let (status, reason, message) = match (engine.monitors.last_failure(), unreachable) {
        (None, None) => (true, String::new(), String::new()),
        (Some(message), _) => (false, "MonitorsFail".to_owned(), message),
        (None, Some(message)) => (false, "SystemdUnreachable".to_owned(), message),
    };
    v1::RuntimeCondition {
        r#type: "RuntimeReady".to_owned(),
        status,
        reason,
        message,
    }
}

fn network_ready(engine: &Engine) -> v1::RuntimeCondition {
    let (status, reason, message) = match &*engine.network.readiness() {
        Readiness::Ready => (true, String::new(), String::new()),
        Readiness::NotReady(why) => (false, "NetworkPluginNotReady".to_owned(), why.clone()),
    };
    v1::RuntimeCondition {
        r#type: "NetworkReady".to_owned(),
        status,
        reason,
        message,
    }
}

/// Slipway's own condition, which the kubelet shows to nobody but does not mind: it
/// looks at the two above only. The names of a few containers are enough to find the
/// disk.
fn logs_flow(engine: &Engine) -> v1::RuntimeCondition {
    let views = engine.index.list();
    let containers = views.iter().flat_map(|view| &view.containers);
    let stalled: Vec<&str> = containers
        .filter(|container| container.log_stalled)
        .map(|container| container.id.as_str())
        .collect();
    let (reason, message) = match stalled.len() {
        0 => (String::new(), String::new()),
        count => {
            let some: Vec<&str> = stalled.iter().take(STALLED_NAMED).copied().collect();
            let message = format!(
                "the disk takes nothing of {count} logs, whose containers' output waits: {}",
                some.join(", ")
            );
            ("LogDiskStalled".to_owned(), message)
        }
    };
    v1::RuntimeCondition {
        r#type: "ContainerLogsFlow".to_owned(),
        status: stalled.is_empty(),
        reason,
        message,
    }
}

/// Every handler by its name, and the default one by the empty name.
fn handlers(engine: &Engine) -> Vec<v1::RuntimeHandler> {
    let is_native = |name: &str| {
        let handler = engine.config.handler(name);
        handler.is_some_and(|handler| handler.launcher == Launcher::Native)
    };
    let features = |name: &str| v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: runtime::mount::supports_recursive_read_only(),
        user_namespaces: engine.user_namespaces.is_ok() && is_native(name),
    };
    let names = engine.config.handlers.keys().map(String::as_str);
    std::iter::once("")
        .chain(names)
        .map(|name| v1::RuntimeHandler {
            name: name.to_owned(),
            features: Some(features(name)),
        })
        .collect()
}

/// Each value is an object: of others crictl shows the text that they are on the wire.
fn info(engine: &Engine) -> HashMap<String, String> {
    let config = &engine.config;
    let text = json!({
        "rootDir": config.root,
        "stateDir": config.state,
        "listen": config.listen,
        "cgroupDriver": engine.cgroups.kind().as_str(),
        "cni": config.cni,
        "registryConfigPath": config.registry_config_path,
        "defaultHandler": config.default_handler,
        "handlers": config.handlers,
    });
    HashMap::from([
        ("config".to_owned(), text.to_string()),
        ("appArmor".to_owned(), apparmor().to_string()),
        ("cdi".to_owned(), cdi(engine).to_string()),
        (
            "troubles".to_owned(),
            json!({ "pods": troubles(engine) }).to_string(),
        ),
    ])
}

/// Whether the kernel has AppArmor, and the default profile.
fn apparmor() -> serde_json::Value {
    let profile = crate::apparmor::has_default().then_some(crate::apparmor::DEFAULT);
    json!({ "enabled": crate::apparmor::is_enabled(), "defaultProfile": profile })
}

/// The devices that vendors describe, as they were when a container last asked for one.
fn cdi(engine: &Engine) -> serde_json::Value {
    json!({ "specDirs": engine.cdi.dirs(), "seen": engine.cdi.seen() })
}

/// The pods that are not as they should be, with the reason.
fn troubles(engine: &Engine) -> serde_json::Value {
    let pods = engine.index.list();
    let troubled = pods.iter().filter_map(|pod| {
        let reason = match pod.reason.as_str() {
            "" if pod.ready && pod.monitor.is_none() => "its monitor does not answer",
            "" => return None,
            reason => reason,
        };
        let key = &pod.config.key;
        Some(json!({
            "pod": pod.id.as_str(),
            "namespace": key.namespace,
            "name": key.name,
            "reason": reason,
        }))
    });
    troubled.collect()
}
