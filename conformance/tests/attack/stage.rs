//! What every attack starts from: an image, an engine with every launcher, pods.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use conformance::image::Extras;
use proto::v1;
use tonic::Status;

use crate::rig::{Rig, with_image_and_settings};

/// All launchers, by the names of their handlers; `inside` is the native one, for pods
/// with user namespaces.
pub(crate) const LAUNCHERS: [&str; 5] = ["native", "inside", "libcontainer", "runc", "crun"];

/// Those whose first processes are born out of the sight of others.
pub(crate) const NATIVE: [&str; 2] = ["native", "inside"];

/// The first id of the node that is one of such a pod, and how many there are.
const IDS: (u32, u32) = (2_000_000, 65_536);

/// Asks for a user namespace.
fn go_inside(sandbox: &mut v1::PodSandboxConfig) {
    let ids = vec![v1::IdMapping {
        host_id: IDS.0,
        container_id: 0,
        length: IDS.1,
    }];
    let linux = sandbox.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    let options = context.namespace_options.get_or_insert_default();
    options.userns_options = Some(v1::UserNamespace {
        mode: v1::NamespaceMode::Pod as i32,
        uids: ids.clone(),
        gids: ids,
    });
}

/// Where the attacker is in an image.
pub(crate) const ATTACKER: &str = "/bin/attacker";

/// Tries an attack with every launcher, on one engine.
pub(crate) fn with_every_launcher(extras: &Extras, attack: impl AsyncFn(&mut Rig, &str)) {
    let handlers = LAUNCHERS.map(handler).concat();
    with_image_and_settings(extras, &handlers, async move |rig| {
        for launcher in LAUNCHERS {
            println!("by {launcher}");
            attack(rig, launcher).await;
        }
    });
}

/// The handler of a launcher that makes no container that may trace where it could see
/// others being made.
pub(crate) fn strict(launcher: &str) -> String {
    format!("{launcher}-strict")
}

/// The configuration of a launcher's handlers.
fn handler(name: &str) -> String {
    let launcher = match name {
        own @ ("native" | "libcontainer") => format!("launcher = {own:?}"),
        "inside" => "launcher = \"native\"".to_owned(),
        runtime => {
            let dirs = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
            let mut paths = dirs.iter().map(|dir| Path::new(dir).join(runtime));
            let path = paths.find(|path| path.is_file()).expect("runc and crun");
            format!("launcher = \"oci\"\npath = {path:?}")
        }
    };
    let strict = strict(name);
    let mut text =
        format!("[runtime.handlers.{strict}]\n{launcher}\n[runtime.handlers.{name}]\n{launcher}\n");
    if !NATIVE.contains(&name) {
        text.push_str("options = { allow_tracers = true }\n");
    }
    text
}

/// An image with the attacker in it.
pub(crate) fn armed() -> Extras {
    let program = std::fs::read(attacker()).expect("the attacker");
    Extras {
        files: vec![("bin/attacker".to_owned(), program, 0o755)],
        ..Extras::default()
    }
}

/// The attacker: `SLIPWAY_TEST_ATTACKER`, for machines without a compiler, or built once
/// for the run.
fn attacker() -> PathBuf {
    if let Some(built) = std::env::var_os("SLIPWAY_TEST_ATTACKER") {
        return built.into();
    }
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attack/attacker.c");
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("attacker-{}", std::process::id()));
        let mut compiler = std::process::Command::new("gcc");
        compiler
            .args(["-static", "-O2", "-o"])
            .arg(&program)
            .arg(source);
        assert!(
            compiler.status().expect("gcc").success(),
            "the attacker is not built"
        );
        program
    };
    BUILT.get_or_init(build).clone()
}

impl Rig {
    /// Runs a pod of this launcher.
    pub(crate) async fn pod_of(
        &mut self,
        launcher: &str,
        sandbox: &v1::PodSandboxConfig,
    ) -> String {
        let mut sandbox = sandbox.clone();
        if launcher.starts_with("inside") {
            go_inside(&mut sandbox);
        }
        let request = v1::RunPodSandboxRequest {
            config: Some(sandbox),
            runtime_handler: launcher.to_owned(),
        };
        let answer = self.client.runtime.run_pod_sandbox(request).await;
        answer.expect("RunPodSandbox").into_inner().pod_sandbox_id
    }

    /// Runs a pod with one container; tells what refused the container.
    pub(crate) async fn try_container(
        &mut self,
        launcher: &str,
        name: &str,
        change: impl FnOnce(&mut v1::ContainerConfig),
    ) -> Result<String, Status> {
        let name = format!("{name}-{launcher}");
        let sandbox = self.sandbox(&name);
        let mut config = self.container("main", &["/bin/sleep", "1000"]);
        change(&mut config);
        let pod = self.pod_of(launcher, &sandbox).await;
        let id = self.client.create(&pod, &config, &sandbox).await?;
        self.client.start(&id).await?;
        Ok(id)
    }

    /// What a command in a container prints; both streams.
    pub(crate) async fn prints(&mut self, id: &str, script: &str) -> String {
        let output = self.client.exec(id, &["/bin/sh", "-c", script], 30).await;
        let output = output.expect("ExecSync");
        format!("{}{}", output.stdout, output.stderr)
    }
}

/// The security context of a container's configuration.
pub(crate) fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().expect("linux");
    linux.security_context.as_mut().expect("a security context")
}

/// No filter of system calls, and no AppArmor.
pub(crate) fn unconfined(config: &mut v1::ContainerConfig) {
    security(config).seccomp = Some(nothing());
    without_apparmor(config);
}

/// No AppArmor, where the node has it: it would keep an attacker from what else has to hold.
pub(crate) fn without_apparmor(config: &mut v1::ContainerConfig) {
    security(config).apparmor = Some(nothing());
}

fn nothing() -> v1::SecurityProfile {
    v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Unconfined as i32,
        ..Default::default()
    }
}
