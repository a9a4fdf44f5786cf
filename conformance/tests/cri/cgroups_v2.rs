//! Limits, devices and systemd where cgroup v2 is all there is. Other machines pass these
//! tests over and say so; in the guest, which is made for them, nothing is passed over.

use std::path::{Path, PathBuf};
use std::process::Command;

use conformance::engine::Driver;
use conformance::eventually;
use proto::v1;

use crate::rig::{Rig, deadline, with_own_engine};

const MIB: i64 = 1 << 20;

/// Whether this machine has what a test needs. In the guest of `conformance/guest`, which
/// sets the variable, it has to.
fn is_there(what: &str, there: bool) -> bool {
    if !there {
        let guest = std::env::var_os("SLIPWAY_TEST_GUEST").is_some();
        assert!(!guest, "the guest has no {what}");
        println!("SKIPPED: this machine has no {what}");
    }
    there
}

/// Whether v2 is all there is.
fn is_v2() -> bool {
    let controllers = Path::new("/sys/fs/cgroup/cgroup.controllers");
    is_there("cgroup v2 alone", controllers.exists())
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// What systemd says of a unit's state; nothing where it does not listen.
fn asked(unit: &str) -> Vec<u8> {
    let asked = Command::new("systemctl").args(["is-active", unit]).output();
    asked.expect("systemctl").stdout
}

/// Has systemd do something; again where it does not listen, since another test has it begin
/// anew.
async fn systemctl(arguments: &[&str]) {
    let done = eventually(deadline(), async || {
        let status = Command::new("systemctl").args(arguments).output();
        status.expect("systemctl").status.success().then_some(())
    });
    let done = done.await;
    assert!(done.is_some(), "systemctl {arguments:?}");
}

fn limits(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    let linux = config.linux.as_mut().expect("linux");
    linux.resources.as_mut().expect("resources")
}

/// One container in a pod of its own.
struct One {
    pod: String,
    id: String,
    sandbox: v1::PodSandboxConfig,
}

impl One {
    async fn run(rig: &mut Rig, name: &str, change: impl FnOnce(&mut v1::ContainerConfig)) -> Self {
        let sandbox = rig.sandbox(name);
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        change(&mut config);
        let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        let id = rig.started(&pod, &config, &sandbox).await;
        Self { pod, id, sandbox }
    }

    fn file(&self, rig: &Rig, name: &str) -> PathBuf {
        let cgroup = rig.engine.cgroup_of(&self.pod, &self.id);
        let cgroup = cgroup.trim_start_matches('/');
        Path::new("/sys/fs/cgroup").join(cgroup).join(name)
    }

    /// What a file of its cgroup says.
    fn reads(&self, rig: &Rig, name: &str) -> String {
        let text = std::fs::read_to_string(self.file(rig, name));
        text.expect(name).trim().to_owned()
    }

    async fn says(&self, rig: &mut Rig, script: &str) -> String {
        let words = ["/bin/sh", "-c", script];
        let ran = rig.client.exec(&self.id, &words, 30).await;
        let ran = ran.expect("ExecSync");
        format!("{}{}", ran.stdout, ran.stderr)
    }

    async fn update(
        &self,
        rig: &mut Rig,
        limits: v1::LinuxContainerResources,
    ) -> Result<(), tonic::Status> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(limits),
            ..Default::default()
        };
        let answer = rig.client.runtime.update_container_resources(request);
        answer.await.map(|_| ())
    }
}

/// The kubelet gives memory and swap together, the kernel of v2 counts swap alone.
#[test]
fn swap_is_what_the_sum_leaves_above_memory() {
    if !is_v2() {
        return;
    }
    with_own_engine(async |rig| {
        let one = One::run(rig, "swap", |config| {
            limits(config).memory_limit_in_bytes = 64 * MIB;
            limits(config).memory_swap_limit_in_bytes = 96 * MIB;
        })
        .await;
        let both = |rig: &Rig| ["memory.max", "memory.swap.max"].map(|name| one.reads(rig, name));
        assert_eq!(
            both(rig),
            [64 * MIB, 32 * MIB].map(|value| value.to_string())
        );
        let sum = |memory: i64, sum: i64| v1::LinuxContainerResources {
            memory_limit_in_bytes: memory * MIB,
            memory_swap_limit_in_bytes: sum * MIB,
            ..Default::default()
        };
        one.update(rig, sum(48, 48)).await.expect("no swap at all");
        let none = [(48 * MIB).to_string(), "0".to_owned()];
        assert_eq!(both(rig), none);
        let less = one.update(rig, sum(64, 63)).await;
        less.expect_err("less together than memory alone");
        assert_eq!(both(rig), none, "nothing of it is set");
    });
}

/// Swap of the node in a file, for as long as it lives.
struct Swap(tempfile::NamedTempFile);

impl Swap {
    fn of(mebibytes: usize) -> Self {
        let mut file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        // Swap has no holes.
        let zeros = vec![0; mebibytes << 20];
        std::io::Write::write_all(&mut file, &zeros).expect("room");
        file.as_file().sync_all().expect("on the disk");
        let path = file.path().to_str().expect("a path");
        run("chmod", &["600", path]);
        run("mkswap", &["-q", path]);
        run("swapon", &[path]);
        Self(file)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        drop(Command::new("swapoff").arg(self.0.path()).output());
    }
}

#[test]
fn a_container_with_swap_outgrows_its_memory_and_one_without_is_killed() {
    // A whole machine would begin to swap.
    let guest = std::env::var_os("SLIPWAY_TEST_GUEST").is_some();
    if !is_v2() || !is_there("swap of a guest", guest) {
        return;
    }
    let swap = Swap::of(96);
    with_own_engine(async |rig| {
        for (name, sum) in [("roomy", 160), ("strict", 32)] {
            let one = One::run(rig, name, |config| {
                limits(config).memory_limit_in_bytes = 32 * MIB;
                limits(config).memory_swap_limit_in_bytes = sum * MIB;
            })
            .await;
            // The memory of /dev/shm is that of whoever wrote it, and no file's cache.
            let fill = "dd if=/dev/zero of=/dev/shm/much bs=1M count=56 2>&1 && echo all of it";
            let said = one.says(rig, fill).await;
            let swapped: i64 = one.reads(rig, "memory.swap.current").parse().expect("swap");
            assert_eq!(
                said.contains("all of it"),
                name == "roomy",
                "{name}: {said}"
            );
            assert_eq!(swapped > 0, name == "roomy", "{name}: {swapped}");
            rig.client.stop_pod(&one.pod).await.expect("StopPodSandbox");
        }
    });
    drop(swap);
}

#[test]
fn keys_of_v2_are_written_as_they_are_and_none_leaves_its_controller() {
    if !is_v2() {
        return;
    }
    with_own_engine(async |rig| {
        let keys = |pairs: &[(&str, &str)]| {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            pairs.iter().map(owned).collect()
        };
        let set = keys(&[("memory.high", "33554432"), ("pids.max", "77")]);
        let one = One::run(rig, "keys", |config| limits(config).unified = set).await;
        let both = |rig: &Rig| ["memory.high", "pids.max"].map(|name| one.reads(rig, name));
        assert_eq!(both(rig), ["33554432", "77"]);
        // The first of these can be set, which has to be undone.
        let bad = v1::LinuxContainerResources {
            unified: keys(&[("memory.high", "16777216"), ("pids.max", "a few")]),
            ..Default::default()
        };
        let refused = one.update(rig, bad).await.expect_err("no number");
        assert!(refused.message().contains("pids.max"), "{refused}");
        assert_eq!(both(rig), ["33554432", "77"]);
        for key in [
            "cgroup.kill",
            "cgroup.procs",
            "../memory.max",
            "memory.none",
        ] {
            let bad = v1::LinuxContainerResources {
                unified: keys(&[(key, "1")]),
                ..Default::default()
            };
            let refused = one.update(rig, bad).await.expect_err(key);
            assert!(refused.message().contains(key), "{refused}");
        }
        assert_eq!(one.says(rig, "echo alive").await, "alive\n");
    });
}

#[test]
fn huge_pages_are_bounded_by_their_size() {
    let has = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    let huge = has("/sys/fs/cgroup/cgroup.controllers").contains("hugetlb");
    if !is_v2() {
        return;
    }
    // User-mode Linux has none, in no guest.
    if !huge && has("/proc/cpuinfo").contains("User Mode Linux") {
        println!("SKIPPED: User-mode Linux has no huge pages");
        return;
    }
    let free = has("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let enough = free.trim().parse().is_ok_and(|free: u32| free >= 8);
    if !is_there("eight huge pages", huge && enough) {
        return;
    }
    with_own_engine(async |rig| {
        let dir = rig.engine.path("huge");
        std::fs::create_dir(&dir).expect("a folder");
        let path = dir.to_str().expect("a path");
        run("mount", &["-t", "hugetlbfs", "none", path]);
        let mount = v1::Mount {
            container_path: "/huge".into(),
            host_path: path.to_owned(),
            ..Default::default()
        };
        let limit = |page_size: &str, limit| v1::HugepageLimit {
            page_size: page_size.to_owned(),
            limit,
        };
        let one = One::run(rig, "huge", |config| {
            limits(config).hugepage_limits = vec![limit("2MB", 4 << 20)];
            config.mounts.push(mount);
        })
        .await;
        for name in ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"] {
            assert_eq!(one.reads(rig, name), (4 * MIB).to_string(), "{name}");
        }
        let take = |pages: i64| {
            format!(
                "/bin/busybox fallocate -l {} /huge/file && echo taken",
                pages * 2 * MIB
            )
        };
        assert_eq!(one.says(rig, &take(2)).await, "taken\n");
        let said = one.says(rig, &take(3)).await;
        assert!(!said.contains("taken"), "{said}");
        let unknown = v1::LinuxContainerResources {
            hugepage_limits: vec![limit("3MB", 6 << 20)],
            ..Default::default()
        };
        one.update(rig, unknown).await.expect_err("no such size");
        rig.client.stop_pod(&one.pod).await.expect("StopPodSandbox");
        run("umount", &[path]);
    });
}

#[test]
fn a_container_runs_on_the_processors_of_its_set() {
    if !is_v2() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if !is_there("second processor", cores > 1) {
        return;
    }
    with_own_engine(async |rig| {
        let one = One::run(rig, "set", |config| {
            limits(config).cpuset_cpus = "1".into();
            limits(config).cpuset_mems = "0".into();
        })
        .await;
        let allowed = "grep -h Cpus_allowed_list /proc/1/status /proc/self/status";
        let on = |set: &str| format!("Cpus_allowed_list:\t{set}\n").repeat(2);
        assert_eq!(one.reads(rig, "cpuset.cpus.effective"), "1");
        assert_eq!(one.says(rig, allowed).await, on("1"));
        let cpus = |set: &str| v1::LinuxContainerResources {
            cpuset_cpus: set.to_owned(),
            ..Default::default()
        };
        one.update(rig, cpus("0")).await.expect("the other");
        assert_eq!(one.says(rig, allowed).await, on("0"));
        one.update(rig, cpus("100000")).await.expect_err("no such");
        assert_eq!(one.says(rig, allowed).await, on("0"));
    });
}

/// Which ways a device can be opened: "rw", "r", "w" or "".
async fn opens(one: &One, rig: &mut Rig, path: &str) -> String {
    let script =
        format!("(: <{path}) 2>/dev/null && printf r; (: >>{path}) 2>/dev/null && printf w; true");
    one.says(rig, &script).await
}

/// On v2 devices are a program of the cgroup's, which nothing shows in a file.
#[test]
fn devices_are_opened_as_far_as_they_were_given() {
    if !is_v2() {
        return;
    }
    with_own_engine(async |rig| {
        let device = "/dev/loop-control";
        let given = v1::Device {
            container_path: "/dev/given".into(),
            host_path: device.into(),
            permissions: "r".into(),
        };
        let one = One::run(rig, "given", |config| config.devices.push(given)).await;
        assert_eq!(opens(&one, rig, "/dev/given").await, "r");
        // A node that the container makes is of no use to it.
        let made = one.says(rig, "mknod /made c 10 237 && ls /made").await;
        let made_by = "/bin/busybox mknod /made c 10 237 && ls /made";
        let made = if made.contains("not found") {
            one.says(rig, made_by).await
        } else {
            made
        };
        assert_eq!(made, "/made\n");
        assert_eq!(opens(&one, rig, "/made").await, "r");
        let none = One::run(rig, "none", |_| ()).await;
        none.says(rig, made_by).await;
        assert_eq!(opens(&none, rig, "/made").await, "");
        assert_eq!(opens(&none, rig, "/dev/null").await, "rw");
    });
}

/// systemd that begins anew, or reads its units again, looks at every cgroup it knows.
#[test]
fn systemd_that_is_executed_again_takes_nothing_from_pods() {
    let systemd = Path::new("/run/systemd/system").is_dir();
    if !is_v2() || !is_there("systemd", systemd) {
        return;
    }
    with_own_engine(async |rig| {
        let mut all = Vec::new();
        for name in ["first", "second"] {
            let one = One::run(rig, name, |config| {
                limits(config).memory_limit_in_bytes = 48 * MIB;
                limits(config).cpuset_cpus = "0".into();
            });
            all.push(one.await);
        }
        for one in &all {
            let made = "/bin/busybox mknod /made c 10 237; ls /made";
            assert_eq!(one.says(rig, made).await, "/made\n");
        }
        for order in ["daemon-reexec", "daemon-reload"] {
            systemctl(&[order]).await;
            for one in &all {
                is_whole(rig, one).await;
            }
            // What begins only now.
            let late = One::run(rig, order, |_| ()).await;
            assert_eq!(late.says(rig, "echo late").await, "late\n");
            let beside = rig.container("beside", &["/bin/sleep", "1000"]);
            let beside = v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata {
                    name: order.to_owned(),
                    attempt: 0,
                }),
                ..beside
            };
            let (pod, sandbox) = (all[0].pod.clone(), all[0].sandbox.clone());
            rig.started(&pod, &beside, &sandbox).await;
            rig.client
                .stop_pod(&late.pod)
                .await
                .expect("StopPodSandbox");
        }
        for one in &all {
            rig.client.stop_pod(&one.pod).await.expect("StopPodSandbox");
            let scope = format!("slipway-{}.scope", one.pod);
            // Those that end well are forgotten, and such a unit is inactive as well.
            let gone = async || (asked(&scope) == b"inactive\n").then_some(());
            let gone = eventually(deadline(), gone).await;
            gone.expect("the scope ends");
        }
    });
}

/// While systemd begins anew it is not on the bus, and whoever waits for the end of a job
/// may not be told.
#[test]
fn pods_begin_and_end_while_systemd_is_executed_again() {
    let systemd = Path::new("/run/systemd/system").is_dir();
    if !is_v2() || !is_there("systemd", systemd) {
        return;
    }
    with_own_engine(async |rig| {
        for round in 0..8 {
            let anew = || {
                let mut order = Command::new("systemctl");
                order.arg("daemon-reexec").spawn().expect("systemctl")
            };
            let mut orders = vec![anew()];
            let sandbox = rig.sandbox(&format!("anew-{round}"));
            let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
            orders.push(anew());
            rig.client.stop_pod(&pod).await.expect("StopPodSandbox");
            rig.client.remove_pod(&pod).await.expect("RemovePodSandbox");
            for mut order in orders {
                // It is refused where systemd begins anew already.
                order.wait().expect("its end");
            }
        }
    });
}

/// A container runs, with its limits and without devices, and its pod's scope is there.
async fn is_whole(rig: &mut Rig, one: &One) {
    let status = rig
        .client
        .container(&one.id)
        .await
        .expect("ContainerStatus");
    assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
    assert_eq!(one.says(rig, "echo alive").await, "alive\n");
    assert_eq!(one.reads(rig, "memory.max"), (48 * MIB).to_string());
    assert_eq!(one.reads(rig, "cpuset.cpus.effective"), "0");
    assert_eq!(opens(one, rig, "/made").await, "");
    if Driver::of_environment() == Driver::Systemd {
        let scope = format!("slipway-{}.scope", one.pod);
        systemctl(&["is-active", &scope]).await;
    }
    let limits = v1::LinuxContainerResources {
        cpu_shares: 512,
        ..Default::default()
    };
    one.update(rig, limits)
        .await
        .expect("UpdateContainerResources");
}
