//! Who the container's process is: names are looked up in the /etc/passwd and
//! /etc/group that the process will see, without any code of the image.
//!
//! A number is always an id and never a name, whatever a user database says: the
//! kubelet has checked `runAsNonRoot` on the number alone.

use super::seen::{ReadError, Seen};
use super::{Inputs, SpecError, process, stuck};
use crate::convert::MAX_ID;
use crate::model::{IdRange, RunAs};

/// The most that is read of a user database: tens of thousands of lines.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Groups that a user has by the database: they are kept, and shown, for as long as the
/// container is there. The kernel would take 65536 of a process.
const MAX_GROUPS: usize = 1024;
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

impl Account {
    /// Refuses ids that a user namespace has not: the kernel takes none of them there.
    pub(super) fn is_within(&self, user_ids: Option<IdRange>) -> Result<(), SpecError> {
        let Some(IdRange { length, .. }) = user_ids else {
            return Ok(());
        };
        let groups = self.groups.iter().chain([&self.gid]);
        let groups = groups.map(|gid| ("group", *gid));
        let outside = |(_, id): &(&str, u32)| *id >= length;
        match [("user", self.uid)].into_iter().chain(groups).find(outside) {
            None => Ok(()),
            Some((what, id)) => Err(SpecError::OutsideUserNamespace { what, id, length }),
        }
    }
}

/// A line of /etc/passwd.
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A line of /etc/group.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Group<'_> {
    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member == user)
    }
}

/// The two user databases as text, of which only what is asked for is looked at: an
/// image may fill them with whatever it likes.
#[derive(Default)]
struct Databases {
    passwd: String,
    groups: String,
}

impl Databases {
    fn users(&self) -> impl Iterator<Item = Passwd<'_>> {
        self.passwd.lines().filter_map(passwd)
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.groups.lines().filter_map(group)
    }
}

/// A user or a group as a request or an image names it.
#[derive(Debug, PartialEq, Eq)]
enum Named<'a> {
    Id(u32),
    Name(&'a str),
}

/// The account a container runs as. Of the user databases those are read on which it
/// depends.
pub(super) fn resolve(inputs: &Inputs<'_>, seen: &Seen<'_>) -> Result<Account, SpecError> {
    let image_user = inputs.image.user().clone().unwrap_or_default();
    let security = &inputs.config.security;
    let asked = Asked {
        user: &security.run_as,
        group: security.run_as_group,
        supplemental: &security.supplemental_groups,
        strict: security.strict_groups,
    };
    let wanted = wanted(&asked, &image_user, process::says_home(inputs))?;
    let read = |wanted: bool, file| match wanted {
        true => read(seen, file),
        false => Ok(String::new()),
    };
    let databases = Databases {
        passwd: read(wanted.passwd, PASSWD)?,
        groups: read(wanted.groups, GROUP)?,
    };
    pick(&asked, &image_user, &databases)
}

/// Which user databases an account depends on.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    passwd: bool,
    groups: bool,
}

fn wanted(asked: &Asked<'_>, image: &str, says_home: bool) -> Result<Wanted, SpecError> {
    let (of_image, group_of_image) = image.split_once(':').unwrap_or((image, ""));
    let is_of_image = *asked.user == RunAs::Image && !group_of_image.is_empty();
    let (gid_of_user, group_name) = match asked.group {
        Some(_) => (false, false),
        None if is_of_image => {
            let group = named("group", group_of_image)?;
            (false, matches!(group, Named::Name(_)))
        }
        None => (true, false),
    };
    let user_name = matches!(user(asked, of_image)?, Named::Name(_));
    Ok(Wanted {
        passwd: user_name || gid_of_user || !asked.strict || !says_home,
        groups: group_name || !asked.strict,
    })
}

/// What a request says of the ids.
struct Asked<'a> {
    user: &'a RunAs,
    group: Option<u32>,
    supplemental: &'a [u32],
    /// None of the groups that the database has for the user.
    strict: bool,
}

fn pick(asked: &Asked<'_>, image: &str, databases: &Databases) -> Result<Account, SpecError> {
    let (of_image, group_of_image) = image.split_once(':').unwrap_or((image, ""));
    let user = user(asked, of_image)?;
    let entry = match user {
        Named::Id(uid) => databases.users().find(|entry| entry.uid == uid),
        Named::Name(name) => databases.users().find(|entry| entry.name == name),
    };
    let uid = match (user, &entry) {
        (Named::Id(uid), _) => uid,
        (Named::Name(_), Some(entry)) => entry.uid,
        (Named::Name(name), None) => return Err(no_such("user", name, PASSWD)),
    };
    let gid = match asked.group {
        Some(gid) => gid,
        None if *asked.user == RunAs::Image && !group_of_image.is_empty() => {
            group_id(group_of_image, databases)?
        }
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut all = asked.supplemental.to_vec();
    all.push(gid);
    if let (false, Some(entry)) = (asked.strict, &entry) {
        let of_user = databases.groups().filter(|group| group.has(entry.name));
        let of_user: Vec<u32> = of_user
            .map(|group| group.gid)
            .take(MAX_GROUPS + 1)
            .collect();
        if of_user.len() > MAX_GROUPS {
            return Err(SpecError::TooManyGroups {
                user: entry.name.to_owned(),
                most: MAX_GROUPS,
            });
        }
        all.extend(of_user);
    }
    all.sort_unstable();
    all.dedup();
    checked(uid, &all)?;
    let home = entry.map(|entry| entry.home);
    Ok(Account {
        uid,
        gid,
        groups: all,
        home: home
            .filter(|home| !home.is_empty())
            .unwrap_or("/")
            .to_owned(),
    })
}

/// Whose the process is to be.
fn user<'a>(asked: &Asked<'a>, of_image: &'a str) -> Result<Named<'a>, SpecError> {
    match asked.user {
        RunAs::Uid(uid) => Ok(Named::Id(*uid)),
        RunAs::Name(name) => named("user", name),
        RunAs::Image if of_image.is_empty() => Ok(Named::Id(0)),
        RunAs::Image => named("user", of_image),
    }
}

/// An id where the text has digits only, a name otherwise.
fn named<'a>(what: &'static str, text: &'a str) -> Result<Named<'a>, SpecError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Named::Name(text));
    }
    let id = text.parse().ok().filter(|id| *id <= MAX_ID);
    id.map(Named::Id).ok_or_else(|| SpecError::NoId {
        what,
        id: text.to_owned(),
    })
}

/// Refuses ids beyond those that Kubernetes and the OCI runtimes know; the highest
/// of all means "leave it as it is" to the kernel, so that the process would stay root.
fn checked(uid: u32, groups: &[u32]) -> Result<(), SpecError> {
    let groups = groups.iter().map(|gid| ("group", *gid));
    match groups.chain([("user", uid)]).find(|(_, id)| *id > MAX_ID) {
        Some((what, id)) => Err(SpecError::NoId {
            what,
            id: id.to_string(),
        }),
        None => Ok(()),
    }
}

fn group_id(group: &str, databases: &Databases) -> Result<u32, SpecError> {
    match named("group", group)? {
        Named::Id(gid) => Ok(gid),
        Named::Name(name) => {
            let known = databases.groups().find(|known| known.name == name);
            known
                .map(|known| known.gid)
                .ok_or_else(|| no_such("group", name, GROUP))
        }
    }
}

fn no_such(what: &'static str, name: &str, file: &'static str) -> SpecError {
    SpecError::NoSuchName {
        what,
        name: name.to_owned(),
        file,
    }
}

fn passwd(line: &str) -> Option<Passwd<'_>> {
    let mut parts = line.split(':');
    Some(Passwd {
        name: parts.next()?,
        uid: parts.nth(1)?.parse().ok()?,
        gid: parts.next()?.parse().ok()?,
        home: parts.nth(1).unwrap_or_default(),
    })
}

fn group(line: &str) -> Option<Group<'_>> {
    let mut parts = line.split(':');
    Some(Group {
        name: parts.next()?,
        gid: parts.nth(1)?.parse().ok()?,
        members: parts.next().unwrap_or_default(),
    })
}

/// A user database as text; empty where the container has none.
fn read(seen: &Seen<'_>, file: &'static str) -> Result<String, SpecError> {
    let bytes = seen.read(file, MAX_FILE).map_err(|error| match error {
        ReadError::Stuck(path, source) => stuck(&path, source),
        ReadError::Io(source) => SpecError::UserDatabase { file, source },
    })?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn databases(passwd: &str, group: &str) -> Databases {
        Databases {
            passwd: passwd.to_owned(),
            groups: group.to_owned(),
        }
    }

    fn account(user: &RunAs, image: &str, databases: &Databases) -> Result<Account, SpecError> {
        let asked = Asked {
            user,
            group: None,
            supplemental: &[],
            strict: false,
        };
        pick(&asked, image, databases)
    }

    /// The image of the attack names its root user like the id that the pod asks for.
    #[test]
    fn a_number_is_an_id_and_never_a_name() {
        let hostile = databases(
            "1000:x:0:0::/root:/bin/sh\nu:x:1000:7::/home/u:/bin/sh\n",
            "5:x:0:\nstaff:x:5:u\n",
        );
        for (user, image) in [
            (RunAs::Uid(1000), ""),
            (RunAs::Image, "1000"),
            (RunAs::Name("1000".to_owned()), ""),
            (RunAs::Image, "01000"),
        ] {
            let got = account(&user, image, &hostile).expect("an account");
            assert_eq!((got.uid, got.gid), (1000, 7), "{user:?} {image:?}");
            assert_eq!((got.groups, got.home.as_str()), (vec![5, 7], "/home/u"));
        }
        let got = account(&RunAs::Image, "1000:5", &hostile).expect("an account");
        assert_eq!((got.uid, got.gid), (1000, 5));
        let got = account(&RunAs::Image, "77:staff", &hostile).expect("an account");
        assert_eq!((got.uid, got.gid, got.home.as_str()), (77, 5, "/"));
    }

    #[test]
    fn user_databases_are_read_where_the_account_depends_on_them_only() {
        let needs = |user: &RunAs, group, strict, image, says_home| {
            let asked = Asked {
                user,
                group,
                supplemental: &[5],
                strict,
            };
            let Wanted { passwd, groups } = wanted(&asked, image, says_home).expect("ids");
            (passwd, groups)
        };
        let id = RunAs::Uid(7);
        assert_eq!(needs(&id, Some(8), true, "", true), (false, false));
        // Where its home is.
        assert_eq!(needs(&id, Some(8), true, "", false), (true, false));
        // The group and the groups of the user.
        assert_eq!(needs(&id, None, true, "", true), (true, false));
        assert_eq!(needs(&id, Some(8), false, "", true), (true, true));
        let name = RunAs::Name("u".to_owned());
        assert_eq!(needs(&name, Some(8), true, "", true), (true, false));
        let image = RunAs::Image;
        assert_eq!(needs(&image, None, true, "7:8", true), (false, false));
        assert_eq!(needs(&image, None, true, "7:g", true), (false, true));
        assert_eq!(needs(&image, None, true, "7", true), (true, false));
        assert_eq!(needs(&image, Some(8), true, "u:g", true), (true, false));
    }

    #[test]
    fn what_looks_like_a_number_and_is_none_is_a_name() {
        let none = databases("", "");
        for text in ["+0", "-1", " 0", "0x0", "1000 ", "0:+0", "0:-5"] {
            let got = account(&RunAs::Image, text, &none);
            assert!(matches!(got, Err(SpecError::NoSuchName { .. })), "{text:?}");
        }
    }

    #[test]
    fn ids_beyond_two_to_the_31_are_nobodys() {
        let users = databases(
            "big:x:2147483648:0::/:/bin/sh\nmax:x:4294967295:0::/:\n",
            "",
        );
        for text in ["big", "max", "2147483648", "4294967295", "0:4294967296"] {
            let got = account(&RunAs::Image, text, &users);
            assert!(matches!(got, Err(SpecError::NoId { .. })), "{text:?}");
        }
        assert!(account(&RunAs::Image, "2147483647:2147483647", &users).is_ok());
        assert!(checked(0, &[5, u32::MAX]).is_err());
    }

    #[test]
    fn broken_lines_of_the_database_are_passed_over() {
        let all = databases(
            "root:x:0:0::/root:/bin/sh\n\nbroken\nx:y:z\nu:x:7:8:g:/home/u:\n",
            "wheel:x:10:root,u\nempty:x:11:\nbad\n",
        );
        let users: Vec<_> = all.users().collect();
        assert_eq!(users.len(), 2);
        assert_eq!(
            (users[1].uid, users[1].gid, users[1].home),
            (7, 8, "/home/u")
        );
        let groups: Vec<_> = all.groups().collect();
        assert_eq!(groups.len(), 2);
        assert!(groups[0].has("u") && groups[0].has("root") && !groups[0].has("oot"));
    }

    #[test]
    fn a_database_that_puts_a_user_in_every_group_is_refused() {
        let lines = |count| -> String { (0..count).map(|gid| format!("g:x:{gid}:u\n")).collect() };
        let groups = |count| {
            let database = databases("u:x:5:5::/:\n", &lines(count));
            account(&RunAs::Image, "u", &database).map(|account| account.groups.len())
        };
        assert_eq!(groups(MAX_GROUPS).expect("an account"), MAX_GROUPS);
        let refused = groups(100_000).expect_err("too many");
        assert!(matches!(refused, SpecError::TooManyGroups { .. }));
    }
}
