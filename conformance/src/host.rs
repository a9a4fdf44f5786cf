//! What a node looks like: mounts, network namespaces, cgroups, links and
//! processes. Compared before and after, a difference is a leak.

use std::collections::BTreeSet;
use std::path::Path;

/// A picture of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    things: BTreeSet<String>,
}

impl Picture {
    /// Takes a picture of what a thread in the first namespaces sees.
    #[must_use]
    pub fn take() -> Self {
        let mut things = BTreeSet::new();
        mounts(&mut things);
        names("netns", Path::new("/run/netns"), &mut things);
        names("link", Path::new("/sys/class/net"), &mut things);
        cgroups(Path::new("/sys/fs/cgroup"), 3, &mut things);
        processes(&mut things);
        Self { things }
    }

    /// What is there now and was not before.
    #[must_use]
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

fn mounts(things: &mut BTreeSet<String>) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        things.insert(format!("mount {point}"));
    }
}

fn names(kind: &str, dir: &Path, things: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        things.insert(format!("{kind} {}", entry.file_name().to_string_lossy()));
    }
}

fn cgroups(dir: &Path, depth: u32, things: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir && depth > 0 {
            things.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), depth - 1, things);
        }
    }
}

/// Only those that Slipway may have started: others come and go.
fn processes(things: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let first = line.split(' ').next().unwrap_or_default();
        let name = first.rsplit('/').next().unwrap_or_default();
        if name.starts_with("slipway-") && !["slipway-demo", "slipway-bench"].contains(&name) {
            things.insert(format!(
                "process {} {line}",
                entry.file_name().to_string_lossy()
            ));
        }
    }
}
