//! Session keyrings: `keyctl`.

#![expect(unsafe_code, reason = "bare system calls")]

use std::ffi::CStr;

use rustix::io::Errno;

// linux/keyctl.h
const JOIN_SESSION_KEYRING: libc::c_long = 1;
const SET_PERMISSIONS: libc::c_long = 5;
/// Who has the keyring may do all with it.
const ALL_OF_POSSESSOR: libc::c_long = 0x3f00_0000;
/// The keyring's user may look for it, which joining it by its name needs; nothing else.
const SEARCH_OF_USER: libc::c_long = 0x0008_0000;

/// Makes this process's session keyring the one of this name, which is made where
/// there is none. Whoever is not in it sees neither it nor its keys.
///
/// # Errors
/// The kernel's answer: `ENOSYS` where it has no keys, `EPERM` where a filter of
/// system calls forbids them, `EDQUOT` where the user has too many.
pub fn join(name: &CStr) -> Result<(), Errno> {
    // SAFETY: the kernel reads the name, a text that ends with NUL and lives through
    // the call, and nothing else.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    let keyring = super::check(joined)?;
    let permissions = ALL_OF_POSSESSOR | SEARCH_OF_USER;
    // SAFETY: all arguments are numbers.
    let set = unsafe { libc::syscall(libc::SYS_keyctl, SET_PERMISSIONS, keyring, permissions) };
    super::check(set).map(drop)
}

/// Leaves this process's session keyring for a fresh one without a name, which nobody
/// else joins. A kernel without keys has none to leave.
///
/// # Errors
/// The kernel's answer.
pub fn leave() -> Result<(), Errno> {
    let none = std::ptr::null::<std::ffi::c_char>();
    // SAFETY: without a name the kernel reads nothing.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, none) };
    match super::check(joined) {
        Err(Errno::NOSYS) => Ok(()),
        other => other.map(drop),
    }
}
