//! `execve` with everything prepared before: no allocation on the way.

#![expect(unsafe_code, reason = "bare system calls")]

use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;

use rustix::io::Errno;
use syscalls::Sysno;

use super::parcel::{self, Parcel};

/// Arguments or environment as the kernel wants them.
#[derive(Debug)]
pub struct CStrings {
    /// Owns what the pointers point to.
    owned: Vec<CString>,
    /// One per string and a null at the end.
    pointers: Vec<*const c_char>,
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
            owned: strings,
            pointers,
        }
    }

    /// As the kernel wants them.
    #[must_use]
    pub fn pointers(&self) -> Pointers<'_> {
        Pointers {
            first: self.pointers.as_ptr(),
            owner: PhantomData,
        }
    }

    /// How much room they take in a [`Parcel`].
    #[must_use]
    pub fn room(&self) -> usize {
        let texts = self.owned.iter();
        texts
            .map(|text| parcel::room(text.as_bytes_with_nul()))
            .fold(parcel::room(&self.pointers), usize::saturating_add)
    }

    /// Packs them.
    ///
    /// # Errors
    /// `ENOMEM`: there is not as much room left.
    pub fn pack(&self, parcel: &mut Parcel) -> Result<Pointers<'static>, Errno> {
        let mut pointers = Vec::with_capacity(self.pointers.len());
        for text in &self.owned {
            pointers.push(parcel.pack(text.as_bytes_with_nul())?.as_ptr().cast());
        }
        pointers.push(std::ptr::null());
        Ok(Pointers {
            first: parcel.pack(&pointers)?.as_ptr(),
            owner: PhantomData,
        })
    }
}

/// Pointers to texts that end with NUL; a null pointer ends the list.
#[derive(Debug, Clone, Copy)]
pub struct Pointers<'a> {
    first: *const *const c_char,
    owner: PhantomData<&'a CStr>,
}

/// Replaces this process. Returns only when that failed. Works in a process without
/// thread-local storage ([`super::parcel`]).
#[must_use]
pub fn execve(path: &CStr, args: Pointers<'_>, env: Pointers<'_>) -> Errno {
    // SAFETY: both arrays end with a null and point to texts that end with NUL and that
    // their owner, borrowed here, keeps alive and never changes.
    let result = unsafe { syscalls::syscall!(Sysno::execve, path.as_ptr(), args.first, env.first) };
    result.err().map_or(Errno::INVAL, |errno| {
        Errno::from_raw_os_error(errno.into_raw())
    })
}
