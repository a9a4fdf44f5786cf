//! A few words of memory that a process shares with those it makes.
//!
//! By it a process that is hidden from a container tells its maker who was born there,
//! where a pipe or a socket would be inherited by what is born and be its tracer's, too.
//! The copy that [`super::parcel`] makes does not have it.

#![expect(unsafe_code, reason = "a shared mapping")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::Pid;

/// What is shared. Zero stands for nothing.
#[derive(Debug)]
#[repr(C)]
struct Words {
    born: AtomicI32,
    failed: AtomicI32,
}

/// The memory, until it is dropped.
#[derive(Debug)]
pub struct Note(NonNull<Words>);

impl Note {
    /// Makes one. Processes that are made from now on share it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new() -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED;
        // SAFETY: a new anonymous mapping where the kernel likes it aliases nothing.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), SIZE, protection, flags)? };
        NonNull::new(start.cast()).map(Self).ok_or(Errno::NOMEM)
    }

    fn words(&self) -> &Words {
        // SAFETY: the mapping is large enough, aligned to a page and lives as long as
        // this; zeroes are valid, and atomics may be shared with other processes.
        unsafe { self.0.as_ref() }
    }

    /// Who was born.
    #[must_use]
    pub fn born(&self) -> Option<Pid> {
        Pid::from_raw(self.words().born.load(Ordering::Acquire))
    }

    /// Why nobody was, if that was said.
    #[must_use]
    pub fn failed(&self) -> Option<Errno> {
        let errno = self.words().failed.load(Ordering::Acquire);
        (errno != 0).then(|| Errno::from_raw_os_error(errno))
    }

    /// Says why nobody was born.
    pub fn fail(&self, errno: Errno) {
        let errno = errno.raw_os_error();
        self.words().failed.store(errno, Ordering::Release);
    }

    /// Where the kernel writes who is born.
    pub(super) fn place(&self) -> *mut libc::pid_t {
        self.words().born.as_ptr()
    }
}

/// Bytes of the mapping: the kernel rounds it up to a page.
const SIZE: usize = size_of::<Words>();

impl Drop for Note {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        let _unmapped = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_noted_at_first() {
        let note = Note::new().unwrap();
        assert_eq!((note.born(), note.failed()), (None, None));
        note.fail(Errno::AGAIN);
        assert_eq!(note.failed(), Some(Errno::AGAIN));
        note.words().born.store(7, Ordering::Release);
        assert_eq!(note.born(), Pid::from_raw(7));
    }
}
