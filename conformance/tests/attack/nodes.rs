//! Inodes and descriptors of the node in a container's hands.

use std::os::unix::fs::MetadataExt;

use conformance::image::Extras;

use crate::stage::{LAUNCHERS, unconfined, with_every_launcher};

/// What a process has open, but for the listing itself.
const OPEN: &str = "for f in /proc/self/fd/*; do readlink $f; done | grep -v '^/proc'";

#[test]
fn nobody_holds_the_nodes_null_device() {
    let null = std::fs::metadata("/dev/null").expect("the node's");
    let nodes = format!(" 1:3 {}:{}", null.dev(), null.ino());
    let is_nodes = |line: &str| format!(" {line}").ends_with(&nodes);
    with_every_launcher(&Extras::default(), async |rig, launcher| {
        // Input, and what hides files; as the first process and as one that is run.
        let script = "for f in /proc/self/fd/0 /proc/timer_list /proc/kcore /dev/null; do \
                        stat -L -c '%t:%T %d:%i' $f; done";
        let first = ["/bin/sh", "-c", &format!("{script}; echo end; sleep 1000")];
        let first = first.map(str::to_owned);
        let made = rig.try_container(launcher, "null", |config| config.command = first.into());
        let id = made.await.expect("a container");
        let log = rig.log_with(&format!("null-{launcher}"), "end").await;
        let run = rig.prints(&id, script).await;
        for (who, text) in [("first", &log), ("run", &run)] {
            assert!(text.contains("1:3"), "{launcher}, {who}: {text}");
            assert!(
                !text.lines().any(is_nodes),
                "{launcher}, {who} has the node's: {text}"
            );
        }
        if launcher == LAUNCHERS[0] {
            let prints = rig.prints(&id, "chmod 640 /proc/timer_list").await;
            assert!(prints.contains("Read-only file system"), "a mask: {prints}");
        }
    });
    let after = std::fs::metadata("/dev/null").expect("the node's");
    assert_eq!(after.mode(), null.mode());
}

#[test]
fn only_its_streams_are_open_in_a_process() {
    with_every_launcher(&Extras::default(), async |rig, launcher| {
        let first = ["/bin/sh", "-c", &format!("{OPEN}; echo end; sleep 1000")];
        let first = first.map(str::to_owned);
        let made = rig.try_container(launcher, "open", |config| {
            config.command = first.into();
            unconfined(config);
        });
        let id = made.await.expect("a container");
        let log = rig.log_with(&format!("open-{launcher}"), "end").await;
        let run = rig.prints(&id, OPEN).await;
        for (who, text) in [("first", &log), ("run", &run)] {
            let open = text.lines().filter(|line| !line.ends_with("end"));
            let open: Vec<_> = open.collect();
            // grep has what the loop prints.
            let streams = |line: &&str| line.contains("pipe:") || line.ends_with("null");
            assert!(open.iter().all(streams), "{launcher}, {who}: {open:?}");
            assert_eq!(open.len(), 3, "{launcher}, {who}: {open:?}");
        }
    });
}
