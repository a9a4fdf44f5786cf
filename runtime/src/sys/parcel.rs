//! A copy of this process that has none of its memory but what was packed for it.
//!
//! A process that is born where others can trace it must not know what its maker
//! knows. Its maker packs what it needs into a [`Parcel`], a mapping of its own, and
//! marks everything else but the executable's segments `MADV_DONTFORK`: the kernel
//! leaves that out of the copy. The copy runs on a stack within the parcel.
//!
//! ```text
//! maker:  segments | heap | libraries' maps | parcel (stack, what was packed) | stack
//! copy:   segments |      |                 | parcel (stack, what was packed) |
//! ```
//! What runs in the copy has no heap and no thread-local storage: it may neither
//! allocate nor set `errno`, which ends it by SIGSEGV. So it makes system calls
//! without the C library (`rustix` and `syscalls` do), formats into arrays of its own
//! and does not panic. The segments hold the statics of the executable: nothing that a
//! container asked for may be kept in a static.

#![expect(unsafe_code, reason = "bare system calls and memory of its own")]

use std::ffi::{c_int, c_void};
use std::ops::Range;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::note::Note;
use super::rseq;

/// Bytes of the stack. Only pages that are touched take memory.
const STACK: usize = 128 << 10;
/// Bytes for what is packed last: the values that the process begins with.
const LAST: usize = 4 << 10;
/// Alignment of everything in a parcel; that of stacks is no larger.
const ALIGN: usize = 16;
/// Bytes of the kernel's largest pages.
const PAGE: usize = 64 << 10;
/// Bytes of its smallest, and of every kind of them a divisor.
const PAGE_SMALLEST: usize = 4 << 10;

/// How much room a list of values takes in a parcel.
#[must_use]
pub fn room<T>(values: &[T]) -> usize {
    size_of_val(values).next_multiple_of(ALIGN)
}

/// What a new process takes along. Never unmapped: a process that packs one ends soon.
#[derive(Debug)]
pub struct Parcel {
    start: *mut u8,
    size: usize,
    used: usize,
}

impl Parcel {
    /// Makes one with so much room, in bytes: see [`room`].
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(room: usize) -> Result<Self, Errno> {
        let size = room
            .saturating_add(STACK + LAST)
            .checked_next_multiple_of(PAGE)
            .ok_or(Errno::NOMEM)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping where the kernel likes it aliases nothing.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, protection, flags)? };
        Ok(Self {
            start: start.cast(),
            size,
            used: STACK,
        })
    }

    /// A place for a value of this layout.
    fn place(&mut self, bytes: usize, align: usize) -> Result<*mut u8, Errno> {
        let at = self.used.next_multiple_of(ALIGN);
        let end = at.checked_add(bytes).filter(|end| *end <= self.size);
        if align > ALIGN {
            return Err(Errno::INVAL);
        }
        self.used = end.ok_or(Errno::NOMEM)?;
        // SAFETY: `at` lies within the mapping, which `start` begins.
        Ok(unsafe { self.start.add(at) })
    }

    /// Packs a list of values. They may refer to nothing but statics and what is packed
    /// already, which live as long.
    ///
    /// # Errors
    /// `ENOMEM`: there is no room left.
    pub fn pack<T: Copy + 'static>(&mut self, values: &[T]) -> Result<&'static [T], Errno> {
        let place = self
            .place(size_of_val(values), align_of::<T>())?
            .cast::<T>();
        // SAFETY: the place is that large, aligned, nobody else's and never unmapped;
        // values of a type that is `Copy` may be copied bytewise.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), place, values.len());
            Ok(std::slice::from_raw_parts(place, values.len()))
        }
    }

    /// Closes it, with what the process does. From now on copies of this process have
    /// nothing else.
    ///
    /// # Errors
    /// `ENOMEM`: there is no room left; otherwise the kernel's answer.
    pub fn close<L>(mut self, life: L) -> Result<Closed<L>, Errno>
    where
        L: FnOnce() -> u8 + Copy + 'static,
    {
        let place = self.place(size_of::<L>(), align_of::<L>())?.cast::<L>();
        // SAFETY: the place is that large, aligned and nobody else's.
        unsafe { place.write(life) };
        let own = self.start.addr()..self.start.addr().saturating_add(self.size);
        // It is in the thread-local storage, which stays behind.
        rseq::unregister()?;
        keep_only(own)?;
        Ok(Closed {
            stack: self.start,
            life: place,
        })
    }
}

/// A parcel that waits to be taken along.
#[derive(Debug)]
pub struct Closed<L> {
    stack: *mut u8,
    life: *mut L,
}

impl<L> Closed<L>
where
    L: FnOnce() -> u8 + Copy + 'static,
{
    /// Makes the process: a child of this process's parent, born in the pid namespace
    /// that this process has chosen for its children. Its id, as seen from here, is
    /// noted before it runs.
    ///
    /// Only for a child made by [`super::fork`], which has one thread. By `clone`:
    /// filters of system calls, one of which may be in force, let that pass.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn go(self, note: &Note) -> Result<(), Errno> {
        // SAFETY: the stack's end lies within the mapping and is aligned as the mapping.
        let stack = unsafe { self.stack.add(STACK) };
        let place = note.place();
        // SAFETY: without CLONE_VM the copy has memory of its own, so that the stack is
        // used by one process: here it is not touched. The function never returns to
        // this frame. There is one thread, by the contract. The kernel writes the id to
        // an integer of the note, which is borrowed.
        let result =
            unsafe { libc::clone(begin::<L>, stack.cast(), FLAGS, self.life.cast(), place) };
        super::check(result.into()).map(drop)
    }
}

const FLAGS: c_int = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;
/// The flags with which [`Closed::go`] calls the kernel.
pub const CLONE_FLAGS: u32 = FLAGS as u32;

/// Where the copy begins.
extern "C" fn begin<L>(life: *mut c_void) -> c_int
where
    L: FnOnce() -> u8 + Copy + 'static,
{
    // SAFETY: `go` hands over what `close` wrote.
    let life = unsafe { *life.cast::<L>() };
    life().into()
}

/// Leaves all memory out of copies of this process but this range and the segments of
/// its executable, with those of the libraries where it is not static.
fn keep_only(own: Range<usize>) -> Result<(), Errno> {
    let mut kept = segments();
    kept.push(own);
    kept.sort_unstable_by_key(|range| range.start);
    let mut from = 0;
    for range in kept {
        leave_out(from..range.start / PAGE_SMALLEST * PAGE_SMALLEST)?;
        from = from.max(range.end.next_multiple_of(PAGE_SMALLEST));
    }
    leave_out(from..usize::MAX / PAGE_SMALLEST * PAGE_SMALLEST)
}

fn leave_out(range: Range<usize>) -> Result<(), Errno> {
    if range.is_empty() {
        return Ok(());
    }
    let start = std::ptr::without_provenance_mut(range.start);
    // SAFETY: this says what copies of the process have, and changes no memory of it.
    match unsafe { rustix::mm::madvise(start, range.len(), Advice::LinuxDontFork) } {
        // Parts of the range are not mapped; the others are marked.
        Err(Errno::NOMEM) => Ok(()),
        other => other,
    }
}

/// Where the segments of the executable are.
fn segments() -> Vec<Range<usize>> {
    unsafe extern "C" fn add(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        found: *mut c_void,
    ) -> c_int {
        // SAFETY: the C library hands over a live description, and the list that
        // `segments` gave it, which nobody else uses meanwhile.
        let (info, found) = unsafe { (&*info, &mut *found.cast::<Vec<Range<usize>>>()) };
        let count = usize::from(info.dlpi_phnum);
        // SAFETY: so many headers are there, in memory that nobody writes to.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, count) };
        let base = info.dlpi_addr as usize;
        let loaded = headers.iter().filter(|one| one.p_type == libc::PT_LOAD);
        found.extend(loaded.map(|one| {
            let start = base.wrapping_add(one.p_vaddr as usize);
            start..start.saturating_add(one.p_memsz as usize)
        }));
        0
    }
    let mut found: Vec<Range<usize>> = Vec::new();
    let list = std::ptr::from_mut(&mut found).cast();
    // SAFETY: `add` takes a list of this type, which lives through the call.
    unsafe { libc::dl_iterate_phdr(Some(add), list) };
    found
}
