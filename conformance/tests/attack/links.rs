//! Images whose links lead the kernel's filesystems, masks or volumes elsewhere.

use conformance::image::Extras;
use proto::v1;

use crate::rig::Rig;
use crate::stage::with_every_launcher;

fn linked(links: &[(&str, &str)]) -> Extras {
    let owned = |(link, target): &(&str, &str)| ((*link).to_owned(), (*target).to_owned());
    Extras {
        links: links.iter().map(owned).collect(),
        ..Extras::default()
    }
}

/// What of the node an escape would change.
fn node() -> Vec<String> {
    let files = ["core_pattern", "modprobe", "hotplug", "poweroff_cmd"];
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}"));
    files.map(|name| read(name).unwrap_or_default()).into()
}

/// Refused by name, or harmless since the link is hidden; the node as before.
async fn refused(rig: &mut Rig, launcher: &str, link: &str) {
    let before = node();
    match rig.try_container(launcher, "linked", |_| ()).await {
        Ok(_) => panic!("{launcher}: an image whose {link} is a link runs"),
        Err(error) => {
            let words = format!("the image's {link} is a symbolic link");
            assert!(error.message().contains(&words), "{launcher}: {error}");
        }
    }
    assert_eq!(node(), before, "{launcher}: the node was changed");
}

#[test]
fn an_image_that_lays_procfs_on_another_place_is_refused() {
    let links = [("proc", "dev/x"), ("dev/x", "/real")];
    let mut extras = linked(&links);
    // The link below /dev needs its directory to stay.
    extras
        .files
        .push(("real/keep".to_owned(), Vec::new(), 0o644));
    with_every_launcher(&extras, async |rig, launcher| {
        refused(rig, launcher, "/proc").await;
    });
}

#[test]
fn an_image_whose_sys_is_a_link_is_refused() {
    with_every_launcher(&linked(&[("sys", "tmp")]), async |rig, launcher| {
        refused(rig, launcher, "/sys").await;
    });
}

#[test]
fn an_image_whose_dev_is_a_link_is_refused() {
    with_every_launcher(&linked(&[("dev", "/tmp")]), async |rig, launcher| {
        refused(rig, launcher, "/dev").await;
    });
}

#[test]
fn links_below_a_fresh_dev_and_sys_are_hidden() {
    let links = [
        "dev/pts",
        "dev/shm",
        "dev/mqueue",
        "sys/fs",
        "proc/kcore",
        "proc/sys",
    ];
    let links = links.map(|link| (link, "/tmp"));
    with_every_launcher(&linked(&links), async |rig, launcher| {
        let made = rig.try_container(launcher, "hidden", |_| ()).await;
        let id = made.expect("what is hidden harms nobody");
        let script = "grep -E ' (/proc|/sys|/dev|/dev/pts|/dev/shm|/dev/mqueue|/sys/fs/cgroup) ' \
                      /proc/self/mounts | wc -l; ls -A /tmp; \
                      echo x 2>&1 >/proc/sys/kernel/core_pattern | grep -o 'Read-only'; \
                      wc -c </proc/timer_list; ls /sys/firmware";
        let prints = rig.prints(&id, script).await;
        assert_eq!(prints, "7\nRead-only\n0\n", "{launcher}");
    });
}

#[test]
fn a_volume_is_never_led_into_the_kernels_filesystems() {
    let mut targets = vec!["/proc", "/proc/sys/kernel", "/sys/kernel", "/sys/fs/cgroup"];
    // A hierarchy of version 1 is a mount of its own.
    let hierarchy = "/sys/fs/cgroup/memory";
    targets.extend(
        std::path::Path::new(hierarchy)
            .is_dir()
            .then_some(hierarchy),
    );
    for target in targets {
        let extras = linked(&[("data", target)]);
        with_every_launcher(&extras, async |rig, launcher| {
            let volume = rig.engine.path(&format!("volume-{launcher}"));
            std::fs::create_dir_all(&volume).expect("a folder");
            let mount = v1::Mount {
                container_path: "/data".to_owned(),
                host_path: volume.to_string_lossy().into_owned(),
                ..Default::default()
            };
            let made = rig.try_container(launcher, "led", |config| config.mounts.push(mount));
            let error = made.await.expect_err("a link leads the volume away");
            let words = "leads /data into /proc or /sys";
            assert!(error.message().contains(words), "{launcher}: {error}");
        });
    }
}

#[test]
fn volumes_go_where_their_targets_mean() {
    let mut extras = linked(&[("run", "tmp"), ("out", "../../../../tmp")]);
    extras
        .files
        .push(("etc/keep".to_owned(), Vec::new(), 0o644));
    with_every_launcher(&extras, async |rig, launcher| {
        let volume = rig.engine.path(&format!("meant-{launcher}"));
        std::fs::create_dir_all(&volume).expect("a folder");
        std::fs::write(volume.join("here"), "").expect("a file");
        let to = |target: &str| v1::Mount {
            container_path: target.to_owned(),
            host_path: volume.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let targets = ["/a/../b", "/run/linked", "/out/led", "/plain"];
        let mounts = targets.map(to);
        let made = rig.try_container(launcher, "meant", |config| config.mounts.extend(mounts));
        let id = made.await.expect("all of them have a place");
        let prints = rig.prints(&id, "ls /b /tmp/linked /tmp/led /plain").await;
        assert_eq!(prints.matches("here").count(), 4, "{launcher}: {prints}");
        let root = |config: &mut v1::ContainerConfig| config.mounts.push(to("/a/.."));
        let error = rig.try_container(launcher, "root", root).await;
        let error = error.expect_err("a volume on the root");
        assert_eq!(
            error.code(),
            tonic::Code::InvalidArgument,
            "{launcher}: {error}"
        );
    });
}
