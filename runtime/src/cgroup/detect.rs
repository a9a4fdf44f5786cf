//! Finds the mounted hierarchies.
//!
//! Reads the mount table once and never looks again; owns nothing that a
//! crash could leave.

use std::path::PathBuf;

use super::file;
use super::{CgroupError, Selection, Version};
use crate::procfs::{mount_table, unescape};

/// The mount table that decides.
const MOUNT_TABLE: &str = "/proc/thread-self/mountinfo";

/// Every hierarchy that is mounted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) version: Version,
    pub(super) trees: Vec<Tree>,
    /// Where those are mounted that are somebody else's by the caller's choice.
    pub(super) left_out: Vec<PathBuf>,
    /// Whether limits whose controller is in no tree are left out, too.
    lenient: bool,
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    /// Where it is mounted.
    pub(super) root: PathBuf,
    kind: Kind,
    /// Controllers that live here; none in a named hierarchy.
    controllers: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    V1,
    V2,
}

impl Tree {
    pub(super) fn is_v2(&self) -> bool {
        self.kind == Kind::V2
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

impl Layout {
    pub(super) fn detect(selection: Selection) -> Result<Self, CgroupError> {
        let table = mount_table(MOUNT_TABLE).map_err(|source| CgroupError::MountTable {
            path: MOUNT_TABLE.into(),
            source,
        })?;
        let mut trees = parse(&table);
        for tree in trees.iter_mut().filter(|tree| tree.is_v2()) {
            let list = file::read(&tree.root.join("cgroup.controllers"))?;
            tree.controllers = list.split_whitespace().map(str::to_owned).collect();
        }
        match selection {
            Selection::All => Self::new(trees),
            Selection::Unified => Self::unified(trees),
        }
    }

    /// Only the v2 tree of all that are there.
    fn unified(trees: Vec<Tree>) -> Result<Self, CgroupError> {
        let (v2, others): (Vec<_>, Vec<_>) = trees.into_iter().partition(Tree::is_v2);
        if v2.is_empty() {
            return Err(CgroupError::NoUnified);
        }
        Ok(Self {
            left_out: others.into_iter().map(|tree| tree.root).collect(),
            lenient: true,
            ..Self::new(v2)?
        })
    }

    fn new(trees: Vec<Tree>) -> Result<Self, CgroupError> {
        let v2 = trees.iter().any(Tree::is_v2);
        // A named hierarchy beside a full v2 tree carries no limits: still v2.
        let v1 = trees
            .iter()
            .any(|tree| !tree.is_v2() && !tree.controllers.is_empty());
        let version = match (v1, v2) {
            (true, true) => Version::Hybrid,
            (true, false) => Version::V1,
            (false, true) => Version::V2,
            (false, false) => return Err(CgroupError::NotMounted),
        };
        Ok(Self {
            version,
            trees,
            left_out: Vec::new(),
            lenient: false,
        })
    }

    /// Whether limits of this controller are left out without an error.
    pub(super) fn leaves_out(&self, controller: &str) -> bool {
        self.lenient && self.home(controller).is_none()
    }

    /// Where all hierarchies but the v2 tree are mounted, used or not.
    pub(super) fn beside_v2(&self) -> impl Iterator<Item = &PathBuf> {
        let v1 = self.trees.iter().filter(|tree| !tree.is_v2());
        v1.map(|tree| &tree.root).chain(&self.left_out)
    }

    /// The hierarchy that this controller lives in.
    pub(super) fn home(&self, controller: &str) -> Option<&Tree> {
        self.trees.iter().find(|tree| tree.has(controller))
    }

    /// The v2 tree, be it the only one or that of a hybrid.
    pub(super) fn v2(&self) -> Option<&Tree> {
        self.trees.iter().find(|tree| tree.is_v2())
    }
}

/// One usable line of the mount table.
struct Mount {
    /// Directory of the hierarchy that is visible at the mount point.
    whole: bool,
    tree: Tree,
    /// Names a named hierarchy, so that two of them stay apart.
    name: String,
}

fn parse(table: &str) -> Vec<Tree> {
    let mut found: Vec<Mount> = Vec::new();
    for mount in table.lines().filter_map(parse_line) {
        let same = found.iter_mut().find(|other| {
            (other.tree.kind, &other.tree.controllers, &other.name)
                == (mount.tree.kind, &mount.tree.controllers, &mount.name)
        });
        match same {
            None => found.push(mount),
            Some(other) if rank(&mount) > rank(other) => *other = mount,
            Some(_) => {}
        }
    }
    found.into_iter().map(|mount| mount.tree).collect()
}

/// The same hierarchy may be mounted often (bind mounts into chroots); the
/// whole of it at the customary place is the one that others use.
fn rank(mount: &Mount) -> (bool, bool) {
    (mount.whole, mount.tree.root.starts_with("/sys/fs/cgroup"))
}

fn parse_line(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let kind = match right.next()? {
        "cgroup" => Kind::V1,
        "cgroup2" => Kind::V2,
        _ => return None,
    };
    let options = right.nth(1)?;
    let (mut controllers, mut name) = (Vec::new(), String::new());
    if kind == Kind::V1 {
        for option in options.split(',') {
            match option.strip_prefix("name=") {
                Some(given) => given.clone_into(&mut name),
                None if is_option(option) => {}
                None => controllers.push(option.to_owned()),
            }
        }
    }
    let tree = Tree {
        root: unescape(point),
        kind,
        controllers,
    };
    Some(Mount {
        whole: root == "/",
        tree,
        name,
    })
}

/// Mount options of a v1 hierarchy that are no controllers.
fn is_option(option: &str) -> bool {
    matches!(
        option,
        "rw" | "ro" | "xattr" | "none" | "all" | "noprefix" | "clone_children"
    ) || matches!(
        option,
        "cpuset_v2_mode" | "favordynmods" | "nofavordynmods" | "seclabel"
    ) || option.contains('=')
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:32 /docker/x /chroot/memory rw - cgroup cgroup rw,memory
";

    fn layout(table: &str) -> Layout {
        Layout::new(parse(table)).unwrap()
    }

    #[test]
    fn hybrid_lists_every_hierarchy_once() {
        let found = layout(HYBRID);
        assert_eq!(found.version, Version::Hybrid);
        let roots: Vec<_> = found
            .trees
            .iter()
            .map(|t| t.root.to_str().unwrap())
            .collect();
        let base = "/sys/fs/cgroup";
        let want = ["cpu,cpuacct", "memory", "systemd", "unified"].map(|n| format!("{base}/{n}"));
        assert_eq!(roots, want);
        assert_eq!(found.home("cpuacct").unwrap().root, Path::new(&want[0]));
        assert!(found.home("xattr").is_none());
        assert_eq!(found.v2().unwrap().root, Path::new(&want[3]));
    }

    #[test]
    fn a_lone_v2_tree_is_v2_even_beside_a_named_hierarchy() {
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(layout(v2).version, Version::V2);
        let named = format!("{v2}31 23 0:27 / /mnt/a\\040b rw - cgroup none rw,name=mine\n");
        let found = layout(&named);
        assert_eq!(found.version, Version::V2);
        assert_eq!(found.trees[1].root, Path::new("/mnt/a b"));
    }

    #[test]
    fn v1_without_a_v2_tree_is_v1() {
        let found = layout("35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        assert_eq!(found.version, Version::V1);
        assert!(found.v2().is_none());
    }

    #[test]
    fn the_v2_tree_of_a_hybrid_alone_is_v2() {
        let mut trees = parse(HYBRID);
        trees[3].controllers.push("hugetlb".to_owned());
        let found = Layout::unified(trees).unwrap();
        assert_eq!(found.version, Version::V2);
        assert_eq!(found.trees.len(), 1);
        assert_eq!(found.trees[0].root, Path::new("/sys/fs/cgroup/unified"));
        assert!(found.leaves_out("memory") && !found.leaves_out("hugetlb"));
        assert_eq!(found.beside_v2().count(), 3);
        assert!(!layout(HYBRID).leaves_out("nonsense"));
    }

    #[test]
    fn the_v2_tree_alone_needs_one() {
        let v1 = parse("35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        assert!(matches!(Layout::unified(v1), Err(CgroupError::NoUnified)));
    }

    #[test]
    fn nothing_mounted_is_said_so() {
        let none = Layout::new(parse("22 27 0:21 / /proc rw - proc proc rw\n"));
        assert!(matches!(none, Err(CgroupError::NotMounted)));
    }

    proptest::proptest! {
        #[test]
        fn no_mount_table_breaks_the_parser(table in "([ -~]{0,60} - cgroup2? [ -~]{0,40}\n){0,4}|\\PC{0,200}") {
            let trees = parse(&table);
            proptest::prop_assert!(trees.len() <= table.lines().count());
        }
    }
}
