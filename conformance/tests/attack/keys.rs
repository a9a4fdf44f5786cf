//! Keys of other containers and of the node.

use proto::v1;

use crate::stage::{ATTACKER, armed, unconfined, with_every_launcher};

/// The number that follows a word.
fn number(text: &str, word: &str) -> String {
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix(word));
    found
        .unwrap_or_else(|| panic!("no {word} in {text:?}"))
        .trim()
        .to_owned()
}

#[test]
fn one_containers_keys_are_nobody_elses() {
    with_every_launcher(&armed(), async |rig, launcher| {
        let mut ids = Vec::new();
        for name in ["owner", "thief"] {
            let made = rig.try_container(launcher, name, unconfined);
            ids.push(made.await.expect("a container"));
        }
        let (owner, thief) = (&ids[0], &ids[1]);
        let keys = |words: &str| format!("{ATTACKER} keys {words}");
        let added = rig.prints(owner, &keys("add mine s3cret")).await;
        let (key, ring) = (number(&added, "key "), number(&added, "ring "));
        // Its own container finds it again, whoever asks there.
        let found = rig.prints(owner, &keys("search mine")).await;
        assert_eq!(found, "secret s3cret\n", "{launcher}");
        // Where processes are shared, the id stands in /proc/PID/cgroup.
        let by_name = format!("join _ses.{owner} mine");
        for attempt in [
            format!("read {key} {ring}"),
            "search mine".to_owned(),
            by_name,
        ] {
            let stolen = rig.prints(thief, &keys(&attempt)).await;
            assert!(
                !stolen.contains("s3cret"),
                "{launcher}, {attempt}: {stolen}"
            );
        }
        let other = number(&rig.prints(thief, &keys("session")).await, "ring ");
        assert_ne!(ring, other, "{launcher}");
    });
}

#[test]
fn the_nodes_session_keyring_is_not_a_containers() {
    let nodes = node_ring();
    with_every_launcher(&armed(), async |rig, launcher| {
        let first = format!("{ATTACKER} keys session; echo end; sleep 1000");
        let first = ["/bin/sh", "-c", &first].map(str::to_owned);
        let made = rig.try_container(launcher, "ring", |config: &mut v1::ContainerConfig| {
            unconfined(config);
            config.command = first.into();
        });
        let id = made.await.expect("a container");
        let log = rig.log_with(&format!("ring-{launcher}"), "end").await;
        let log = log.replace(" stdout F ", "\n");
        let of_first = number(&log, "ring ");
        assert_ne!(of_first, nodes, "{launcher}");
        let run = rig.prints(&id, &format!("{ATTACKER} keys session")).await;
        assert_eq!(number(&run, "ring "), of_first, "{launcher}");
    });
}

/// The session keyring of this process, which the engine inherits.
fn node_ring() -> String {
    let table = std::fs::read_to_string("/proc/keys").unwrap_or_default();
    let session = table
        .lines()
        .find(|line| line.contains("keyring") && line.contains("_ses"));
    let number = session.and_then(|line| line.split(' ').next());
    let number = number.and_then(|hex| i32::from_str_radix(hex, 16).ok());
    number.unwrap_or_default().to_string()
}
