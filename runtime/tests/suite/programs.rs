//! Which programs run, with which arguments and environment, and what is said
//! about those that do not.

use std::os::unix::fs::PermissionsExt;

use runtime::client::Event;
use serde_json::json;

use super::{launch_error, stdout};
use crate::support::{Kind, Pod, TestSpec};

/// A program that is missing fails the start, by name.
pub(crate) async fn missing_program_fails_the_start(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    for (name, message) in [
        (
            "nothing",
            "exec: \"nothing\": executable file not found in $PATH",
        ),
        ("/nothing", "exec: \"/nothing\": no such file or directory"),
        ("/tmp", "exec: \"/tmp\": permission denied"),
        ("/etc/data", "exec: \"/etc/data\": permission denied"),
        ("/etc/text", "exec: \"/etc/text\": exec format error"),
    ] {
        let container = pod.create(&TestSpec::new(&[name])).await;
        std::fs::create_dir_all(container.upper.join("etc")).unwrap();
        for (file, mode) in [("etc/data", 0o644), ("etc/text", 0o755)] {
            std::fs::write(container.upper.join(file), "just text").unwrap();
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(container.upper.join(file), mode).unwrap();
        }
        let (step, said, not_found) = launch_error(pod.monitor.start(&container.id).await);
        assert_eq!(
            (step.as_str(), said.as_str(), not_found),
            ("start", message, true)
        );
        let record = pod.exit(&container).await;
        assert_eq!((record.exit_code, record.started_at), (128, 0));
        pod.monitor.delete(&container.id).await.unwrap();
    }
    pod.end().await;
}

/// The kernel decides what may be executed: an owner's own program may.
pub(crate) async fn owners_only_program_runs(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::new(&["/own"]).set("process.user", json!({ "uid": 1000, "gid": 1000 }));
    let (request, _cgroup, upper) = pod.request(&spec);
    let own = upper.join("own");
    std::fs::write(&own, "#!/bin/sh\nexit 6\n").unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&own, Some(pod.on_node(1000)), Some(pod.on_node(1000))).unwrap();
    let id = request.id.clone();
    pod.monitor.create(request).await.unwrap();
    pod.monitor.start(&id).await.unwrap();
    let Event::Exited(record) = pod.event().await else {
        panic!("the monitor died")
    };
    assert_eq!(record.exit_code, 6);
    pod.end().await;
}

/// Order and duplicates of the environment are kept; nothing is added.
pub(crate) async fn environment_is_kept_as_it_is(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let env = [
        "Z=1",
        "PATH=/bin",
        "A=1",
        "A=2",
        "HOME=/home",
        "EMPTY=",
        "A=1",
    ];
    // The shell would sort and clean it.
    let spec = TestSpec::new(&["cat", "/proc/self/environ"]).set("process.env", json!(env));
    let (record, log) = pod.outcome(&spec).await;
    assert_eq!(record.exit_code, 0);
    let expected = format!("stdout P {}\0", env.join("\0"));
    assert_eq!(log, [expected]);
    pod.end().await;
}

/// Without PATH there is a usual one; without HOME nothing is invented.
pub(crate) async fn missing_path_and_home_are_no_error(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::new(&["cat", "/proc/self/environ"]).set("process.env", json!([]));
    let (record, log) = pod.outcome(&spec).await;
    assert_eq!((record.exit_code, log), (0, Vec::new()));
    pod.end().await;
}

/// No code of the image runs before the container's own program, whatever its
/// name service says.
pub(crate) async fn image_runs_no_code_before_its_program(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::new(&["cat", "/etc/nsswitch.conf"])
        .set("process.env", json!(["PATH=/bin"]))
        .set("process.user", json!({ "uid": 4711, "gid": 4711 }));
    let container = pod.create(&spec).await;
    // Too late to write anything: what the launcher would look up, it has
    // looked up by now. So make a container whose image is there before.
    pod.monitor.delete(&container.id).await.unwrap();
    let (mut request, _cgroup, upper) = pod.request(&spec);
    let lib = upper.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH));
    std::fs::create_dir_all(&lib).unwrap();
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    std::fs::write(
        upper.join("etc/nsswitch.conf"),
        "passwd: evil\ngroup: evil\n",
    )
    .unwrap();
    std::fs::copy(evil_module(pod.scratch()), lib.join("libnss_evil.so.2")).unwrap();
    request.log_path = None;
    let id = request.id.clone();
    pod.monitor.create(request).await.unwrap();
    pod.monitor.start(&id).await.unwrap();
    assert_eq!(
        loop {
            if let Event::Exited(record) = pod.event().await {
                break record.exit_code;
            }
        },
        0
    );
    assert!(!upper.join("tmp/evil-was-here").exists());
    pod.end().await;
}

/// A name service module that leaves a trace as soon as it is loaded.
fn evil_module(dir: &std::path::Path) -> std::path::PathBuf {
    let source = dir.join("evil.c");
    let module = dir.join("evil.so");
    let code = "#include <fcntl.h>\n__attribute__((constructor)) static void evil(void)\n\
                { open(\"/tmp/evil-was-here\", O_CREAT | O_WRONLY, 0644); }\n";
    std::fs::write(&source, code).unwrap();
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&module, &source])
        .status()
        .unwrap();
    assert!(built.success());
    module
}

/// The working directory is entered.
pub(crate) async fn working_directory_is_entered(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::new(&["pwd"]).set("process.cwd", json!("/tmp"));
    assert_eq!(stdout(pod.outcome(&spec).await), "/tmp");
    pod.end().await;
}

/// One that is missing is made, as all launchers of the field do, and is root's.
pub(crate) async fn missing_working_directory_is_made(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell("pwd; stat -c '%a %u' .; stat -c '%a %u' ..")
        .set("process.cwd", json!("/not/there"))
        .set("process.user", json!({ "uid": 1000, "gid": 1000 }));
    let text = stdout(pod.outcome(&spec).await);
    assert_eq!(text, "/not/there\n755 0\n755 0");
    let file = TestSpec::new(&["pwd"]).set("process.cwd", json!("/bin/busybox/x"));
    assert!(pod.create_with(&file, |_| ()).await.is_err());
    pod.end().await;
}

/// A program that is not there is told by the runtime's own words, and nothing is
/// left of the container.
pub(crate) async fn missing_program_fails_the_creation(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    for name in ["nothing", "/no/such"] {
        let created = pod.create_with(&TestSpec::new(&[name]), |_| ()).await;
        let (step, message, not_found) = launch_error(created.map(|_| ()));
        assert!(step.ends_with(" create"), "{step}");
        assert!(not_found, "{name}: {message}");
        assert!(pod.monitor.list().await.unwrap().is_empty());
    }
    pod.end().await;
}

/// So is a runtime that is not there.
pub(crate) async fn missing_runtime_is_named(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let missing = |request: &mut runtime::client::CreateContainer| {
        request.runtime.as_mut().unwrap().path = "/no/such/runtime".into();
    };
    let created = pod.create_with(&TestSpec::shell("exit 0"), missing).await;
    let (step, message, _) = launch_error(created.map(|_| ()));
    assert_eq!(step, "runtime create");
    assert!(message.contains("/no/such/runtime"), "{message}");
    pod.end().await;
}
