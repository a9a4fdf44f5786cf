//! Descriptor tables: closing what a new program must not have.

#![expect(unsafe_code, reason = "bare system calls")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Whether a range of descriptors is closed at once or on exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Marks them: they close when the process executes a program.
    OnExec,
    /// Closes them now. Only for a process that ends without touching them:
    /// see [`close_from`].
    Now,
}

/// Closes or marks all descriptors from `first` on.
///
/// With [`Close::Now`] owners of these descriptors are left with numbers that
/// mean nothing: call it only where a program begins, before it has opened
/// anything, or in a child made by [`super::fork::spawn`], which runs no
/// destructors of its parent's values and ends by exec or exit.
///
/// # Errors
/// The kernel is older than 5.11 (`OnExec`) or 5.9 (`Now`).
pub fn close_from(first: u32, close: Close) -> Result<(), Errno> {
    let flags = match close {
        Close::OnExec => libc::CLOSE_RANGE_CLOEXEC,
        Close::Now => 0,
    };
    // SAFETY: marking changes no descriptor's meaning. Closing is limited by
    // the contract above to processes without owners that will ever run.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    super::check(result).map(drop)
}

/// Leaves a descriptor open until this process ends or executes a program.
#[must_use]
pub fn leave_open(fd: OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: its owner is gone without closing it, so that nobody will.
    unsafe { BorrowedFd::borrow_raw(fd.into_raw_fd()) }
}

/// Descriptors that a program was started with, by their numbers.
#[derive(Debug, Default)]
pub struct Inherited(std::collections::BTreeSet<RawFd>);

impl Inherited {
    /// None taken yet. Only for where a program begins, before it has opened
    /// anything, and only once: every number then is nobody's.
    #[must_use]
    pub fn at_start() -> Self {
        Self::default()
    }

    /// Takes one, which closes on exec from now on.
    ///
    /// # Errors
    /// `BADF`: there is none, it is a stream, or it was taken.
    pub fn take(&mut self, number: RawFd) -> Result<OwnedFd, Errno> {
        if number <= 2 || !self.0.insert(number) {
            return Err(Errno::BADF);
        }
        // SAFETY: setting a flag of a number that may mean nothing reads no memory.
        let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        super::check(result.into())?;
        // SAFETY: the kernel knows the number, and by the contract above and the
        // set nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

/// Whether descriptors stay open in the program that this process executes next.
/// Their owners keep them.
///
/// # Errors
/// `BADF`: one of them is none.
pub fn keep_on_exec(numbers: &[RawFd], keep: bool) -> Result<(), Errno> {
    let flags = if keep { 0 } else { libc::FD_CLOEXEC };
    for number in numbers {
        // SAFETY: setting a flag reads no memory and changes no descriptor's meaning.
        let result = unsafe { libc::fcntl(*number, libc::F_SETFD, flags) };
        super::check(result.into())?;
    }
    Ok(())
}

/// Copies a descriptor to a number of the caller's choice; it closes on exec.
///
/// Whoever owned that number before is left with another file: call it only in
/// a child made by [`super::fork::spawn`], as [`close_from`] with `Now`.
///
/// # Errors
/// The kernel's answer.
pub fn copy_to(fd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: dup3 reads no memory. That `number` gets another meaning is
    // limited by the contract above.
    let result = unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) };
    super::check(result.into())?;
    // SAFETY: the kernel made this descriptor just now, and owners of the
    // number's former meaning never run in such a child.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Keeps these descriptors, as the numbers from 0 on, and closes all others: only in a
/// child made by [`super::fork::spawn`], as [`close_from`] with `Now`.
///
/// # Errors
/// The kernel's answer.
pub fn keep_only<const N: usize>(ends: [BorrowedFd<'_>; N]) -> Result<[OwnedFd; N], Errno> {
    keep_all(&ends)?.try_into().map_err(|_| Errno::INVAL)
}

/// The same for any number of them.
///
/// # Errors
/// The kernel's answer.
pub fn keep_all(ends: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, Errno> {
    let count = i32::try_from(ends.len()).map_err(|_| Errno::INVAL)?;
    // Copies above all of them first: one may be at a number that is to be filled.
    let mut copies = Vec::with_capacity(ends.len());
    for end in ends {
        copies.push(rustix::io::fcntl_dupfd_cloexec(end, count)?);
    }
    let mut kept = Vec::with_capacity(ends.len());
    for (copy, number) in copies.iter().zip(0..) {
        kept.push(copy_to(copy.as_fd(), number)?);
    }
    // Those copies end with the range below, whose owners must not run.
    std::mem::forget(copies);
    close_from(count.cast_unsigned(), Close::Now)?;
    Ok(kept)
}
