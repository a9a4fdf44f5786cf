//! crictl, as a person at a node uses it: every subcommand, those with a terminal in a
//! terminal. What is demanded is what users of containerd and CRI-O are used to.
//!
//! `conformance/critest/prepare crictl` builds crictl; each test has an engine of its own.

#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod crictl;
mod figures;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod life;
mod logs;
#[expect(
    clippy::expect_used,
    dead_code,
    reason = "the CRI suite's rig, of which less is used here"
)]
#[path = "../cri/rig.rs"]
mod rig;
#[expect(
    clippy::expect_used,
    reason = "a test ends at the first thing that is wrong"
)]
mod sessions;

/// A subcommand that the next crictl brings is missing here until something tests it.
#[test]
fn every_subcommand_has_a_test() {
    let sources = [
        include_str!("figures.rs"),
        include_str!("life.rs"),
        include_str!("logs.rs"),
        include_str!("sessions.rs"),
    ]
    .concat();
    // The one that needs a registry; the walk has one.
    let walk = include_str!("../../scripts/crictl-walk");
    assert!(walk.contains("pull \"$image\""));
    let help = crictl::help();
    let listed = help.lines().skip_while(|line| *line != "COMMANDS:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    let names = listed.filter_map(|line| line.split([' ', ',']).find(|word| !word.is_empty()));
    let names: Vec<&str> = names.filter(|name| *name != "help").collect();
    assert!(names.len() > 30, "{help}");
    let untested = names
        .iter()
        .filter(|name| **name != "pull" && !sources.contains(&format!("[\"{name}\"")));
    assert_eq!(untested.count(), 0, "of {names:?}");
}
