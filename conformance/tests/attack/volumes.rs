//! Volumes that take something away from whoever sees them, and images as volumes.

use conformance::image::Extras;
use proto::v1;

use crate::stage::with_every_launcher;

/// The flags of the mount at a path, as the container sees them.
const FLAGS: &str = "grep ' /{} ' /proc/self/mounts | cut -d' ' -f4";

fn flags_of(path: &str) -> String {
    FLAGS.replace("{}", path)
}

#[test]
fn a_volumes_options_hold_in_all_of_its_tree() {
    with_every_launcher(&Extras::default(), async |rig, launcher| {
        let volume = rig.engine.path(&format!("options-{launcher}"));
        let below = volume.join("below");
        std::fs::create_dir_all(&below).expect("a folder");
        let below_path = below.to_string_lossy().into_owned();
        nix::mount::mount(
            Some("tmpfs"),
            below_path.as_str(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .expect("a mount below the volume");
        let busybox = conformance::image::busybox().expect("busybox");
        for dir in [&volume, &below] {
            std::fs::copy(&busybox, dir.join("echo")).expect("a program");
        }
        let mount = |path: &str, options: &[&str]| v1::Mount {
            container_path: path.to_owned(),
            host_path: volume.to_string_lossy().into_owned(),
            mount_options: options.iter().map(|text| (*text).to_owned()).collect(),
            ..Default::default()
        };
        let mounts = vec![
            mount("/free", &[]),
            mount("/bare", &["noexec", "nodev", "nosuid"]),
        ];
        let asked = mounts.clone();
        let made = rig.try_container(launcher, "options", move |config| config.mounts = mounts);
        let id = made.await.expect("a container");
        for (path, runs) in [("/free", true), ("/free/below", true), ("/bare", false)] {
            let run = rig.prints(&id, &format!("{path}/echo runs")).await;
            assert_eq!(run.contains("runs\n"), runs, "{launcher} {path}: {run}");
        }
        let run = rig.prints(&id, "/bare/below/echo runs").await;
        assert!(run.contains("ermission denied"), "{launcher}: {run}");
        for path in ["bare", "bare/below"] {
            let flags = rig.prints(&id, &flags_of(path)).await;
            for flag in ["noexec", "nodev", "nosuid"] {
                assert!(flags.contains(flag), "{launcher} {path}: {flags}");
            }
            assert!(flags.starts_with("rw"), "{launcher} {path}: {flags}");
        }
        let free = rig.prints(&id, &flags_of("free")).await;
        assert!(!free.contains("noexec"), "{launcher}: {free}");
        let status = rig.client.container(&id).await.expect("status");
        for (said, asked) in status.mounts.iter().zip(&asked) {
            let sorted = |mount: &v1::Mount| {
                let mut options = mount.mount_options.clone();
                options.sort();
                options
            };
            assert_eq!(sorted(said), sorted(asked));
        }
        nix::mount::umount2(&below, nix::mount::MntFlags::MNT_DETACH).expect("unmount");
    });
}

#[test]
fn an_image_as_a_volume_is_nobodys_to_write_and_has_no_devices() {
    with_every_launcher(&Extras::default(), async |rig, launcher| {
        let image = rig.image.clone();
        let mount = move |path: &str, sub_path: &str| v1::Mount {
            container_path: path.to_owned(),
            readonly: true,
            recursive_read_only: true,
            image: Some(conformance::client::image(&image)),
            image_sub_path: sub_path.to_owned(),
            mount_options: vec!["nosuid".to_owned()],
            ..Default::default()
        };
        let made = rig.try_container(launcher, "image", |config| {
            config.mounts = vec![mount("/all", ""), mount("/bin2", "bin")];
        });
        let id = made.await.expect("a container");
        let prints = rig.prints(&id, "/all/bin/echo a; /bin2/echo b").await;
        assert_eq!(prints, "a\nb\n", "{launcher}");
        for path in ["all", "bin2"] {
            let flags = rig.prints(&id, &flags_of(path)).await;
            for flag in ["ro,", "nodev", "nosuid"] {
                assert!(flags.contains(flag), "{launcher} {path}: {flags}");
            }
            assert!(!flags.contains("noexec"), "{launcher} {path}: {flags}");
            let written = rig.prints(&id, &format!("touch /{path}/x")).await;
            assert!(
                written.contains("Read-only"),
                "{launcher} {path}: {written}"
            );
        }
    });
}
