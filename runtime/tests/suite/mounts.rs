//! Mounts of containers.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use runtime::sys::propagation::{Propagation, set_propagation};
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::stdout;
use crate::support::{Kind, Pod, TestSpec, bind_clone, detached_tmpfs, volume, wait_until};

/// Detached mounts are used as sources: directories and files, read-only or
/// not; the host's mount table never sees any.
pub(crate) async fn detached_mounts_are_sources(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let dir = pod.scratch().join("volume");
    std::fs::create_dir(&dir).unwrap();
    // Whoever root of the container is on the node.
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::write(dir.join("file"), "content\n").unwrap();
    let script = "cat /dir/file /etc/one; echo new >/dir/new; echo x 2>/dev/null >/etc/one || echo read-only; \
                  touch /scratch/x && echo writable";
    let file = dir.join("file");
    let volumes = [
        volume("/dir", bind_clone(&dir), &["rw", "rprivate"]),
        volume("/etc/one", bind_clone(&file), &["ro", "rprivate"]),
        volume("/scratch", detached_tmpfs(), &["rw"]),
    ];
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let container = pod
        .create_with(&TestSpec::shell(script), |request| {
            request.spec.mounts.extend(volumes);
        })
        .await
        .unwrap();
    let ours = |text: &str| text.lines().filter(|line| line.contains("slipway")).count();
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(ours(&before), ours(&after));
    pod.start(&container).await;
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    let log: Vec<_> = container.log();
    assert_eq!(
        log,
        ["content", "content", "read-only", "writable"].map(|l| format!("stdout F {l}"))
    );
    assert_eq!(std::fs::read(dir.join("new")).unwrap(), b"new\n");
    pod.end().await;
}

/// A read-only root is one.
pub(crate) async fn read_only_root_is_honoured(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let spec = TestSpec::shell(
        "touch /x 2>&1 | grep -o 'Read-only'; touch /dev/shm/x 2>&1 >/dev/null; true",
    )
    .set("root.readonly", json!(true));
    assert_eq!(
        stdout(pod.outcome(&spec).await).lines().next(),
        Some("Read-only")
    );
    pod.end().await;
}

/// Masked and read-only paths are.
pub(crate) async fn paths_are_masked_and_read_only(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let script = "wc -c </proc/timer_list; echo 1 2>/dev/null >/proc/sys/kernel/domainname || echo denied; ls /sys/firmware | wc -l";
    assert_eq!(
        stdout(pod.outcome(&TestSpec::shell(script)).await),
        "0\ndenied\n0"
    );
    pod.end().await;
}

/// Places on the host that mounts travel to and from.
struct Volumes {
    base: PathBuf,
}

impl Volumes {
    /// A shared mount with a directory for each propagation.
    fn new(dir: &Path) -> Self {
        let base = dir.join("volumes");
        std::fs::create_dir(&base).unwrap();
        let tmpfs = detached_tmpfs();
        rustix::mount::move_mount(
            tmpfs.as_fd(),
            c"",
            rustix::fs::CWD,
            &base,
            rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .unwrap();
        set_propagation(open(&base).as_fd(), Propagation::Shared, false).unwrap();
        for name in ["private", "slave", "shared"] {
            std::fs::create_dir_all(base.join(name).join("from-host")).unwrap();
            std::fs::create_dir_all(base.join(name).join("from-container")).unwrap();
        }
        Self { base }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// A clone with a propagation, as the engine opens volumes.
    fn open(&self, name: &str, propagation: Option<Propagation>) -> std::os::fd::OwnedFd {
        let clone = bind_clone(&self.dir(name));
        if let Some(propagation) = propagation {
            set_propagation(clone.as_fd(), propagation, true).unwrap();
        }
        clone
    }

    /// Mounts something on the host, below each.
    fn mount_on_host(&self) {
        for name in ["private", "slave", "shared"] {
            mount_marked(&self.dir(name).join("from-host"));
        }
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _left = rustix::mount::unmount(&self.base, flags);
    }
}

fn open(path: &Path) -> std::os::fd::OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// A tmpfs with a file in it.
fn mount_marked(target: &Path) {
    let tmpfs = detached_tmpfs();
    let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tmpfs.as_fd(), c"", rustix::fs::CWD, target, flags).unwrap();
    std::fs::write(target.join("marked"), "").unwrap();
}

/// Every mount has its own propagation: the host's mounts reach slave and
/// shared volumes, the container's reach the host by shared ones alone.
pub(crate) async fn each_mount_has_its_own_propagation(launcher: Kind) {
    for with_shared in [true, false] {
        let mut pod = Pod::new(launcher).await;
        let volumes = Volumes::new(pod.scratch());
        let sync = pod.scratch().join("sync");
        std::fs::create_dir(&sync).unwrap();
        let script = "cd /vol; for v in *; do mount -t tmpfs none $v/from-container && touch $v/from-container/marked; done; \
                      echo mounted; while [ ! -e /sync/go ]; do sleep 0.01; done; \
                      for v in *; do [ -e $v/from-host/marked ] && echo $v sees; done; \
                      echo mounts; cut -d' ' -f5,7- /proc/self/mountinfo | sed 's/ - .*//; s/:[0-9]*//g'";
        let caps = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
        let sets = json!({ "bounding": caps, "effective": caps, "permitted": caps });
        let spec = TestSpec::shell(script).set("process.capabilities", sets);
        let private = volumes.open("private", Some(Propagation::Private));
        let slave = volumes.open("slave", Some(Propagation::Slave));
        // Where the test's folder is on a shared mount, so is its clone.
        let clone = bind_clone(&sync);
        set_propagation(clone.as_fd(), Propagation::Private, true).unwrap();
        let mut mounts = vec![
            volume("/vol/private", private, &["rprivate"]),
            volume("/vol/slave", slave, &["rslave"]),
            volume("/sync", clone, &[]),
        ];
        if with_shared {
            let shared = volumes.open("shared", None);
            mounts.push(volume("/vol/shared", shared, &["rshared"]));
        }
        let container = pod
            .create_with(&spec, |request| request.spec.mounts.extend(mounts))
            .await
            .unwrap();
        pod.start(&container).await;
        container.logged("mounted");
        volumes.mount_on_host();
        let seen = |name: &str| volumes.dir(name).join("from-container/marked").exists();
        assert_eq!(
            (seen("private"), seen("slave"), seen("shared")),
            (false, false, with_shared)
        );
        std::fs::write(sync.join("go"), "").unwrap();
        assert_eq!(pod.exit(&container).await.exit_code, 0);
        let log = container.log().join("\n").replace("stdout F ", "");
        let (seen, mounts) = log.split_once("mounts\n").unwrap();
        let sees = if with_shared {
            "shared sees\nslave sees\n"
        } else {
            "slave sees\n"
        };
        assert_eq!(seen, format!("mounted\n{sees}"));
        for line in mounts.lines() {
            let (place, propagation) = line.split_once(' ').unwrap_or((line, ""));
            let expected = match place {
                "/vol/slave" | "/vol/slave/from-host" => "master",
                _ if place.starts_with("/vol/shared") => "shared",
                _ => "",
            };
            assert_eq!(
                propagation, expected,
                "{place}, with a shared volume: {with_shared}"
            );
        }
        drop(volumes);
        assert!(wait_until(|| !std::fs::read_to_string(
            "/proc/self/mountinfo"
        )
        .unwrap()
        .contains(pod.scratch().to_str().unwrap())));
        pod.end().await;
    }
}

/// The host's cgroup filesystems among the volumes, as node agents have them,
/// are volumes only: no cgroup is made or joined through them.
pub(crate) async fn host_cgroups_can_be_a_volume(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let script = "ls /host/sys/fs/cgroup | grep -vc ^slipway-; grep -v ':/$' /proc/self/cgroup | cut -d: -f3 | sort -u";
    let namespaces = json!([{ "type": "pid" }, { "type": "mount" }]);
    let spec = TestSpec::shell(script).set("linux.namespaces", namespaces);
    let sys = volume(
        "/host/sys",
        bind_clone(Path::new("/sys")),
        &["ro", "rslave"],
    );
    let before = cgroup_names();
    let container = pod
        .create_with(&spec, |request| request.spec.mounts.push(sys))
        .await
        .unwrap();
    pod.start(&container).await;
    assert_eq!(pod.exit(&container).await.exit_code, 0);
    // Those of tests come and go.
    let names = std::fs::read_dir("/sys/fs/cgroup").unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let count = names.filter(|name| !name.starts_with("slipway-")).count();
    let path = container.cgroup.path();
    assert_eq!(
        container.log(),
        [
            format!("stdout F {count}"),
            format!("stdout F {}", path.display())
        ]
    );
    let strange: Vec<_> = cgroup_names()
        .into_iter()
        .filter(|name| !before.contains(name))
        .collect();
    assert!(
        strange.iter().all(|name| name.contains("slipway-test-")),
        "{strange:?}"
    );
    pod.end().await;
}

/// Names at the top of all hierarchies.
fn cgroup_names() -> Vec<String> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    };
    let top = Path::new("/sys/fs/cgroup");
    let below: Vec<_> = list(top).iter().flat_map(|dir| list(dir)).collect();
    [list(top), below]
        .concat()
        .iter()
        .filter(|path| path.is_dir())
        .map(|path| path.display().to_string())
        .collect()
}
