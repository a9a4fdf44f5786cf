//! Holds `fields.tsv`, which has one decision for each field of the API, against the API's
//! own table, against the engine's sources and against `FIELDS.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const API: &str = include_str!("cri-v1.tsv");
const DECISIONS: &str = include_str!("fields.tsv");
const TOLD: &str = include_str!("../FIELDS.md");

/// A message and one of its fields.
type Field = (String, String);

/// What was decided of a field.
struct Decision {
    what: &'static str,
    place: &'static str,
}

/// All decisions; which of them FIELDS.md has to tell of.
const ALL: [(&str, bool); 8] = [
    ("honoured", false),
    ("filled", false),
    ("both", false),
    ("partly", true),
    ("refused", true),
    ("passed over", true),
    ("no RPC", false),
    ("not Linux", false),
];

fn columns(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = text.lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split('\t').collect())
}

/// All fields of the API, by message.
fn api() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut messages: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for line in columns(API).filter(|line| line[0] == "msg") {
        let fields = messages.entry(line[1]).or_default();
        fields.extend((line[2] != "-").then_some(line[2]));
    }
    messages
}

/// The decisions; a field of which there are two, or that the API has not, is a failure.
fn decisions() -> BTreeMap<Field, Decision> {
    let api = api();
    let mut decided: BTreeMap<Field, Decision> = BTreeMap::new();
    let lines: Vec<_> = columns(DECISIONS).collect();
    // What is said of all fields of a message counts for those of which nothing else is.
    let (rest, named): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line[1] == "*");
    for line in named.into_iter().chain(rest) {
        let [message, fields, what, place] = line[..] else {
            panic!("not four columns: {line:?}");
        };
        assert!(ALL.iter().any(|(known, _)| *known == what), "{line:?}");
        let known = api.get(message);
        let known = known.unwrap_or_else(|| panic!("the API has no message {message}"));
        let fields: Vec<&str> = match fields {
            "*" => {
                let open = |field: &&str| !decided.contains_key(&named_field(message, field));
                known.iter().copied().filter(open).collect()
            }
            some => some.split(", ").collect(),
        };
        assert!(!fields.is_empty(), "{message} has no field left: {line:?}");
        for field in fields {
            assert!(known.contains(field), "{message} has no field {field}");
            let again = decided.insert(named_field(message, field), Decision { what, place });
            assert!(again.is_none(), "{message}.{field} is decided twice");
        }
    }
    decided
}

fn named_field(message: &str, field: &str) -> Field {
    (message.to_owned(), field.to_owned())
}

#[test]
fn every_field_has_one_decision() {
    let decided = decisions();
    let all = api();
    let all = all
        .iter()
        .flat_map(|(message, fields)| fields.iter().map(|field| named_field(message, field)));
    let open: Vec<_> = all.filter(|field| !decided.contains_key(field)).collect();
    assert!(open.is_empty(), "nobody decided of {open:#?}");
    assert_eq!(decided.len(), 478);
}

/// The name that a field has in Rust, which may be a part of no other word.
fn stands_in(text: &str, field: &str) -> bool {
    let name = match field {
        "uidMappings" => "uid_mappings".to_owned(),
        "gidMappings" => "gid_mappings".to_owned(),
        other => other.to_ascii_lowercase(),
    };
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(&name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !before.is_some_and(word) && !after.is_some_and(word)
    })
}

#[test]
fn every_field_stands_where_its_decision_says() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/src");
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for ((message, field), Decision { what, place }) in decisions() {
        if place == "-" {
            let nowhere = matches!(what, "not Linux" | "no RPC" | "refused");
            assert!(
                nowhere,
                "{message}.{field} is {what}, and nothing says where"
            );
            continue;
        }
        let text = texts.entry(place).or_insert_with(|| {
            let path = sources.join(place);
            let text = std::fs::read_to_string(&path);
            let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            // What only tests name is not there.
            let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
            text[..tests].to_owned()
        });
        assert!(
            stands_in(text, &field),
            "{message}.{field} does not stand in {place}"
        );
    }
}

/// The fields of FIELDS.md's table.
fn told() -> BTreeSet<Field> {
    let rows = TOLD.lines().filter(|line| line.starts_with("| "));
    let rows = rows.filter(|line| !line.starts_with("| message |"));
    let mut told = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 6, "four cells: {row}");
        assert!(cells[3..5].iter().all(|cell| !cell.is_empty()), "{row}");
        for message in cells[1].split(", ") {
            for field in cells[2].split(", ") {
                let new = told.insert(named_field(message, field));
                assert!(new, "FIELDS.md tells of {message}.{field} twice");
            }
        }
    }
    told
}

#[test]
fn what_is_not_honoured_is_told_and_nothing_else_is() {
    let told = told();
    let to_tell: BTreeSet<Field> = decisions()
        .into_iter()
        .filter(|(_, decision)| ALL.contains(&(decision.what, true)))
        .map(|(field, _)| field)
        .collect();
    let missing: Vec<_> = to_tell.difference(&told).collect();
    let stale: Vec<_> = told.difference(&to_tell).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "FIELDS.md lacks {missing:#?}, and tells of {stale:#?} although it is honoured"
    );
}

#[test]
fn messages_without_a_decision_of_use_are_those_of_rpcs_that_are_not_there() {
    let line = "RPCs that answer UNIMPLEMENTED: ";
    let told = TOLD.lines().find_map(|text| text.strip_prefix(line));
    let told: BTreeSet<&str> = told
        .unwrap_or_default()
        .trim_end_matches('.')
        .split(", ")
        .collect();
    let rpcs: Vec<_> = columns(API).filter(|line| line[0] == "rpc").collect();
    let name = |line: &Vec<&'static str>| line[1].rsplit('.').next().unwrap_or_default();
    let decided = decisions();
    for rpc in rpcs {
        let absent = told.contains(name(&rpc));
        for message in &rpc[2..4] {
            let of_message = |((owner, _), _): &(&Field, &Decision)| owner == message;
            for ((_, field), decision) in decided.iter().filter(of_message) {
                let said = decision.what == "no RPC";
                assert_eq!(said, absent, "{message}.{field}: {}", decision.what);
            }
        }
    }
}
