//! `slipway check`: does this node have what the engine needs?

use std::path::Path;
use std::process::ExitCode;

use runtime::cgroup::{DriverKind, Hierarchies, Systemd, Version};
use runtime::client::MonitorBinaries;
use serde::Serialize;

use super::CheckArgs;
use crate::apparmor;
use crate::causes::with_causes;
use crate::config::{self, Config};

/// Kernels that take layers one by one stack at least as many.
const MANY_LAYERS: usize = 400;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Something optional is not there.
    Warning,
    Missing,
}

#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    verdict: Verdict,
    detail: String,
}

fn finding(name: &'static str, verdict: Verdict, detail: impl Into<String>) -> Finding {
    Finding {
        name,
        verdict,
        detail: detail.into(),
    }
}

/// Looks at everything and prints what it found; the exit status says whether
/// the engine can work here.
pub(super) fn run(args: CheckArgs) -> ExitCode {
    let CheckArgs { places, json } = args;
    let findings = match config::load(&places.places()) {
        Ok(config) => all(&config),
        Err(error) => vec![finding(
            "configuration",
            Verdict::Missing,
            with_causes(&error),
        )],
    };
    if json {
        match serde_json::to_string_pretty(&findings) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("slipway: {error}"),
        }
    } else {
        for Finding {
            name,
            verdict,
            detail,
        } in &findings
        {
            let word = match verdict {
                Verdict::Ok => "ok     ",
                Verdict::Warning => "warning",
                Verdict::Missing => "MISSING",
            };
            println!("{word}  {name}: {detail}");
        }
    }
    let fits = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Missing);
    if fits {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn all(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        finding("configuration", Verdict::Ok, "valid"),
        kernel(),
        root_user(),
        cgroups(config),
        cgroup_driver(config),
        limits(config),
        monitor(),
        overlay(),
        seccomp(),
        apparmor(),
        capability(),
        mounts(),
    ];
    findings.push(user_namespaces(config));
    findings.push(network(config));
    findings.push(folder("root", &config.root));
    findings.push(folder("state", &config.state));
    findings
}

fn kernel() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // 5.14: cgroup.kill, the youngest thing without which nothing works.
    if version >= (5, 14) {
        finding("kernel", Verdict::Ok, release)
    } else {
        finding(
            "kernel",
            Verdict::Missing,
            format!("{release}; 5.14 or later is needed"),
        )
    }
}

fn root_user() -> Finding {
    if rustix::process::geteuid().is_root() {
        finding("root", Verdict::Ok, "runs as root")
    } else {
        finding("root", Verdict::Missing, "the engine must run as root")
    }
}

fn cgroups(config: &Config) -> Finding {
    match Hierarchies::detect(config.cgroup.hierarchy.selection()) {
        Ok(hierarchies) => {
            let missing: Vec<&str> = ["cpu", "memory", "pids"]
                .into_iter()
                .filter(|controller| !hierarchies.has(controller))
                .collect();
            let version = match hierarchies.version() {
                Version::V2 => "cgroup v2",
                Version::Hybrid => "cgroup v1 with a v2 tree beside it",
                Version::V1 => "cgroup v1",
            };
            if missing.is_empty() {
                finding("cgroups", Verdict::Ok, version)
            } else {
                let detail = format!("{version}, without {}", missing.join(", "));
                finding("cgroups", Verdict::Warning, detail)
            }
        }
        Err(error) => finding("cgroups", Verdict::Missing, with_causes(&error)),
    }
}

/// Whether the configured driver can work here.
fn cgroup_driver(config: &Config) -> Finding {
    let name = "cgroup driver";
    if config.cgroup.driver == DriverKind::Cgroupfs {
        return finding(name, Verdict::Ok, "cgroupfs");
    }
    let found = Hierarchies::detect(config.cgroup.hierarchy.selection());
    let found = found.map_err(|error| with_causes(&error));
    let systemd = found.and_then(|found| Systemd::new(found).map_err(|error| with_causes(&error)));
    let version = systemd.and_then(|systemd| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let version = runtime.block_on(systemd.version());
        version.map_err(|error| with_causes(&error))
    });
    match version {
        Ok(version) => finding(name, Verdict::Ok, format!("systemd {version}")),
        Err(why) => finding(name, Verdict::Missing, format!("systemd: {why}")),
    }
}

/// A cgroup namespace alone does not keep who is root in it from writing its limits.
fn limits(config: &Config) -> Finding {
    let name = "limits";
    let lifted = "a container that runs as root and may make user namespaces (no seccomp profile) \
                  can lift its own limits; those of its pod hold";
    let version = Hierarchies::detect(config.cgroup.hierarchy.selection())
        .map(|hierarchies| hierarchies.version());
    match version {
        Ok(Version::V2) if is_delegated() => {
            finding(name, Verdict::Ok, "no container can lift its own")
        }
        Ok(Version::V2) => finding(
            name,
            Verdict::Warning,
            format!("cgroup2 is mounted without nsdelegate: {lifted}"),
        ),
        Ok(Version::Hybrid | Version::V1) => {
            finding(name, Verdict::Warning, format!("cgroup v1: {lifted}"))
        }
        Err(error) => finding(name, Verdict::Missing, with_causes(&error)),
    }
}

/// Whether the v2 tree's limits are those of whoever made the cgroup namespace.
fn is_delegated() -> bool {
    let table = runtime::procfs::mount_table("/proc/self/mountinfo").unwrap_or_default();
    let mut trees = table.lines().filter(|line| line.contains(" - cgroup2 "));
    trees.any(|line| line.ends_with("nsdelegate") || line.contains("nsdelegate,"))
}

fn monitor() -> Finding {
    let dir = match super::serve::executable_dir() {
        Ok(dir) => dir,
        Err(error) => return finding("monitor", Verdict::Missing, format!("{error:#}")),
    };
    match MonitorBinaries::load(&dir) {
        Ok(_) => finding("monitor", Verdict::Ok, format!("in {}", dir.display())),
        Err(error) => finding("monitor", Verdict::Missing, with_causes(&error)),
    }
}

fn overlay() -> Finding {
    match image_store::stacked_layers() {
        Ok(layers) if layers >= MANY_LAYERS => {
            finding("overlay", Verdict::Ok, format!("stacks {layers} layers"))
        }
        // Other engines make no image of more than 127.
        Ok(layers) => {
            let detail = format!("stacks about {layers} layers; more take Linux 6.8");
            finding("overlay", Verdict::Ok, detail)
        }
        Err(error) => finding("overlay", Verdict::Missing, with_causes(&error)),
    }
}

fn seccomp() -> Finding {
    let profile = runtime::seccomp::default_profile();
    match runtime::seccomp::compile(profile) {
        Ok(filter) => {
            let detail = format!("RuntimeDefault is {} instructions", filter.len() / 8);
            finding("seccomp", Verdict::Ok, detail)
        }
        Err(error) => finding("seccomp", Verdict::Missing, with_causes(&error)),
    }
}

fn apparmor() -> Finding {
    const NAME: &str = "AppArmor";
    if !apparmor::is_enabled() {
        return finding(
            NAME,
            Verdict::Ok,
            "the kernel has none, containers go without",
        );
    }
    let loaded = apparmor::is_loaded(apparmor::DEFAULT).unwrap_or_default();
    match (apparmor::parser(), loaded) {
        (_, true) => finding(NAME, Verdict::Ok, "the default profile is loaded"),
        (Ok(parser), false) => {
            let detail = format!("{parser} loads the default profile when the engine starts");
            finding(NAME, Verdict::Ok, detail)
        }
        (Err(error), false) => {
            let detail = format!("{error}: containers that ask for RuntimeDefault are refused");
            finding(NAME, Verdict::Warning, detail)
        }
    }
}

fn capability() -> Finding {
    const SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    if mask & (1 << SYS_RESOURCE) == 0 {
        let detail = "CAP_SYS_RESOURCE is missing: scores for the OOM killer cannot be lowered";
        return finding("capabilities", Verdict::Warning, detail);
    }
    finding("capabilities", Verdict::Ok, "CAP_SYS_RESOURCE is there")
}

fn mounts() -> Finding {
    if runtime::mount::supports_recursive_read_only() {
        finding("mounts", Verdict::Ok, "recursive read-only mounts work")
    } else {
        finding(
            "mounts",
            Verdict::Warning,
            "the kernel has no recursive read-only mounts",
        )
    }
}

/// What is tried takes an image store, which the engine makes at its first start.
fn user_namespaces(config: &Config) -> Finding {
    let name = "user namespaces";
    if !config.root.join("images").exists() {
        let detail = "not tried: the engine has made no image store yet";
        return finding(name, Verdict::Ok, detail);
    }
    match crate::user_ns::probe(&config.root) {
        Ok(()) => finding(name, Verdict::Ok, "pods can have their own"),
        Err(why) => {
            let detail = format!("pods cannot have their own (hostUsers: false): {why}");
            finding(name, Verdict::Warning, detail)
        }
    }
}

fn network(config: &Config) -> Finding {
    let network = crate::network::Network::new(config.cni.clone(), config.cni_cache_dir());
    match &*network.readiness() {
        crate::network::Readiness::Ready => finding("network", Verdict::Ok, network.describe()),
        crate::network::Readiness::NotReady(why) => {
            finding("network", Verdict::Warning, why.clone())
        }
    }
}

fn folder(name: &'static str, path: &Path) -> Finding {
    let there = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    match rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        Ok(()) => finding(name, Verdict::Ok, path.display().to_string()),
        Err(error) => finding(
            name,
            Verdict::Missing,
            format!("{} cannot be written: {error}", there.display()),
        ),
    }
}
