//! Tests of the bookkeeping.

use super::*;
use crate::digest::Digest;

fn layer(n: u8) -> DiffId {
    DiffId(Digest::of(&[n]))
}

fn image(n: u8, layers: &[u8], names: &[&str]) -> NewImage {
    NewImage {
        id: ImageId(Digest::of(&[n, n])),
        record: ImageRecord {
            layers: layers.iter().map(|l| layer(*l)).collect(),
            size: 1,
            ..ImageRecord::default()
        },
        config: Texts::default(),
        names: names
            .iter()
            .map(|name| ((*name).to_owned(), None))
            .collect(),
    }
}

fn commit(state: &mut State, new: &NewImage) -> Change {
    let (change, same) = (state.commit_change(new), state.commit_change(new));
    state.committed(new.clone(), same);
    change
}

fn pull(state: &mut State, new: &NewImage) {
    for id in &new.record.layers {
        if state.hold(id).is_none() {
            state.installed(
                *id,
                Occupied {
                    root: true,
                    bytes: 10,
                    inodes: 1,
                    opaque: false,
                },
            );
        }
    }
    commit(state, new);
    for id in &new.record.layers {
        assert!(!state.unhold(id), "a committed layer has to stay");
    }
}

fn remove(state: &mut State, new: &NewImage) -> Vec<DiffId> {
    let removal = state.begin_removal(&new.id).unwrap();
    let mut gone = state.removed(&removal);
    gone.sort_unstable();
    gone
}

#[test]
fn shared_layers_go_with_the_last_image() {
    let mut state = State::default();
    let (a, b) = (
        image(1, &[1, 2, 2], &["r/a:1"]),
        image(2, &[1, 3], &["r/b:1"]),
    );
    pull(&mut state, &a);
    pull(&mut state, &b);
    assert_eq!(state.occupied(), (30, 3 + 2 * configs::INODES));
    assert_eq!(remove(&mut state, &a), vec![layer(2)]);
    let mut both = vec![layer(1), layer(3)];
    both.sort_unstable();
    assert_eq!(remove(&mut state, &b), both);
    assert_eq!(state.occupied(), (0, 0));
}

#[test]
fn a_layer_held_by_a_pull_outlives_its_last_image() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1"]);
    pull(&mut state, &a);
    assert!(state.hold(&layer(1)).is_some());
    assert_eq!(remove(&mut state, &a), vec![]);
    assert!(
        !state.is_durable(&[layer(1)]),
        "the next commit has to write its record"
    );
    assert!(state.unhold(&layer(1)));
    assert!(!state.has_layer(&layer(1)));
}

#[test]
fn retagging_moves_the_tag_and_keeps_the_old_image() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1", "r/a@sha256:x"]);
    let b = image(2, &[2], &["r/a:1", "r/a@sha256:y"]);
    pull(&mut state, &a);
    pull(&mut state, &b);
    let catalog = state.catalog();
    assert!(catalog.get(&a.id).unwrap().tags.is_empty());
    assert_eq!(catalog.get(&a.id).unwrap().digests, ["r/a@sha256:x"]);
    assert_eq!(catalog.get(&b.id).unwrap().tags, ["r/a:1"]);
}

/// Each pull of a tag may bring another manifest with the same configuration.
#[test]
fn an_image_keeps_its_latest_digests_and_tags_know_theirs() {
    let mut state = State::default();
    let manifest = |n: u8| Digest::of(&[n, 0]);
    let name = |n| format!("r/a@{}", manifest(n));
    for n in 0..20 {
        let mut new = image(1, &[1], &[]);
        new.names = vec![
            (name(n), Some(manifest(n))),
            ("r/a:1".into(), Some(manifest(n))),
        ];
        pull(&mut state, &new);
        let catalog = state.catalog();
        let found = catalog.get(&new.id).unwrap();
        assert_eq!(found.resolved.get("r/a:1"), Some(&name(n)));
        assert_eq!(found.digests.last(), Some(&name(n)));
    }
    let id = image(1, &[], &[]).id;
    let digests = state.catalog().get(&id).unwrap().digests.clone();
    assert_eq!(digests, (12..20).map(name).collect::<Vec<_>>());
    assert_eq!(state.names.len(), MAX_DIGESTS + 1);
}

#[test]
fn an_image_that_is_there_is_not_written_again() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1"]);
    state.installed(layer(1), Occupied::default());
    assert_eq!(commit(&mut state, &a).put_images.len(), 1);
    assert_eq!(commit(&mut state, &a).put_images.len(), 0);
    state.lease(&a.id, "c");
    remove(&mut state, &a);
    assert_eq!(commit(&mut state, &a).put_images.len(), 1, "hidden");
}

#[test]
fn whoever_has_a_lease_gets_a_snapshot_of_an_image_on_its_way_out() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1"]);
    pull(&mut state, &a);
    assert!(state.lease(&a.id, "c1"));
    let removal = state.begin_removal(&a.id).unwrap();
    assert!(removal.hide);
    assert!(!state.add_snapshot("c2", &a.id));
    assert!(state.add_snapshot("c1", &a.id));
}

#[test]
fn an_image_in_use_hides_and_goes_with_its_last_user() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1"]);
    pull(&mut state, &a);
    assert!(state.lease(&a.id, "c1"));
    assert!(state.add_snapshot("c1", &a.id));
    assert_eq!(remove(&mut state, &a), vec![]);
    assert!(state.catalog().list().is_empty());
    assert!(state.begin_removal(&a.id).is_none(), "hidden already");
    assert!(state.view(&a.id).is_some());
    state.release("c1");
    assert!(state.abandoned().is_empty());
    state.drop_snapshot("c1");
    assert_eq!(state.abandoned(), vec![a.id]);
    assert_eq!(remove(&mut state, &a), vec![layer(1)]);
}

/// Not at the start alone: images are collected whenever a user goes.
#[test]
fn no_image_is_abandoned_while_the_image_of_a_snapshot_is_not_known() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1"]);
    pull(&mut state, &a);
    state.lease(&a.id, "c1");
    remove(&mut state, &a);
    state.be_unsure();
    state.release("c1");
    assert!(state.abandoned().is_empty());
}

#[test]
fn a_user_that_goes_while_the_image_is_hidden_leaves_it_abandoned() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1"]);
    pull(&mut state, &a);
    state.lease(&a.id, "pod");
    let removal = state.begin_removal(&a.id).unwrap();
    assert!(removal.hide);
    state.release("pod");
    assert!(state.abandoned().is_empty());
    state.removed(&removal);
    assert_eq!(state.abandoned(), vec![a.id]);
}

#[test]
fn pulling_a_hidden_image_shows_it_again() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1"]);
    pull(&mut state, &a);
    state.add_snapshot("c1", &a.id);
    remove(&mut state, &a);
    pull(&mut state, &a);
    state.drop_snapshot("c1");
    assert!(state.abandoned().is_empty());
    assert_eq!(state.catalog().list().len(), 1);
}

#[test]
fn nobody_can_lease_an_image_on_its_way_out() {
    let mut state = State::default();
    let a = image(1, &[1], &["r/a:1"]);
    pull(&mut state, &a);
    let removal = state.begin_removal(&a.id).unwrap();
    assert!(!state.lease(&a.id, "c1") && !state.add_snapshot("c1", &a.id));
    state.removal_failed(&removal);
    assert!(state.lease(&a.id, "c1"));
}

#[test]
fn an_opaque_root_hides_the_layers_below() {
    let mut state = State::default();
    state.installed(layer(1), Occupied::default());
    state.installed(
        layer(2),
        Occupied {
            opaque: true,
            ..Occupied::default()
        },
    );
    state.installed(layer(3), Occupied::default());
    let a = image(1, &[1, 2, 3], &[]);
    commit(&mut state, &a);
    assert_eq!(state.view(&a.id).unwrap().layers, vec![layer(3), layer(2)]);
}

#[test]
fn a_layer_listed_twice_is_stacked_once_at_its_topmost_place() {
    let mut state = State::default();
    for n in 1..4 {
        state.installed(layer(n), Occupied::default());
    }
    let a = image(1, &[1, 2, 1, 3, 2], &[]);
    commit(&mut state, &a);
    assert_eq!(
        state.view(&a.id).unwrap().layers,
        vec![layer(2), layer(3), layer(1)]
    );
}

#[test]
fn images_that_miss_a_layer_are_reported_after_loading() {
    let contents = Contents {
        images: vec![(image(1, &[1], &[]).id, image(1, &[1], &[]).record)],
        names: vec![(
            "r/a:1".into(),
            Named {
                image: image(1, &[], &[]).id,
                manifest: None,
                number: 1,
            },
        )],
        layers: vec![(layer(1), Occupied::default())],
    };
    let (state, broken) = State::load(contents, &Present::default());
    assert_eq!(broken, vec![image(1, &[], &[]).id]);
    assert!(state.catalog().list().is_empty());
}

#[test]
fn an_image_that_misses_its_configuration_keeps_what_its_containers_use() {
    let id = image(1, &[], &[]).id;
    let contents = Contents {
        images: vec![(id, image(1, &[1], &[]).record)],
        layers: vec![(layer(1), Occupied::default())],
        ..Contents::default()
    };
    let present = Present {
        layers: HashSet::from([layer(1)]),
        ..Present::default()
    };
    let (mut state, broken) = State::load(contents, &present);
    assert!(broken.is_empty() && state.catalog().list().is_empty());
    assert!(state.add_snapshot("c1", &id));
    assert!(state.abandoned().is_empty() && state.take_unused().is_empty());
    pull(&mut state, &image(1, &[1], &["r/a:1"]));
    assert_eq!(state.catalog().list().len(), 1);
}

#[test]
fn what_a_hidden_image_occupies_is_the_same_before_and_after_a_start() {
    let mut state = State::default();
    let mut a = image(1, &[1], &["r/a:1"]);
    a.record.config_bytes = 4096;
    pull(&mut state, &a);
    state.add_snapshot("c1", &a.id);
    remove(&mut state, &a);
    let change = commit(&mut state, &a);
    let written = change.put_images.first().unwrap().1.config_bytes;
    assert_eq!(written, 4096);
    assert_eq!(state.occupied().0, 10 + 4096);
}
