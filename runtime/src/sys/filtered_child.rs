//! For tests: a child process under a seccomp filter.

#![expect(unsafe_code, reason = "fork and bare system calls")]

use std::ffi::{c_long, c_void};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI64, Ordering};

/// A system call: its number and arguments.
pub(crate) type Call = (i64, [u64; 6]);

/// How the child makes its calls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abi {
    Native,
    /// The 32-bit entry of x86, open to 64-bit programs too.
    I386,
}

/// What became of the child.
pub(crate) struct Report {
    /// Result of each call, a negated errno on failure; `None` if not reached.
    pub(crate) results: Vec<Option<i64>>,
    /// `/proc/self/status` as read under the filter; empty if refused.
    pub(crate) status: String,
    /// The signal that killed it.
    pub(crate) signal: Option<i32>,
}

const MAX_CALLS: usize = 64;
const STATUS: usize = 8192;
const NOT_REACHED: i64 = i64::MIN;

/// Memory that child and parent share.
#[repr(C)]
struct Shared {
    results: [AtomicI64; MAX_CALLS],
    status: [u8; STATUS],
}

/// Forks, loads the filter, makes the calls.
pub(crate) fn run(filter: &[u8], calls: &[Call], abi: Abi) -> Report {
    assert!(calls.len() <= MAX_CALLS && filter.len().is_multiple_of(8));
    // SAFETY: a new anonymous mapping aliases nothing; its size is that of the
    // struct, and all-zero bytes are a valid value of it.
    let shared = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let map = libc::mmap(
            std::ptr::null_mut(),
            size_of::<Shared>(),
            protection,
            flags,
            -1,
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        map.cast::<Shared>()
    };
    for index in 0..calls.len() {
        // SAFETY: the mapping is live, and atomics may be shared with anyone.
        unsafe { (*shared).results[index].store(NOT_REACHED, Ordering::SeqCst) };
    }
    let proc = std::fs::File::open("/proc").unwrap();
    // SAFETY: the child makes only system calls and touches only memory that
    // was there before; it takes no lock and never returns from `child`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: see above; `shared` is mapped in the child as well.
        unsafe { child(filter, calls, abi, shared, proc.as_raw_fd()) }
    }
    let mut wait = 0;
    // SAFETY: `pid` is a child of ours that nobody else waits for.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut wait, 0) }, pid);
    // SAFETY: the child has ended, so the memory is only ours and initialised.
    let report = unsafe {
        let results = (0..calls.len())
            .map(|index| Some((*shared).results[index].load(Ordering::SeqCst)))
            .map(|result| result.filter(|&result| result != NOT_REACHED))
            .collect();
        let status = (*shared).status;
        let end = status.iter().position(|&byte| byte == 0).unwrap_or(STATUS);
        let status = String::from_utf8_lossy(&status[..end]).into_owned();
        let signal = libc::WIFSIGNALED(wait).then(|| libc::WTERMSIG(wait));
        Report {
            results,
            status,
            signal,
        }
    };
    // SAFETY: nothing refers to the mapping any more.
    unsafe { libc::munmap(shared.cast::<c_void>(), size_of::<Shared>()) };
    report
}

/// The child's life. Calls must not hand over memory that is needed later.
unsafe fn child(filter: &[u8], calls: &[Call], abi: Abi, shared: *mut Shared, proc: i32) -> ! {
    let length = u16::try_from(filter.len() / 8).unwrap_or(0);
    let program = libc::sock_fprog {
        len: length,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` describes `filter`, which outlives the call; the other
    // pointers are literals or inside the live shared mapping.
    unsafe {
        let status = libc::openat(proc, c"self/status".as_ptr(), libc::O_RDONLY);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        if libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) != 0 {
            libc::_exit(99);
        }
        for (index, &(number, args)) in calls.iter().enumerate() {
            let result = match abi {
                Abi::Native => native(number, args),
                Abi::I386 => i386(number, args),
            };
            (*shared).results[index].store(result, Ordering::SeqCst);
        }
        let buffer = (&raw mut (*shared).status).cast::<c_void>();
        libc::syscall(libc::SYS_read, status, buffer, STATUS - 1);
        libc::_exit(0);
    }
}

unsafe fn native(number: i64, a: [u64; 6]) -> i64 {
    // SAFETY: the caller chose a call that does no harm to this child.
    unsafe {
        let result: c_long = libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
        if result == -1 {
            -i64::from(*libc::__errno_location())
        } else {
            result
        }
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn i386(number: i64, a: [u64; 6]) -> i64 {
    let mut result = number;
    // SAFETY: the 32-bit entry changes eax and may clear r8 to r11, all of
    // which are declared; rbx, which cannot be declared, is kept on the stack.
    unsafe {
        std::arch::asm!(
            "push rbx", "mov rbx, rdi", "int 0x80", "pop rbx",
            inlateout("rax") result, in("rdi") a[0], in("rcx") a[1], in("rdx") a[2],
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // 32-bit results are sign-extended by hand.
    i64::from(result as i32)
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn i386(_: i64, _: [u64; 6]) -> i64 {
    -i64::from(libc::ENOSYS)
}
