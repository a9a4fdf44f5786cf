//! Finding and executing a program, as a shell would.
//!
//! Owns the search along PATH and the words for what went wrong. Whether a
//! file may be executed is the kernel's decision alone. Never touches a file
//! itself; a crash leaves nothing.

use std::ffi::{CString, NulError};

use rustix::io::Errno;

use crate::sys::execve::{CStrings, execve};

/// Searched when the environment has no PATH.
pub const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to execute: everything that `execve` needs.
#[derive(Debug)]
pub struct Program {
    name: String,
    searched: bool,
    candidates: Vec<CString>,
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
        let searched = !name.contains(&b'/');
        let path = env
            .iter()
            .find_map(|variable| variable.strip_prefix(b"PATH="));
        let candidates = if searched {
            along_path(name, path.unwrap_or(DEFAULT_PATH))?
        } else {
            vec![CString::new(name.as_slice())?]
        };
        Ok(Some(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            searched,
            candidates,
            args: strings(args)?,
            env: strings(env)?,
        }))
    }

    /// Replaces this process. Returns why it could not: the first candidate
    /// that exists but may not be executed tells more than one that is missing.
    #[must_use]
    pub fn execute(&self) -> Errno {
        let mut denied = None;
        for candidate in &self.candidates {
            match execve(candidate, &self.args, &self.env) {
                // The usual ones of a search: the next directory may have it.
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => denied = Some(Errno::ACCESS),
                other => return other,
            }
        }
        denied.unwrap_or(Errno::NOENT)
    }

    /// Words for what [`execute`](Self::execute) returned, and whether they
    /// mean that the program is missing or cannot be executed.
    #[must_use]
    pub fn explain(&self, errno: Errno) -> (String, bool) {
        let name = &self.name;
        let problem = match errno {
            Errno::NOENT if self.searched => "executable file not found in $PATH".to_owned(),
            Errno::NOENT => "no such file or directory".to_owned(),
            Errno::ACCESS => "permission denied".to_owned(),
            Errno::NOEXEC => "exec format error".to_owned(),
            Errno::ISDIR => "is a directory".to_owned(),
            other => format!("{other}"),
        };
        let unusable = matches!(
            errno,
            Errno::NOENT
                | Errno::NOTDIR
                | Errno::ACCESS
                | Errno::NOEXEC
                | Errno::ISDIR
                | Errno::LOOP
                | Errno::NAMETOOLONG
                | Errno::PERM
        );
        (format!("exec: \"{name}\": {problem}"), unusable)
    }
}

/// The files that the name may stand for, in order. An empty part of a PATH
/// means the working directory.
fn along_path(name: &[u8], path: &[u8]) -> Result<Vec<CString>, NulError> {
    if name.is_empty() {
        return Ok(Vec::new());
    }
    path.split(|byte| *byte == b':')
        .map(|directory| {
            let directory = if directory.is_empty() {
                b"."
            } else {
                directory
            };
            CString::new([directory, b"/", name].concat())
        })
        .collect()
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

    fn candidates(program: &Program) -> Vec<&str> {
        program
            .candidates
            .iter()
            .map(|text| text.to_str().unwrap())
            .collect()
    }

    #[test]
    fn names_with_a_slash_are_not_searched() {
        for name in ["/bin/sh", "./run", "bin/run"] {
            assert_eq!(candidates(&program(&[name], &["PATH=/x"])), [name]);
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
    fn empty_name_is_not_found_and_no_name_is_none() {
        let nothing = program(&[""], &[]);
        assert_eq!(nothing.execute(), Errno::NOENT);
        assert!(Program::new(&[], &[]).unwrap().is_none());
    }

    #[test]
    fn missing_and_forbidden_programs_are_told_apart() {
        let missing = program(&["slipway-no-such-program"], &[]);
        assert_eq!(
            missing.explain(missing.execute()),
            (
                "exec: \"slipway-no-such-program\": executable file not found in $PATH".to_owned(),
                true
            )
        );
        let directory = program(&["/proc"], &[]);
        assert_eq!(
            directory.explain(directory.execute()),
            ("exec: \"/proc\": permission denied".to_owned(), true)
        );
        let (_, unusable) = missing.explain(Errno::NOMEM);
        assert!(!unusable, "lack of memory says nothing about the program");
    }

    #[test]
    fn nul_in_an_argument_is_an_error() {
        assert!(Program::new(&[b"sh".to_vec(), b"a\0b".to_vec()], &[]).is_err());
    }
}
