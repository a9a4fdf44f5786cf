//! Finding and executing a program, as a shell would.
//!
//! Owns the search along PATH and the words for what went wrong. Whether a
//! file may be executed is the kernel's decision alone. Never touches a file
//! itself; a crash leaves nothing. Executing and its words take no memory: a process
//! may come to it that has no heap ([`crate::sys::parcel`]).

use std::ffi::{CStr, CString, NulError};
use std::fmt;

use rustix::io::Errno;

use crate::sys::execve::{CStrings, Pointers, execve};
use crate::sys::parcel::{self, Parcel};

/// Searched when the environment has no PATH.
pub const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to execute: everything that `execve` needs.
#[derive(Debug)]
pub struct Program {
    name: CString,
    path: Vec<u8>,
    args: CStrings,
    env: CStrings,
}

impl Program {
    /// Prepares a program. `args` begins with its name; `env` is kept in
    /// order, with duplicates. `None`: there is no name.
    ///
    /// # Errors
    /// An argument or variable holds a NUL.
    pub fn new(args: &[Vec<u8>], env: &[Vec<u8>]) -> Result<Option<Self>, NulError> {
        let Some(name) = args.first() else {
            return Ok(None);
        };
        let path = env
            .iter()
            .find_map(|variable| variable.strip_prefix(b"PATH="));
        Ok(Some(Self {
            name: CString::new(name.as_slice())?,
            path: path.unwrap_or(DEFAULT_PATH).to_vec(),
            args: strings(args)?,
            env: strings(env)?,
        }))
    }

    /// What is executed.
    #[must_use]
    pub fn command(&self) -> Command<'_> {
        Command {
            name: &self.name,
            path: &self.path,
            args: self.args.pointers(),
            env: self.env.pointers(),
        }
    }

    /// How much room it takes in a [`Parcel`].
    pub(crate) fn room(&self) -> usize {
        let words = parcel::room(self.name.as_bytes_with_nul()) + parcel::room(&self.path);
        words + self.args.room() + self.env.room()
    }

    /// Packs it.
    ///
    /// # Errors
    /// `ENOMEM`: there is not as much room left.
    pub(crate) fn pack(&self, parcel: &mut Parcel) -> Result<Command<'static>, Errno> {
        let name = parcel.pack(self.name.as_bytes_with_nul())?;
        Ok(Command {
            name: CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?,
            path: parcel.pack(&self.path)?,
            args: self.args.pack(parcel)?,
            env: self.env.pack(parcel)?,
        })
    }
}

/// A program that is somewhere else.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    name: &'a CStr,
    path: &'a [u8],
    args: Pointers<'a>,
    env: Pointers<'a>,
}

impl<'a> Command<'a> {
    /// Replaces this process. Returns why it could not: the first file along the PATH
    /// that exists but may not be executed tells more than one that is missing. Paths
    /// that are longer than the kernel takes are passed over.
    #[must_use]
    pub fn execute(self) -> Refused<'a> {
        let errno = if self.is_searched() {
            self.search()
        } else {
            execve(self.name, self.args, self.env)
        };
        Refused {
            command: self,
            errno,
        }
    }

    /// Words for why it was not executed.
    #[must_use]
    pub fn refused(self, errno: Errno) -> Refused<'a> {
        Refused {
            command: self,
            errno,
        }
    }

    fn is_searched(self) -> bool {
        !self.name.to_bytes().contains(&b'/')
    }

    fn search(self) -> Errno {
        let mut denied = None;
        let mut space = [0; LONGEST_PATH];
        for directory in self.path.split(|byte| *byte == b':') {
            let Some(candidate) = candidate(directory, self.name, &mut space) else {
                continue;
            };
            match execve(candidate, self.args, self.env) {
                // The usual ones of a search: the next directory may have it.
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => denied = Some(Errno::ACCESS),
                other => return other,
            }
        }
        denied.unwrap_or(Errno::NOENT)
    }
}

/// `PATH_MAX`: the kernel takes no longer ones, the NUL included.
const LONGEST_PATH: usize = 4096;

/// The file that a name may stand for. An empty part of a PATH means the working
/// directory. `None`: there is no name, or it is too long.
fn candidate<'a>(
    directory: &[u8],
    name: &CStr,
    space: &'a mut [u8; LONGEST_PATH],
) -> Option<&'a CStr> {
    let directory: &[u8] = if directory.is_empty() {
        b"."
    } else {
        directory
    };
    let name = name.to_bytes_with_nul();
    let length = directory.len().checked_add(name.len())?.checked_add(1)?;
    let place = space.get_mut(..length).filter(|_| name.len() > 1)?;
    let (first, rest) = place.split_at_mut_checked(directory.len())?;
    let (slash, last) = rest.split_first_mut()?;
    first.copy_from_slice(directory);
    *slash = b'/';
    last.copy_from_slice(name);
    CStr::from_bytes_with_nul(place).ok()
}

/// A program that could not be executed. Displayed, it is words for people.
#[derive(Debug, Clone, Copy)]
pub struct Refused<'a> {
    command: Command<'a>,
    /// Why.
    pub errno: Errno,
}

impl Refused<'_> {
    /// Whether the program is missing or cannot be executed.
    #[must_use]
    pub fn is_unusable(self) -> bool {
        matches!(
            self.errno,
            Errno::NOENT
                | Errno::NOTDIR
                | Errno::ACCESS
                | Errno::NOEXEC
                | Errno::ISDIR
                | Errno::LOOP
                | Errno::NAMETOOLONG
                | Errno::PERM
        )
    }
}

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("exec: \"")?;
        for part in self.command.name.to_bytes().utf8_chunks() {
            f.write_str(part.valid())?;
            if !part.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        f.write_str("\": ")?;
        match self.errno {
            Errno::NOENT if self.command.is_searched() => {
                f.write_str("executable file not found in $PATH")
            }
            other => match reason(other) {
                Some(words) => f.write_str(words),
                None => write!(f, "error {}", other.raw_os_error()),
            },
        }
    }
}

/// Words for what execve(2) answers: the C library's take memory.
fn reason(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::NOENT => "no such file or directory",
        Errno::ACCESS => "permission denied",
        Errno::PERM => "operation not permitted",
        Errno::NOEXEC => "exec format error",
        Errno::ISDIR => "is a directory",
        Errno::NOTDIR => "not a directory",
        Errno::TOOBIG => "argument list too long",
        Errno::NAMETOOLONG => "file name too long",
        Errno::LOOP => "too many levels of symbolic links",
        Errno::NOMEM => "cannot allocate memory",
        Errno::AGAIN => "resource temporarily unavailable",
        Errno::IO => "input/output error",
        Errno::INVAL => "invalid argument",
        Errno::LIBBAD => "accessing a corrupted shared library",
        Errno::MFILE => "too many open files",
        Errno::NFILE => "too many open files in system",
        Errno::TXTBSY => "text file busy",
        Errno::FAULT => "bad address",
        _ => return None,
    })
}

fn strings(list: &[Vec<u8>]) -> Result<CStrings, NulError> {
    let owned = list.iter().map(|text| CString::new(text.as_slice()));
    Ok(CStrings::new(owned.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(args: &[&str], env: &[&str]) -> Program {
        let list = |list: &[&str]| -> Vec<_> { list.iter().map(|t| t.as_bytes().into()).collect() };
        Program::new(&list(args), &list(env)).unwrap().unwrap()
    }

    /// What is tried, in order.
    fn candidates(program: &Program) -> Vec<String> {
        let command = program.command();
        let mut space = [0; LONGEST_PATH];
        let directories = command.path.split(|byte| *byte == b':');
        let tried = directories.filter_map(|directory| {
            let file = candidate(directory, command.name, &mut space)?;
            Some(file.to_str().unwrap().to_owned())
        });
        tried.collect()
    }

    #[test]
    fn names_with_a_slash_are_not_searched() {
        for name in ["/bin/sh", "./run", "bin/run"] {
            assert!(!program(&[name], &["PATH=/x"]).command().is_searched());
        }
    }

    #[test]
    fn first_path_of_the_environment_counts() {
        let found = program(&["sh"], &["A=1", "PATH=/a::/b", "PATH=/c"]);
        assert_eq!(candidates(&found), ["/a/sh", "./sh", "/b/sh"]);
    }

    #[test]
    fn missing_path_has_a_default() {
        assert_eq!(candidates(&program(&["sh"], &[])).len(), 6);
    }

    #[test]
    fn what_is_longer_than_a_path_is_passed_over() {
        let long = "d".repeat(LONGEST_PATH);
        let fits = "e".repeat(LONGEST_PATH - 4);
        let path = format!("PATH=/a:{long}:{fits}:/b");
        let found = candidates(&program(&["sh"], &[&path]));
        assert_eq!(
            found,
            ["/a/sh".to_owned(), format!("{fits}/sh"), "/b/sh".to_owned()]
        );
        // A hundred thousand directories and a name as long: neither is multiplied.
        let path = format!("PATH={}", ":".repeat(100_000));
        let name = "n".repeat(100_000);
        assert_eq!(
            program(&[&name], &[&path]).command().execute().errno,
            Errno::NOENT
        );
    }

    #[test]
    fn empty_name_is_not_found_and_no_name_is_none() {
        assert_eq!(program(&[""], &[]).command().execute().errno, Errno::NOENT);
        assert!(Program::new(&[], &[]).unwrap().is_none());
    }

    #[test]
    fn missing_and_forbidden_programs_are_told_apart() {
        let missing = program(&["slipway-no-such-program"], &[]);
        let refused = missing.command().execute();
        assert_eq!(
            refused.to_string(),
            "exec: \"slipway-no-such-program\": executable file not found in $PATH"
        );
        assert!(refused.is_unusable());
        let directory = program(&["/proc"], &[]);
        let refused = directory.command().execute();
        assert_eq!(refused.to_string(), "exec: \"/proc\": permission denied");
        assert!(refused.is_unusable());
        let full = missing.command().refused(Errno::NOMEM);
        assert!(
            !full.is_unusable(),
            "lack of memory says nothing about the program"
        );
    }

    #[test]
    fn names_that_are_no_text_are_shown() {
        let bytes = Program::new(&[b"a\xff\xfeb/".to_vec()], &[])
            .unwrap()
            .unwrap();
        let words = bytes.command().refused(Errno::NOENT).to_string();
        assert_eq!(
            words,
            "exec: \"a\u{fffd}\u{fffd}b/\": no such file or directory"
        );
    }

    #[test]
    fn nul_in_an_argument_is_an_error() {
        assert!(Program::new(&[b"sh".to_vec(), b"a\0b".to_vec()], &[]).is_err());
    }
}
