//! What the C library's allocator keeps of memory that was given back to it.

#![expect(unsafe_code, reason = "bare calls of the C library")]

/// Lets all threads of this process share so many arenas; for its beginning, before
/// there are others. By default every thread gets one of its own, up to eight for each
/// processor, and keeps in it what it once needed.
pub fn share_arenas(count: u8) {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer goes in, and no other thread allocates yet.
    let _accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, count.into()) };
    #[cfg(not(target_env = "gnu"))]
    let _only_there = count;
}

/// Gives whole free pages back to the kernel. The allocator does so by itself only at
/// the end of its heap and from 128 KiB on; with many processes, or after a burst,
/// what it keeps for a next time is most of what there is.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer goes in, and only memory that nobody holds is given back.
    let _some = unsafe { libc::malloc_trim(0) };
}
