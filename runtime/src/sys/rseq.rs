//! Restartable sequences (rseq(2)): a place in thread-local storage that the kernel
//! writes to.
//!
//! The C library registers one for each thread, and a copy of the process inherits it.
//! A process without that memory is ended by SIGSEGV the first time the kernel comes
//! back to it.

#![expect(unsafe_code, reason = "bare system calls and the thread pointer")]

use rustix::io::Errno;

/// Takes the registration of this thread back, for a process that has one thread and
/// ends soon. Nothing that runs in it afterwards may use restartable sequences: of the
/// C library only `sched_getcpu` does, and asks the kernel where they are missing.
///
/// # Errors
/// The kernel's answer. None if nothing is registered.
#[cfg(target_env = "gnu")]
pub(super) fn unregister() -> Result<(), Errno> {
    use syscalls::Sysno;

    // Public since glibc 2.35, where the registration began.
    unsafe extern "C" {
        static __rseq_offset: isize;
        static __rseq_size: u32;
    }
    // SAFETY: the C library writes them before the program begins, and never again.
    let (offset, size) = unsafe { (__rseq_offset, __rseq_size) };
    if size == 0 {
        return Ok(());
    }
    let area = thread_pointer().wrapping_add_signed(offset);
    // It is as long as the kernel's structure, and was 32 bytes at first.
    let longer = size.max(32);
    let mut answer = Err(Errno::INVAL);
    for length in [32, longer, longer.next_multiple_of(32)] {
        // SAFETY: the kernel forgets an address, and touches no memory.
        let result =
            unsafe { syscalls::syscall!(Sysno::rseq, area, length, UNREGISTER, SIGNATURE) };
        answer = result
            .map(drop)
            .map_err(|errno| Errno::from_raw_os_error(errno.into_raw()));
        if answer != Err(Errno::INVAL) {
            break;
        }
    }
    answer
}

/// Other C libraries register nothing.
#[cfg(not(target_env = "gnu"))]
pub(super) fn unregister() -> Result<(), Errno> {
    Ok(())
}

/// `RSEQ_FLAG_UNREGISTER`.
#[cfg(target_env = "gnu")]
const UNREGISTER: usize = 1;
/// `RSEQ_SIG`: what the C library registered with.
#[cfg(all(target_env = "gnu", target_arch = "x86_64"))]
const SIGNATURE: usize = 0x5305_3053;
#[cfg(all(target_env = "gnu", target_arch = "aarch64"))]
const SIGNATURE: usize = 0xd428_bc00;

/// What thread-local storage is found by.
#[cfg(all(target_env = "gnu", target_arch = "x86_64"))]
fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: the first word of the thread's control block is its own address (ABI).
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags));
    }
    pointer
}

#[cfg(all(target_env = "gnu", target_arch = "aarch64"))]
fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: reading this register changes nothing.
    unsafe {
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    pointer
}
