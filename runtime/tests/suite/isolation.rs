//! What a container's process is and may.

use std::collections::BTreeMap;

use serde_json::json;

use super::{stdout, unsupported};
use crate::support::{Kind, Pod, TestSpec, detached_tmpfs, volume, wait_until};

/// Fields of /proc/self/status.
fn status(text: &str) -> BTreeMap<String, String> {
    let field = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_owned(), value.trim().to_owned())
    };
    text.lines().map(field).collect()
}

const SHOW: &str = "cat /proc/self/status";

/// Denies making directories, allows everything else.
fn seccomp() -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    })
}

/// A process of many properties.
fn particular(script: &str, nnp: bool) -> TestSpec {
    let caps = json!(["CAP_CHOWN", "CAP_NET_RAW"]);
    let user = json!({ "uid": 1000, "gid": 1001, "additionalGids": [7, 5] });
    let files = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    let sets = json!({
        "bounding": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL"], "effective": caps,
        "permitted": caps, "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"],
    });
    TestSpec::shell(script)
        .set("process.user", user)
        .set("process.noNewPrivileges", json!(nnp))
        .set("process.oomScoreAdj", json!(500))
        .set("process.rlimits", files)
        .set("process.capabilities", sets)
        .set("linux.seccomp", seccomp())
}

/// Shows them, one a line.
const SHOW_ALL: &str = "cat /proc/self/status; echo Adj: $(cat /proc/self/oom_score_adj); \
    echo Files: $(ulimit -Sn) $(ulimit -Hn); echo Fds: $(ls /proc/self/fd); \
    echo Umask: $(umask); echo Session: $(($(cut -d' ' -f6 /proc/$$/stat) == $$)); \
    mkdir /tmp/x 2>/dev/null && echo Mkdir: yes || echo Mkdir: no";

/// What they should be. A program that is not root keeps its ambient
/// capabilities over exec; the last descriptor is the directory that is listed.
const EXPECTED: [(&str, &str); 17] = [
    ("Uid", "1000\t1000\t1000\t1000"),
    ("Gid", "1001\t1001\t1001\t1001"),
    ("Groups", "5 7"),
    ("CapBnd", "0000000000002021"),
    ("CapInh", "0000000000000001"),
    ("CapAmb", "0000000000000001"),
    ("CapPrm", "0000000000000001"),
    ("CapEff", "0000000000000001"),
    ("Seccomp", "2"),
    ("Seccomp_filters", "1"),
    ("SigBlk", "0000000000000000"),
    ("SigIgn", "0000000000000000"),
    ("Adj", "500"),
    ("Files", "100 200"),
    ("Fds", "0 1 2 3"),
    ("Umask", "0022"),
    ("Session", "1"),
];

/// First process and a process that is run are the same kind of thing:
/// user, groups, capabilities, filter, signals, descriptors, OOM score.
pub(crate) async fn process_is_what_was_asked_for(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    for nnp in [true, false] {
        let spec = particular(&format!("{SHOW_ALL}; sleep 1000"), nnp);
        let container = pod.create(&spec).await;
        pod.start(&container).await;
        container.logged("Mkdir");
        let first = container.log().join("\n").replace("stdout F ", "");
        let second = pod
            .exec(&container, &particular(SHOW_ALL, nnp))
            .await
            .unwrap();
        assert_eq!(second.stderr, "");
        for (who, text) in [("first", &first), ("second", &second.stdout)] {
            let status = status(text);
            let nnp_value = if nnp { "1" } else { "0" };
            let more = [("NoNewPrivs", nnp_value), ("Mkdir", "no")];
            for (field, value) in EXPECTED.into_iter().chain(more) {
                assert_eq!(
                    status[field], value,
                    "{field} of the {who} process, nnp {nnp}"
                );
            }
        }
        pod.monitor.signal(&container.id, 9).await.unwrap();
        pod.exit(&container).await;
    }
    pod.end().await;
}

/// Root keeps exactly the capabilities that were asked for.
pub(crate) async fn root_has_the_capabilities_it_was_given(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = |script: &str| {
        let caps = json!(["CAP_CHOWN", "CAP_SYS_CHROOT"]);
        let sets = json!({ "bounding": caps, "effective": caps, "permitted": caps });
        TestSpec::shell(script).set("process.capabilities", sets)
    };
    let container = pod.run(&spec("cat /proc/self/status; sleep 1000")).await;
    container.logged("nonvoluntary_ctxt_switches");
    let first = container.log().join("\n").replace("stdout F ", "");
    let second = pod.exec(&container, &spec(SHOW)).await.unwrap().stdout;
    for text in [first, second] {
        let status = status(&text);
        for (set, value) in [
            ("CapBnd", "40001"),
            ("CapPrm", "40001"),
            ("CapEff", "40001"),
            ("CapInh", "0"),
            ("CapAmb", "0"),
        ] {
            assert_eq!(status[set], format!("{value:0>16}"), "{set}");
        }
    }
    pod.end().await;
}

/// A spec without capabilities gives none, not all.
pub(crate) async fn missing_capabilities_are_none(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = |script: &str| {
        let mut spec = TestSpec::shell(script);
        spec.0["process"]
            .as_object_mut()
            .unwrap()
            .remove("capabilities");
        spec
    };
    let container = pod.run(&spec("cat /proc/self/status; sleep 1000")).await;
    container.logged("nonvoluntary_ctxt_switches");
    let first = container.log().join("\n").replace("stdout F ", "");
    let second = pod.exec(&container, &spec(SHOW)).await.unwrap().stdout;
    for text in [first, second] {
        let status = status(&text);
        assert_eq!(
            (status["CapBnd"].as_str(), status["CapEff"].as_str()),
            ("0000000000000000", "0000000000000000")
        );
    }
    pod.end().await;
}

/// Every hierarchy is joined, by the first process and by those that are run;
/// the launcher makes no other cgroup and leaves nothing in them.
pub(crate) async fn all_cgroups_are_joined(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = |script: &str| {
        TestSpec::shell(script).set(
            "linux.namespaces",
            json!([{ "type": "pid" }, { "type": "mount" }]),
        )
    };
    let show = "grep -v ':/$' /proc/self/cgroup | cut -d: -f3 | sort | uniq -c";
    let container = pod.run(&spec(&format!("{show}; sleep 1000"))).await;
    let path = container.cgroup.path();
    container.logged(path.to_str().unwrap());
    let count = container.cgroup.procs().len();
    let expected = format!("{count} {}", path.display());
    let first = container.log().join("\n").replace("stdout F ", "");
    assert_eq!(first.trim(), expected);
    let next = pod.exec(&container, &spec(show)).await.unwrap();
    assert_eq!(next.stdout.trim(), expected);
    // The launcher's helper leaves them.
    let alone = || container.cgroup.pids() == [container.created.pid];
    assert!(wait_until(alone), "{:?}", container.cgroup.pids());
    pod.end().await;
}

/// The container sees its own cgroups, read-only.
pub(crate) async fn container_sees_its_own_cgroups(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let script = "cd /sys/fs/cgroup; p=$(ls -d cgroup.procs */cgroup.procs 2>/dev/null); \
                  for f in $p; do grep -qx $$ $f || echo missing in $f; echo 0 2>/dev/null >$f && echo wrote $f; done; \
                  echo $p | wc -w; touch x 2>/dev/null && echo touched";
    let container = pod.create(&TestSpec::shell(script)).await;
    let count = container.cgroup.procs().len();
    pod.start(&container).await;
    pod.exit(&container).await;
    assert_eq!(container.log(), [format!("stdout F {count}")]);
    pod.end().await;
}

/// Devices outside of the rules cannot be opened, even by who may make nodes.
pub(crate) async fn devices_follow_the_rules(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    // What opening a device gives besides is the machine's business.
    let script = "echo x >/dev/null && echo null; mknod /tmp/tun c 10 200 && echo made; \
                  (exec 3</tmp/tun) 2>&1 | grep -q 'not permitted' && echo denied || echo allowed";
    let text = stdout(pod.outcome(&TestSpec::shell(script)).await);
    assert_eq!(text, "null\nmade\ndenied");
    let devices = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "r" },
    ]);
    let all = json!([{ "allow": true, "access": "rwm" }]);
    for devices in [devices, all] {
        let spec = TestSpec::shell(script).set("linux.resources", json!({ "devices": devices }));
        assert_eq!(stdout(pod.outcome(&spec).await), "null\nmade\nallowed");
    }
    pod.end().await;
}

/// Nodes are made as asked for, those that every container has among them; a
/// host's ptmx is not, since terminals are the container's own.
pub(crate) async fn device_nodes_are_made(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let node = |path: &str, major: u32, minor: u32| {
        json!({ "path": path, "type": "c", "major": major, "minor": minor,
                "fileMode": 0o640, "uid": 5, "gid": 6 })
    };
    let script =
        "stat -c '%t:%T %a %u:%g' /dev/net/tun; readlink /dev/ptmx; echo x >/dev/null && echo null";
    let spec = TestSpec::shell(script).set(
        "linux.devices",
        json!([
            node("/dev/net/tun", 10, 200),
            node("/dev/ptmx", 5, 2),
            node("/dev/zero", 1, 5)
        ]),
    );
    let text = stdout(pod.outcome(&spec).await);
    let ptmx = text
        .lines()
        .nth(1)
        .map(|link| link.trim_start_matches("/dev/"));
    assert_eq!(ptmx, Some("pts/ptmx"));
    assert_eq!(
        (text.lines().next(), text.lines().last()),
        (Some("a:c8 640 5:6"), Some("null"))
    );
    pod.end().await;
}

/// Without the v1 controller a program on the v2 cgroup does the same.
pub(crate) async fn devices_follow_the_rules_on_v2(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let script = "echo x >/dev/null && echo null; mknod /tmp/tun c 10 200 && echo made; \
                  (exec 3</tmp/tun) 2>&1 | grep -q 'not permitted' && echo denied || echo allowed";
    let open = json!({ "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw" });
    let closed = json!({ "allow": false, "access": "rwm" });
    for (devices, result) in [
        (json!([closed]), "denied"),
        (json!([closed, open]), "allowed"),
        (json!([{ "allow": true, "access": "rwm" }]), "allowed"),
    ] {
        let spec = TestSpec::shell(script).set("linux.resources", json!({ "devices": devices }));
        let created = pod.create_with(&spec, |request| {
            let v2 =
                |procs: &std::path::PathBuf| procs.with_file_name("cgroup.controllers").exists();
            request.cgroup_files.retain(v2);
        });
        let container = created.await.unwrap();
        pod.start(&container).await;
        pod.exit(&container).await;
        let expected = ["null", "made", result].map(|line| format!("stdout F {line}"));
        assert_eq!(container.log(), expected);
    }
    // Neither: rules are refused by their name.
    let (mut request, _cgroup, _) = pod.request(&TestSpec::shell(script));
    request.cgroup_files.clear();
    assert_eq!(
        unsupported(pod.monitor.create(request).await),
        "linux.resources.devices"
    );
    pod.end().await;
}

/// A lowered OOM score that is not allowed harms nothing.
pub(crate) async fn lowered_oom_score_never_fails(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell("sleep 1000").set("process.oomScoreAdj", json!(-999));
    let container = pod.run(&spec).await;
    let run = TestSpec::shell("true").set("process.oomScoreAdj", json!(-999));
    pod.exec(&container, &run).await.unwrap();
    pod.end().await;
}

/// What a launcher cannot do is refused by its name, never ignored.
pub(crate) async fn unsupported_wishes_are_refused_by_name(launcher: Kind) {
    if launcher != Kind::Libcontainer {
        return;
    }
    let mut pod = Pod::new(launcher).await;
    let plain = || TestSpec::shell("true");
    let nobody = json!({ "uid": u32::MAX, "gid": 0 });
    for (spec, mount, what) in [
        (
            plain(),
            Some(volume("/dev", detached_tmpfs(), &[])),
            "a volume on /dev",
        ),
        (
            plain().set("process.selinuxLabel", json!("x")),
            None,
            "process.selinuxLabel",
        ),
        (
            plain().set("process.user", nobody),
            None,
            "process.user.uid 4294967295",
        ),
    ] {
        let (mut request, cgroup, _) = pod.request(&spec);
        request.spec.mounts.extend(mount);
        assert_eq!(unsupported(pod.monitor.create(request).await), what);
        assert!(cgroup.pids().is_empty());
    }
    pod.end().await;
}
