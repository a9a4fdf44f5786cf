//! `execve` with everything prepared before: no allocation on the way.

#![expect(unsafe_code, reason = "bare system calls")]

use std::ffi::{CStr, CString};

use rustix::io::Errno;

/// Arguments or environment as the kernel wants them.
#[derive(Debug)]
pub struct CStrings {
    /// Owns what the pointers point to.
    _owned: Vec<CString>,
    /// One per string and a null at the end.
    pointers: Vec<*const libc::c_char>,
}

impl CStrings {
    /// Takes the strings over.
    #[must_use]
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|text| text.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Self {
            _owned: strings,
            pointers,
        }
    }
}

/// Replaces this process. Returns only when that failed.
#[must_use]
pub fn execve(path: &CStr, args: &CStrings, env: &CStrings) -> Errno {
    // SAFETY: both arrays end with a null and point to strings that their
    // owner, borrowed here, keeps alive and never changes.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
