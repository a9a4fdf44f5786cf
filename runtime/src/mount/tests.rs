//! Tests that attach detached mounts, each in a mount namespace of its own
//! that ends with its thread. They need root.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::statvfs;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, mount, mount_change, move_mount,
};
use tempfile::TempDir;

use super::*;

/// Runs `work` in a private mount namespace with an empty directory.
fn in_mount_ns(work: impl FnOnce(&Path) + Send) {
    let dir: TempDir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let path = dir.path();
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).unwrap();
            work(path);
        });
    });
}

fn attach(tree: &OwnedFd, target: &Path) {
    fs::create_dir_all(target).unwrap();
    move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .unwrap();
}

fn mount_tmpfs(target: &Path) {
    fs::create_dir_all(target).unwrap();
    mount("tmpfs", target, "tmpfs", MountFlags::empty(), None).unwrap();
}

fn share(target: &Path) {
    mount_change(target, MountPropagationFlags::SHARED).unwrap();
}

/// A source with one mount below it, `src` and `src/inner`.
fn source(dir: &Path) -> PathBuf {
    let src = dir.join("src");
    mount_tmpfs(&src);
    mount_tmpfs(&src.join("inner"));
    src
}

fn options(propagation: Propagation) -> BindOptions {
    BindOptions {
        recursive: true,
        propagation,
        ..BindOptions::default()
    }
}

fn writable(dir: &Path) -> bool {
    fs::write(dir.join("probe"), "x").is_ok()
}

fn is_mount_point(path: &Path) -> bool {
    table::Entry::holding(path).unwrap().point == path
}

#[test]
fn what_a_clone_forbids_holds_below_it_too() {
    in_mount_ns(|dir| {
        let src = source(dir);
        let all = MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID;
        for (forbidden, flag) in [(MountAttrFlags::empty(), false), (all, true)] {
            let dst = dir.join(format!("forbidden-{flag}"));
            let options = BindOptions {
                forbidden,
                ..options(Propagation::Private)
            };
            attach(&clone_tree(&src, &options).unwrap(), &dst);
            for place in [dst.clone(), dst.join("inner")] {
                let said = statvfs(&place).unwrap().f_flag;
                let wanted = rustix::fs::StatVfsMountFlags::NOEXEC
                    | rustix::fs::StatVfsMountFlags::NODEV
                    | rustix::fs::StatVfsMountFlags::NOSUID;
                assert_eq!(said.contains(wanted), flag, "{}", place.display());
                assert!(writable(&place));
            }
        }
        // The source is as it was.
        let said = statvfs(src.join("inner")).unwrap().f_flag;
        assert!(!said.contains(rustix::fs::StatVfsMountFlags::NOEXEC));
    });
}

/// No kernel gives what arrives from the source other attributes than it has there.
#[test]
fn what_a_clone_forbids_does_not_hold_for_mounts_that_come_later() {
    in_mount_ns(|dir| {
        let src = source(dir);
        share(&src);
        let dst = dir.join("dst");
        let options = BindOptions {
            forbidden: MountAttrFlags::MOUNT_ATTR_NOEXEC,
            ..options(Propagation::Slave)
        };
        attach(&clone_tree(&src, &options).unwrap(), &dst);
        mount_tmpfs(&src.join("late"));
        let noexec = |place: &Path| {
            let said = statvfs(place).unwrap().f_flag;
            said.contains(rustix::fs::StatVfsMountFlags::NOEXEC)
        };
        assert!(noexec(&dst) && is_mount_point(&dst.join("late")));
        assert!(!noexec(&dst.join("late")));
    });
}

#[test]
fn private_clones_take_part_in_nothing() {
    in_mount_ns(|dir| {
        let src = source(dir);
        share(&src);
        let dst = dir.join("dst");
        attach(
            &clone_tree(&src, &options(Propagation::Private)).unwrap(),
            &dst,
        );
        assert!(is_mount_point(&dst.join("inner")));
        mount_tmpfs(&src.join("late"));
        assert!(!dst.join("late").exists() || !is_mount_point(&dst.join("late")));
        assert_eq!(table::Entry::holding(&dst).unwrap().peer_group, None);
    });
}

#[test]
fn slaves_follow_their_source_and_not_the_other_way() {
    in_mount_ns(|dir| {
        let src = source(dir);
        share(&src);
        share(&src.join("inner"));
        let dst = dir.join("dst");
        attach(
            &clone_tree(&src, &options(Propagation::Slave)).unwrap(),
            &dst,
        );
        for name in ["late", "inner/late"] {
            mount_tmpfs(&src.join(name));
            assert!(is_mount_point(&dst.join(name)), "{name}");
        }
        mount_tmpfs(&dst.join("back"));
        assert!(!is_mount_point(&src.join("back")));
    });
}

#[test]
fn shared_clones_go_both_ways() {
    in_mount_ns(|dir| {
        let src = source(dir);
        share(&src);
        let dst = dir.join("dst");
        attach(
            &clone_tree(&src, &options(Propagation::Shared)).unwrap(),
            &dst,
        );
        mount_tmpfs(&src.join("late"));
        assert!(is_mount_point(&dst.join("late")));
        mount_tmpfs(&dst.join("back"));
        assert!(is_mount_point(&src.join("back")));
    });
}

#[test]
fn sharing_a_private_mount_is_refused_by_name() {
    in_mount_ns(|dir| {
        let src = source(dir);
        let below = src.join("below");
        fs::create_dir(&below).unwrap();
        let error = clone_tree(&below, &options(Propagation::Shared)).unwrap_err();
        let MountError::NotShared { path, mount } = &error else {
            panic!("{error}")
        };
        assert_eq!((path, mount), (&below, &src));
        clone_tree(&below, &options(Propagation::Slave)).unwrap();
    });
}

#[test]
fn read_only_is_the_top_mount_and_recursive_is_all() {
    in_mount_ns(|dir| {
        let src = source(dir);
        let dst = dir.join("dst");
        let top = BindOptions {
            read_only: true,
            ..options(Propagation::Private)
        };
        attach(&clone_tree(&src, &top).unwrap(), &dst);
        assert!(!writable(&dst) && writable(&dst.join("inner")));
        let all = BindOptions {
            recursive_read_only: true,
            ..options(Propagation::Private)
        };
        let rro = dir.join("rro");
        attach(&clone_tree(&src, &all).unwrap(), &rro);
        assert!(!writable(&rro) && !writable(&rro.join("inner")));
        assert!(writable(&src) && writable(&src.join("inner")));
    });
}

#[test]
fn what_is_below_comes_along_only_when_asked() {
    in_mount_ns(|dir| {
        let src = source(dir);
        let dst = dir.join("dst");
        attach(&clone_tree(&src, &BindOptions::default()).unwrap(), &dst);
        assert!(!is_mount_point(&dst.join("inner")));
    });
}

#[test]
fn flags_of_the_source_stay() {
    in_mount_ns(|dir| {
        let src = dir.join("src");
        fs::create_dir(&src).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", &src, "tmpfs", flags, None).unwrap();
        let dst = dir.join("dst");
        let read_only = BindOptions {
            read_only: true,
            ..BindOptions::default()
        };
        attach(&clone_tree(&src, &read_only).unwrap(), &dst);
        let got = statvfs(&dst).unwrap().f_flag;
        use rustix::fs::StatVfsMountFlags as Flags;
        assert!(got.contains(Flags::NOSUID | Flags::NODEV | Flags::NOEXEC | Flags::RDONLY));
    });
}

#[test]
fn a_file_is_a_source_too_and_a_missing_one_is_named() {
    in_mount_ns(|dir| {
        let (file, target) = (dir.join("file"), dir.join("target"));
        fs::write(&file, "content").unwrap();
        fs::write(&target, "").unwrap();
        let tree = clone_tree(&file, &options(Propagation::Private)).unwrap();
        move_mount(
            &tree,
            "",
            CWD,
            &target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"content");
        let missing = dir.join("missing");
        for propagation in [Propagation::Private, Propagation::Shared] {
            let error = clone_tree(&missing, &options(propagation)).unwrap_err();
            assert!(
                matches!(&error, MountError::NotFound { path } if *path == missing),
                "{error}"
            );
        }
    });
}

#[test]
fn idmapped_clones_show_other_owners() {
    in_mount_ns(|dir| {
        let src = source(dir);
        fs::write(src.join("file"), "").unwrap();
        let mapping = [IdMapping {
            container_id: 0,
            host_id: 100_000,
            length: 65_536,
        }];
        let user_ns = user_namespace(&mapping, &mapping).unwrap();
        let mapped = BindOptions {
            idmap: Some(user_ns),
            ..options(Propagation::Private)
        };
        let dst = dir.join("dst");
        attach(&clone_tree(&src, &mapped).unwrap(), &dst);
        let meta = fs::metadata(dst.join("file")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (100_000, 100_000));
        assert_eq!(fs::metadata(src.join("file")).unwrap().uid(), 0);
    });
}

#[test]
fn idmap_support_is_told_by_trying() {
    in_mount_ns(|dir| {
        mount_tmpfs(&dir.join("tmpfs"));
        assert!(supports_idmap(&dir.join("tmpfs")));
        assert!(!supports_idmap(Path::new("/proc")));
        assert!(!supports_idmap(&dir.join("missing")));
        let mapping = [IdMapping {
            container_id: 0,
            host_id: 100_000,
            length: 1,
        }];
        let user_ns = user_namespace(&mapping, &mapping).unwrap();
        let mapped = BindOptions {
            idmap: Some(user_ns),
            ..BindOptions::default()
        };
        let error = clone_tree(Path::new("/proc"), &mapped).unwrap_err();
        assert!(
            matches!(error, MountError::IdmapUnsupported { .. }),
            "{error}"
        );
    });
}

#[test]
fn the_helper_of_a_user_namespace_is_reaped() {
    let holder = crate::sys::user_ns::Holder::spawn().unwrap();
    let proc = PathBuf::from(format!("/proc/{}/stat", holder.pid()));
    assert!(proc.exists());
    drop(holder);
    assert!(!proc.exists());
    let error = user_namespace(
        &[],
        &[IdMapping {
            container_id: 0,
            host_id: 0,
            length: 0,
        }],
    );
    assert!(matches!(error, Err(MountError::UserNamespace { .. })));
}

#[test]
fn tmpfs_takes_options_and_flags_and_explains_what_it_refuses() {
    in_mount_ns(|dir| {
        let flags = TmpfsFlags {
            nosuid: true,
            noexec: true,
            ..TmpfsFlags::default()
        };
        let target = dir.join("tmpfs");
        attach(
            &tmpfs(&[("size", "64k"), ("mode", "0700")], flags).unwrap(),
            &target,
        );
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o700);
        let stat = statvfs(&target).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 65_536);
        use rustix::fs::StatVfsMountFlags as Flags;
        assert!(stat.f_flag.contains(Flags::NOSUID | Flags::NOEXEC));
        assert!(!stat.f_flag.contains(Flags::NODEV));
        let error = tmpfs(&[("size", "much")], TmpfsFlags::default()).unwrap_err();
        assert!(error.to_string().contains("size=much"), "{error}");
    });
}

#[test]
fn recursive_read_only_is_there_since_linux_5_12() {
    assert!(supports_recursive_read_only());
}
