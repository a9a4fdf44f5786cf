//! Who the container's process is: names are looked up in the image's own
//! /etc/passwd and /etc/group, read through the root's descriptor so that no
//! link of the image leads outside, and without any code of the image.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Inputs, SpecError};
use crate::model::RunAs;

/// A user database larger than this is none.
const MAX_FILE: u64 = 16 * 1024 * 1024;
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The ids of a process and where its home is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// With the primary group, in ascending order.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The account a container runs as.
pub(super) fn resolve(inputs: &Inputs<'_>) -> Result<Account, SpecError> {
    let passwd = passwd(&read(inputs.rootfs, PASSWD)?);
    let groups = groups(&read(inputs.rootfs, GROUP)?);
    let image_user = inputs
        .image
        .config()
        .as_ref()
        .and_then(|config| config.user().clone());
    pick(inputs, &image_user.unwrap_or_default(), &passwd, &groups)
}

fn pick(
    inputs: &Inputs<'_>,
    image_user: &str,
    passwd: &[Passwd],
    groups: &[Group],
) -> Result<Account, SpecError> {
    let security = &inputs.config.security;
    let (user, image_group) = match &security.run_as {
        RunAs::Uid(uid) => (uid.to_string(), None),
        RunAs::Name(name) => (name.clone(), None),
        RunAs::Image => match image_user.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group)),
            None => (image_user.to_owned(), None),
        },
    };
    let entry = if user.is_empty() {
        passwd.iter().find(|entry| entry.uid == 0)
    } else {
        // A name of digits is an id unless the image really has such a name.
        let by_name = passwd.iter().find(|entry| entry.name == user);
        by_name.or_else(|| passwd.iter().find(|entry| entry.uid.to_string() == user))
    };
    let uid = match (entry, user.as_str()) {
        (Some(entry), _) => entry.uid,
        (None, "") => 0,
        (None, text) => text.parse().map_err(|_| no_such("user", text, PASSWD))?,
    };
    let gid = match (security.run_as_group, image_group) {
        (Some(gid), _) => gid,
        (None, Some(group)) if !group.is_empty() => group_id(group, groups)?,
        _ => entry.map_or(0, |entry| entry.gid),
    };
    let mut all: Vec<u32> = security.supplemental_groups.clone();
    all.push(gid);
    if let (false, Some(entry)) = (security.strict_groups, entry) {
        let member = |group: &&Group| group.members.contains(&entry.name);
        all.extend(groups.iter().filter(member).map(|group| group.gid));
    }
    all.sort_unstable();
    all.dedup();
    checked(uid, &all)?;
    let home = entry
        .map(|entry| entry.home.clone())
        .filter(|home| !home.is_empty());
    Ok(Account {
        uid,
        gid,
        groups: all,
        home: home.unwrap_or_else(|| "/".to_owned()),
    })
}

/// Refuses the id that the kernel takes for "leave it as it is": the process
/// would stay root.
fn checked(uid: u32, groups: &[u32]) -> Result<(), SpecError> {
    let groups = groups.iter().map(|gid| ("group", *gid));
    match groups
        .chain([("user", uid)])
        .find(|(_, id)| *id == u32::MAX)
    {
        Some((what, id)) => Err(SpecError::NoId { what, id }),
        None => Ok(()),
    }
}

fn group_id(group: &str, groups: &[Group]) -> Result<u32, SpecError> {
    if let Some(known) = groups.iter().find(|known| known.name == group) {
        return Ok(known.gid);
    }
    group.parse().map_err(|_| no_such("group", group, GROUP))
}

fn no_such(what: &'static str, name: &str, file: &'static str) -> SpecError {
    SpecError::NoSuchName {
        what,
        name: name.to_owned(),
        file,
    }
}

fn passwd(text: &str) -> Vec<Passwd> {
    let parse = |line: &str| {
        let mut parts = line.split(':');
        let name = parts.next()?.to_owned();
        let uid = parts.nth(1)?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let home = parts.nth(1).unwrap_or_default().to_owned();
        Some(Passwd {
            name,
            uid,
            gid,
            home,
        })
    };
    text.lines().filter_map(parse).collect()
}

fn groups(text: &str) -> Vec<Group> {
    let parse = |line: &str| {
        let mut parts = line.split(':');
        let name = parts.next()?.to_owned();
        let gid = parts.nth(1)?.parse().ok()?;
        let members = parts
            .next()
            .unwrap_or_default()
            .split(',')
            .map(str::to_owned)
            .collect();
        Some(Group { name, gid, members })
    };
    text.lines().filter_map(parse).collect()
}

/// A file of the image; empty where the image has none.
fn read(rootfs: &OwnedFd, file: &'static str) -> Result<String, SpecError> {
    let named = |source: io::Error| SpecError::UserDatabase { file, source };
    let opened = rustix::fs::openat2(
        rootfs.as_fd(),
        file,
        // A FIFO in the place of the file must not hold the engine up.
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let fd = match opened {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(named(error.into())),
    };
    let kind = rustix::fs::fstat(&fd).map_err(|error| named(error.into()))?;
    if !rustix::fs::FileType::from_raw_mode(kind.st_mode).is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd)
        .take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(named)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_that_means_unchanged_is_nobodys() {
        let uid = |text: &str| passwd(&format!("evil:x:{text}:0::/:/bin/sh\n"))[0].uid;
        assert_eq!(uid("4294967295"), u32::MAX);
        assert!(matches!(
            checked(u32::MAX, &[0]),
            Err(SpecError::NoId { what: "user", .. })
        ));
        assert!(matches!(
            checked(0, &[5, u32::MAX]),
            Err(SpecError::NoId { what: "group", .. })
        ));
        assert!(checked(65534, &[65534]).is_ok());
    }

    #[test]
    fn broken_lines_of_the_database_are_passed_over() {
        let users = passwd("root:x:0:0::/root:/bin/sh\n\nbroken\nx:y:z\nu:x:7:8:g:/home/u:\n");
        assert_eq!(users.len(), 2);
        assert_eq!(
            (users[1].uid, users[1].gid, users[1].home.as_str()),
            (7, 8, "/home/u")
        );
        let all = groups("wheel:x:10:root,u\nempty:x:11:\nbad\n");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].members, ["root", "u"]);
    }
}
