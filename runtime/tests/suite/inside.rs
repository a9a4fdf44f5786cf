//! What containers of pods with user namespaces are on the node, and are not.

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};

use super::pods::{in_pid_namespace, shared};
use super::{stdout, unsupported};
use crate::support::{IDS, Kind, Pod, TestSpec, bind_clone, volume};

/// Every capability.
fn all_capabilities() -> Value {
    let names = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "SETFCAP",
        "SYSLOG",
        "PERFMON",
        "BPF",
    ];
    let names: Vec<_> = names.iter().map(|name| format!("CAP_{name}")).collect();
    json!({ "bounding": names, "effective": names, "permitted": names })
}

fn root_with_all(script: &str) -> TestSpec {
    TestSpec::shell(script).set("process.capabilities", all_capabilities())
}

/// A clone of a directory with the ids of the pod.
fn mapped(pod: &Pod, path: &Path) -> std::os::fd::OwnedFd {
    let user = &pod.user.as_ref().unwrap().namespaces.user;
    let options = runtime::mount::BindOptions {
        idmap: Some(user.as_fd().try_clone_to_owned().unwrap()),
        ..Default::default()
    };
    runtime::mount::clone_tree(path, &options).unwrap()
}

/// What root of a container makes is nobody's who is anybody on the node: in its layer, on a
/// volume, and what it executes. A volume with its ids takes them back.
pub(crate) async fn root_is_nobody_on_the_node(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let dir = |name: &str, mode: u32| {
        let dir = pod.scratch().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).unwrap();
        std::fs::write(dir.join("there"), "x").unwrap();
        dir
    };
    let (closed, open, own) = (dir("closed", 0o755), dir("open", 0o777), dir("own", 0o700));
    let script = "id -u; cp /bin/busybox /tool; chmod 4755 /tool; \
                  touch /closed/x 2>/dev/null || echo closed; stat -c %u /closed/there; \
                  touch /open/x; chown 0:0 /open/there 2>/dev/null || echo theirs; \
                  touch /own/x; stat -c %u:%g /own/there; cat /proc/self/uid_map; sleep 30";
    let volumes = [
        volume("/closed", bind_clone(&closed), &["rw", "rprivate"]),
        volume("/open", bind_clone(&open), &["rw", "rprivate"]),
        volume("/own", mapped(&pod, &own), &["rw", "rprivate"]),
    ];
    let spec = root_with_all(script);
    let container = pod.create_with(&spec, |request| {
        request.spec.mounts.extend(volumes);
    });
    let container = container.await.unwrap();
    pod.start(&container).await;
    assert!(crate::support::wait_until(|| container.log().len() == 6));
    let lines: Vec<_> = container.log();
    let said: Vec<_> = lines
        .iter()
        .map(|line| line.trim_start_matches("stdout F "))
        .collect();
    assert_eq!(&said[..5], ["0", "closed", "65534", "theirs", "0:0"]);
    let map: Vec<_> = said[5].split_whitespace().collect();
    assert_eq!(map, ["0", &IDS.0.to_string(), &IDS.1.to_string()]);
    let owner = |path: &Path| std::fs::metadata(path).unwrap().uid();
    let tool = std::fs::metadata(container.upper.join("tool")).unwrap();
    assert_eq!((tool.uid(), tool.mode() & 0o7777), (IDS.0, 0o4755));
    assert_eq!(owner(&open.join("x")), IDS.0);
    assert_eq!((owner(&open.join("there")), owner(&own.join("x"))), (0, 0));
    let process = format!("/proc/{}", container.created.pid);
    assert_eq!(std::fs::metadata(&process).unwrap().uid(), IDS.0);
    let command = TestSpec::shell("id -u; cat /proc/self/uid_map; touch /run");
    let run = pod.exec(&container, &command);
    let run = run.await.unwrap().stdout;
    assert!(
        run.starts_with("0\n") && run.contains(&IDS.0.to_string()),
        "{run}"
    );
    assert_eq!(owner(&container.upper.join("run")), IDS.0);
    pod.monitor.signal(&container.id, 9).await.unwrap();
    pod.exit(&container).await;
    pod.end().await;
}

/// Every capability is one over the pod's own namespaces.
pub(crate) async fn rights_over_the_node_are_none(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    // Nothing is written to what could be opened.
    let script = "for file in sysrq-trigger sys/kernel/core_pattern sys/vm/swappiness \
                      sys/kernel/modprobe sys/fs/protected_hardlinks; do \
                      (exec 3>/proc/$file) 2>/dev/null && echo $file; done; \
                  mknod /node c 1 3 2>/dev/null && echo mknod; \
                  mknod /dev/node c 1 3 2>/dev/null && echo mknod in dev; \
                  date -s 2020-01-01 >/dev/null 2>&1; date +%Y | grep -qx 2020 && echo time; \
                  ls /proc | grep -E '^[0-9]+$' | grep -qx 2 && echo processes; \
                  for file in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do \
                      (exec 3>$file) 2>/dev/null && echo $file; done; \
                  mount -t tmpfs none /tmp && echo own mounts; \
                  hostname inside && hostname";
    let spec = root_with_all(script);
    let before = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(stdout(pod.outcome(&spec).await), "own mounts\ninside");
    let after = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(before, after);
    pod.end().await;
}

/// The nodes of /dev do what they do, and belong to root of the container.
pub(crate) async fn devices_work_and_are_the_containers(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let node = json!([{ "path": "/dev/one/two/full", "type": "c", "major": 1, "minor": 7,
                        "fileMode": 0o666, "uid": 0, "gid": 6 }]);
    let script = "echo x >/dev/null && head -c 4 /dev/zero | wc -c && \
                  head -c 4 /dev/urandom | wc -c; stat -c %u:%g /dev/null /dev /dev/one/two; \
                  stat -c %u:%g /dev/one/two/full; \
                  (echo x >/dev/one/two/full) 2>&1 | grep -c 'No space'; \
                  chmod 600 /dev/null && stat -c %a /dev/null";
    let spec = root_with_all(script).set("linux.devices", node);
    let expected = "4\n4\n0:0\n0:0\n0:0\n0:6\n1\n600";
    assert_eq!(stdout(pod.outcome(&spec).await), expected);
    let nodes = std::fs::metadata("/dev/null").unwrap();
    assert_eq!((nodes.uid(), nodes.mode() & 0o777), (0, 0o666));
    pod.end().await;
}

/// A wish that would reach out of the user namespace is refused by its name.
pub(crate) async fn what_reaches_out_of_it_is_refused(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let namespaces = |kinds: &[&str]| -> Value {
        let kinds = kinds.iter().map(|kind| json!({ "type": kind }));
        kinds.collect()
    };
    let spec = TestSpec::shell("true");
    let node = json!([{ "path": "/node", "type": "c", "major": 1, "minor": 7,
                        "fileMode": 0o666, "uid": 0, "gid": 0 }]);
    for (spec, what) in [
        (
            spec.clone()
                .set("linux.namespaces", namespaces(&["mount", "cgroup"])),
            "linux.namespaces",
        ),
        (spec.clone().set("linux.devices", node), "device //node"),
    ] {
        let (request, _cgroup, _) = pod.request(&spec);
        assert_eq!(unsupported(pod.monitor.create(request).await), what);
    }
    let dir = pod.scratch().to_owned();
    for (place, options, what) in [
        ("/x", ["rw", "rshared"], "mount /x"),
        ("/dev", ["rw", "rprivate"], "mount /dev"),
    ] {
        let (mut request, _cgroup, _) = pod.request(&spec);
        let mount = volume(place, bind_clone(&dir), &options);
        request
            .spec
            .mounts
            .retain(|one| !one.destination.starts_with(place));
        request.spec.mounts.push(mount);
        assert_eq!(unsupported(pod.monitor.create(request).await), what);
    }
    pod.end().await;
}

/// A PID namespace that containers share is the user namespace's, its init, too: whoever
/// may do everything there ends neither it nor anything of the node.
pub(crate) async fn shared_processes_are_inside(launcher: Kind) {
    let mut pod = shared(launcher).await;
    let init = pod.ready.init_pid.unwrap();
    let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_ne!(link("self"), link(&init.to_string()));
    let uid = std::fs::metadata(format!("/proc/{init}/status"))
        .unwrap()
        .uid();
    assert!(uid == 0 || uid >= IDS.0, "{uid}");
    let script = "kill -9 1; kill -9 -1 2>/dev/null; cat /proc/1/comm; \
                  ls /proc | grep -cE '^[0-9]+$' | grep -qE '^[2-6]$' && echo few";
    let spec = in_pid_namespace(init, script).set("process.capabilities", all_capabilities());
    assert_eq!(stdout(pod.outcome(&spec).await), "slipway-init\nfew");
    assert!(Path::new(&format!("/proc/{init}")).exists());
    pod.end().await;
}
