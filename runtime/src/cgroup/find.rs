//! Cgroups by the name of their last directory, where the rest of the path is not known.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Cgroup, Hierarchies};

/// Deeper than this nobody nests cgroups; a container could, to keep a search busy.
const DEEPEST: usize = 16;

impl Hierarchies {
    /// The cgroups whose directory has this name, in any hierarchy.
    pub fn find(&self, name: &str) -> Vec<Cgroup> {
        let mut found = BTreeSet::new();
        for tree in &self.layout.trees {
            search(&tree.root, "", name, 0, &mut found);
        }
        found.iter().map(|path| self.open(path)).collect()
    }
}

fn search(root: &Path, below: &str, name: &str, depth: usize, found: &mut BTreeSet<String>) {
    if depth > DEEPEST {
        return;
    }
    let dir = root.join(below.trim_start_matches('/'));
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let Some(own) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if !is_dir {
            continue;
        }
        let path = format!("{below}/{own}");
        if own == name {
            found.insert(path);
        } else {
            search(root, &path, name, depth + 1, found);
        }
    }
}
