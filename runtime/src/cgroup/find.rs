//! Cgroups by the name of their last directory, where the rest of the path is not known.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::{Cgroup, CgroupError, CgroupPath, Hierarchies};

/// Deeper than this nobody nests cgroups; a container could, to keep a search busy.
const DEEPEST: usize = 16;

impl Hierarchies {
    /// The cgroups whose directory has this name, in any hierarchy.
    ///
    /// # Errors
    /// One cannot be looked through: there may be others.
    pub fn find(&self, name: &str) -> Result<Vec<Cgroup>, CgroupError> {
        let mut found = BTreeSet::new();
        for tree in &self.layout.trees {
            search(&tree.root, None, name, 0, &mut found).map_err(|source| CgroupError::Read {
                path: tree.root.clone(),
                source,
            })?;
        }
        Ok(found.iter().map(|path| self.open(path)).collect())
    }
}

fn search(
    root: &Path,
    below: Option<&CgroupPath>,
    name: &str,
    depth: usize,
    found: &mut BTreeSet<CgroupPath>,
) -> io::Result<()> {
    if depth > DEEPEST {
        return Ok(());
    }
    let entries =
        match std::fs::read_dir(root.join(below.map_or("", CgroupPath::below_mount_point))) {
            // Gone meanwhile, or of a container that makes it as long as it can.
            Err(error) if is_passed_over(&error) => return Ok(()),
            entries => entries?,
        };
    for entry in entries {
        let entry = match entry {
            Err(error) if is_passed_over(&error) => break,
            entry => entry?,
        };
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let Some(own) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if !is_dir {
            continue;
        }
        let path = CgroupPath::listed(below, &own);
        if own == name {
            found.insert(path);
        } else {
            search(root, Some(&path), name, depth + 1, found)?;
        }
    }
    Ok(())
}

fn is_passed_over(error: &io::Error) -> bool {
    let codes = [libc::ENOENT, libc::ENODEV, libc::ENAMETOOLONG];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}
