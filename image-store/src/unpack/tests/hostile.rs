//! Archives that would do harm.

use super::*;

#[test]
fn hostile_sparse_maps_are_refused() {
    let sparse = |records: &[(&str, &[u8])], body: &[u8]| {
        Archive::default()
            .pax(records)
            .raw(b"evil", b'0', |h| h.set_size(body.len() as u64))
            .bytes(body)
    };
    let limits = Limits {
        bytes: 1 << 30,
        ..Limits::default()
    };
    for (what, archive) in [
        (
            "behind the end",
            sparse(
                &[("GNU.sparse.size", b"3"), ("GNU.sparse.map", b"2,2")],
                b"ab",
            ),
        ),
        (
            "over each other",
            sparse(
                &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"2,2,1,2")],
                b"abcd",
            ),
        ),
        (
            "more than stored",
            sparse(
                &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,9")],
                b"abcd",
            ),
        ),
        ("no size", sparse(&[("GNU.sparse.map", b"0,4")], b"abcd")),
        (
            "too big",
            sparse(
                &[
                    ("GNU.sparse.size", b"99999999999"),
                    ("GNU.sparse.map", b"0,4"),
                ],
                b"abcd",
            ),
        ),
        (
            "endless map",
            sparse(
                &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")],
                &[b'1'; 1024],
            ),
        ),
        (
            "map of millions",
            sparse(
                &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")],
                b"99999999\n1\n",
            ),
        ),
    ] {
        let error = Place::new().unpack_with(archive, &limits).expect_err(what);
        assert!(
            !matches!(error, UnpackError::Io { .. }),
            "{what}: {error:?}"
        );
    }
}

#[test]
fn hostile_number_of_directories_that_are_not_listed_is_refused() {
    let limits = Limits {
        entries: 50,
        ..Limits::default()
    };
    let archive = Archive::default().file(&("d/".repeat(60) + "f"), "x");
    let error = Place::new().unpack_with(archive, &limits).unwrap_err();
    assert!(error.to_string().contains("not listed"), "{error}");
}

#[test]
fn hostile_dot_dot_is_refused() {
    for name in ["../outside/x", "a/../../outside/x", "/../outside/x", ".."] {
        Place::new().refuses(Archive::default().file(name, "x"), "..");
    }
}

#[test]
fn hostile_symlink_that_climbs_out_is_refused() {
    for target in ["../outside", "../../../../../../etc", "a/../../outside"] {
        let archive = Archive::default()
            .dir("a/", 0o755)
            .symlink("evil", target)
            .file("evil/x", "x");
        let reason = Place::new().refuses(archive, "evil/x");
        assert!(reason.contains("leaves the layer"), "{reason}");
    }
}

#[test]
fn hostile_symlink_loop_is_refused() {
    let archive = Archive::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/x", "");
    Place::new().refuses(archive, "a/x");
}

#[test]
fn hostile_hard_link_out_is_refused() {
    for target in [
        "../outside/witness",
        "/../outside/witness",
        "missing",
        "dir",
        "/etc/passwd",
    ] {
        let archive = Archive::default().dir("dir/", 0o755).hard("evil", target);
        Place::new().refuses(archive, "evil");
    }
}

#[test]
fn hostile_hard_link_through_a_symlink_is_refused() {
    let place = Place::new();
    let archive = Archive::default()
        .symlink("s", "../outside")
        .hard("evil", "s/witness");
    place.refuses(archive, "evil");
    let place = Place::new();
    let target = place.dir.path().join("outside/witness");
    // A hard link to a link is a link: harmless, as it is resolved by the container.
    let archive = Archive::default()
        .symlink("s", target.to_str().unwrap())
        .hard("h", "s");
    place.unpack(archive).unwrap();
    place.outside_is_untouched();
    assert!(fs::symlink_metadata(place.path("h")).unwrap().is_symlink());
}

#[test]
fn hostile_hard_link_to_itself_is_refused_and_keeps_the_file() {
    let place = Place::new();
    place.refuses(Archive::default().file("f", "x").hard("f", "./f"), "f");
    assert_eq!(place.read("f"), "x");
}

#[test]
fn hostile_hard_link_that_replaces_its_targets_directory_is_refused() {
    Place::new().refuses(Archive::default().file("d/f", "x").hard("d", "d/f"), "d");
}

#[test]
fn hostile_depth_of_ten_thousand_is_refused() {
    Place::new().refuses(
        Archive::default().file(&("a/".repeat(10_000) + "f"), "x"),
        "a/a/a",
    );
}

#[test]
fn hostile_depth_through_links_is_bounded_and_removable() {
    let place = Place::new();
    let mut archive = Archive::default();
    let step = "d/".repeat(120);
    let mut at = String::new();
    for i in 0..60 {
        archive = archive
            .dir(&format!("{at}{step}"), 0o755)
            .symlink(&format!("s{i}"), &format!("{at}{step}"));
        at = format!("s{i}/");
    }
    // Either outcome is fine as long as it ends and the tree can be removed.
    drop(place.unpack(archive));
    let parent = fs::File::open(place.dir.path()).unwrap();
    crate::remove::remove_tree(&parent, b"root").unwrap();
}

#[test]
fn hostile_device_flood_is_refused() {
    let place = Place::new();
    let limits = Limits {
        devices: 3,
        ..Limits::default()
    };
    let archive = (0..4).fold(Archive::default(), |a, i| {
        a.device(&format!("dev/{i}"), 1, i)
    });
    let error = place.unpack_with(archive, &limits).unwrap_err();
    assert!(
        matches!(&error, UnpackError::Hostile { entry, .. } if entry.contains("dev/3")),
        "{error}"
    );
}

#[test]
fn hostile_size_that_lies_is_refused() {
    let archive = Archive::default().raw(b"liar", b'0', |h| h.set_size(1 << 40));
    let limits = Limits {
        bytes: 1 << 30,
        ..Limits::default()
    };
    let error = Place::new().unpack_with(archive, &limits).unwrap_err();
    assert!(
        matches!(&error, UnpackError::Hostile { entry, .. } if entry.contains("liar")),
        "{error}"
    );
    let archive = Archive::default().raw(b"liar", b'0', |h| h.set_size(100_000));
    let reason = Place::new().refuses(archive, "liar");
    assert!(reason.contains("ends in the middle"), "{reason}");
    let negative = Archive::default().raw(b"liar", b'0', |h| h.as_mut_bytes()[124..136].fill(0xff));
    assert!(matches!(
        Place::new().unpack(negative),
        Err(UnpackError::Tar(_))
    ));
}

#[test]
fn hostile_total_of_bytes_is_refused() {
    let limits = Limits {
        bytes: 10,
        ..Limits::default()
    };
    let archive = Archive::default().file("a", "123456").file("b", "123456");
    let error = Place::new().unpack_with(archive, &limits).unwrap_err();
    assert!(
        matches!(&error, UnpackError::Hostile { entry, .. } if entry.contains('b')),
        "{error}"
    );
}

#[test]
fn hostile_number_of_entries_is_refused() {
    let limits = Limits {
        entries: 5,
        ..Limits::default()
    };
    let archive = (0..6).fold(Archive::default(), |a, i| a.file(&format!("f{i}"), ""));
    let error = Place::new().unpack_with(archive, &limits).unwrap_err();
    assert!(
        matches!(&error, UnpackError::Hostile { entry, .. } if entry.contains("f5")),
        "{error}"
    );
}

#[test]
fn hostile_duplicates_never_write_through_what_they_replace() {
    let place = Place::new();
    let mut archive = Archive::default();
    for _ in 0..50 {
        archive = archive
            .symlink("x", "../outside/witness")
            .file("x", "y")
            .hard("z", "x")
            .dir("x/", 0o755)
            .file("x/in", "y");
    }
    place.unpack(archive).unwrap();
    place.outside_is_untouched();
    assert_eq!(place.read("z"), "y");
    assert!(place.path("x").is_dir());
}

#[test]
fn hostile_whiteouts_are_refused() {
    for name in [".wh...", "a/.wh..", ".wh."] {
        Place::new().refuses(Archive::default().file(name, ""), name);
    }
}

#[test]
fn hostile_file_as_parent_is_refused() {
    Place::new().refuses(Archive::default().file("f", "x").file("f/y", "x"), "f/y");
}

#[test]
fn hostile_root_that_is_no_directory_is_refused() {
    Place::new().refuses(Archive::default().file("./.", "x"), ".");
}

#[test]
fn hostile_pax_path_is_checked_like_any_other() {
    let archive = Archive::default()
        .pax(&[("path", b"../outside/x")])
        .file("innocent", "x");
    Place::new().refuses(archive, "../outside/x");
    let archive = Archive::default()
        .pax(&[("linkpath", b"../outside/witness")])
        .hard("h", "f");
    Place::new().refuses(archive, "h");
}
