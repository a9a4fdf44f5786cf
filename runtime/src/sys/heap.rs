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

/// Has allocations from this size on given back to the kernel as soon as they are freed;
/// for the beginning of the process. By default the allocator keeps what is as large as
/// the largest that was ever freed, up to 32 MiB each, for a next time.
pub fn give_back_from(bytes: u32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer goes in, and no other thread allocates yet.
    let _accepted = unsafe {
        libc::mallopt(
            libc::M_MMAP_THRESHOLD,
            i32::try_from(bytes).unwrap_or(i32::MAX),
        )
    };
    #[cfg(not(target_env = "gnu"))]
    let _only_there = bytes;
}

/// Gives whole free pages back to the kernel. The allocator does so by itself only at
/// the end of its heap and from 128 KiB on; with many processes, or after a burst,
/// what it keeps for a next time is most of what there is.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer goes in, and only memory that nobody holds is given back.
    let _some = unsafe { libc::malloc_trim(0) };
}
