//! A process that holds a new user namespace open.
//!
//! unshare(CLONE_NEWUSER) is refused to threads of a larger process, so a
//! namespace needs a process of its own until a descriptor keeps it.

#![expect(unsafe_code, reason = "a bare system call")]

use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// `NS_GET_USERNS` of ioctl_nsfs(2).
const GET_USER_NS: libc::c_ulong = 0xb701;

/// The helper process; dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: i32,
    pidfd: OwnedFd,
}

impl Holder {
    /// Starts the helper in a new user namespace without any mapping. It ends
    /// with the calling thread at the latest.
    pub(crate) fn spawn() -> io::Result<Self> {
        Self::spawn_with(None)
    }

    fn spawn_with(orders: Option<&Orders>) -> io::Result<Self> {
        let mut raw_pidfd: i32 = -1;
        // An exit signal of 0 keeps this child from wait calls and SIGCHLD
        // handlers that look after other children.
        // SAFETY: all-zero is a valid value of this plain struct of integers,
        // and means "unused" for every field of it.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_NEWUSER | libc::CLONE_PIDFD)
            .cast_unsigned()
            .into();
        args.pidfd = (&raw mut raw_pidfd).expose_provenance() as u64;
        let maker = rustix::process::getpid();
        // SAFETY: without CLONE_VM the child gets its own copy of this memory
        // and stack. It may hold copies of locks that other threads had taken,
        // so it only makes the direct system calls below.
        let pid: c_long = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut args,
                size_of::<libc::clone_args>(),
            )
        };
        match i32::try_from(pid) {
            Ok(0) => hold(maker, orders),
            Ok(pid) if pid > 0 => {
                // SAFETY: with CLONE_PIDFD a successful clone3 stores a new
                // descriptor there, which nobody else knows.
                let pidfd = unsafe { OwnedFd::from_raw_fd(raw_pidfd) };
                Ok(Self { pid, pidfd })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Neither can fail while the pidfd is of an unreaped child of ours.
        let _killed = pidfd_send_signal(&self.pidfd, Signal::KILL);
        // __WALL: a child without an exit signal is not seen otherwise.
        let options =
            WaitIdOptions::EXITED | WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
        let _reaped = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
    }
}

/// A helper that makes further namespaces once its user namespace has a mapping, so
/// that the kernel finds an owner for what it makes with them.
#[derive(Debug)]
pub(crate) struct Owner {
    holder: Holder,
    go: OwnedFd,
    made: OwnedFd,
}

/// What such a helper waits at, where it answers, and the namespaces to make.
struct Orders {
    go: OwnedFd,
    made: OwnedFd,
    namespaces: c_int,
}

impl Owner {
    /// Starts it; `namespaces` are `CLONE_NEW` flags.
    pub(crate) fn spawn(namespaces: c_int) -> io::Result<Self> {
        let (its_go, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (made, its_made) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let orders = Orders {
            go: its_go,
            made: its_made,
            namespaces,
        };
        let holder = Holder::spawn_with(Some(&orders))?;
        Ok(Self { holder, go, made })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        self.holder.pid()
    }

    /// Has it make the namespaces: they are its own then.
    pub(crate) fn make(&self) -> io::Result<()> {
        rustix::io::write(&self.go, b"g")?;
        let mut answer = [0; 4];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.made, &mut answer))?;
        match i32::from_ne_bytes(answer) {
            _ if read != answer.len() => Err(io::ErrorKind::UnexpectedEof.into()),
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The user namespace that owns another namespace.
pub(crate) fn owner_of(namespace: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes no argument, and answers a new descriptor or an error.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), GET_USER_NS) };
    super::check(fd.into())?;
    // SAFETY: the kernel has just opened it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The helper's whole life.
fn hold(maker: Pid, orders: Option<&Orders>) -> ! {
    // SAFETY: prctl with these arguments only changes this process, getppid, exit_group and
    // pause take no memory; all are bare system calls that touch no shared state.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        // Who died before sends no signal any more. The helper has copies of all of its
        // descriptors, its locks among them, which no other engine would ever get.
        if libc::syscall(libc::SYS_getppid) != c_long::from(maker.as_raw_nonzero().get()) {
            libc::syscall(libc::SYS_exit_group, 1);
        }
    }
    if let Some(orders) = orders {
        obey(orders);
    }
    loop {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_pause) };
    }
}

/// Waits for the word and makes the namespaces.
fn obey(orders: &Orders) {
    let mut word = [0_u8; 1];
    // SAFETY: bare system calls, on memory of this frame and descriptors that this
    // process has copies of.
    unsafe {
        let read = libc::SYS_read;
        let (go, made) = (orders.go.as_raw_fd(), orders.made.as_raw_fd());
        if libc::syscall(read, go, word.as_mut_ptr(), word.len()) != 1 {
            return;
        }
        let answer = match libc::syscall(libc::SYS_unshare, orders.namespaces) {
            0 => 0,
            _ => *libc::__errno_location(),
        };
        let answer = answer.to_ne_bytes();
        libc::syscall(libc::SYS_write, made, answer.as_ptr(), answer.len());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use nix::sched::{CpuSet, sched_setaffinity};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::{Holder, io};

    /// Not a test: what the one below runs. It has one processor together with the helper
    /// that it makes, and does not give it away, so that it ends before the helper runs.
    #[test]
    #[ignore = "run by another test, in a process of its own"]
    fn dies_as_soon_as_it_has_made_a_helper() {
        let mut one = CpuSet::new();
        one.set(0).expect("a processor");
        sched_setaffinity(Pid::from_raw(0), &one).expect("bound to it");
        let first = libc::sched_param { sched_priority: 1 };
        // SAFETY: the call reads the struct, which lives.
        let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        let holder = Holder::spawn().expect("a helper");
        println!("helper {}", holder.pid());
        kill(Pid::this(), Signal::SIGKILL).expect("killed");
    }

    #[test]
    fn a_helper_ends_whose_maker_died_before_it_ran() {
        for _ in 0..20 {
            let test = "sys::user_ns::tests::dies_as_soon_as_it_has_made_a_helper";
            let mut maker = Command::new("/proc/self/exe")
                .args(["--exact", test, "--ignored", "--nocapture"])
                .stdout(Stdio::piped())
                .spawn()
                .expect("this test's executable");
            let mut said = BufReader::new(maker.stdout.take().expect("piped"));
            let helper = said.by_ref().lines().find_map(|line| {
                let line = line.expect("text");
                let (_, pid) = line.rsplit_once("helper ")?;
                pid.parse::<i32>().ok()
            });
            let helper = Pid::from_raw(helper.expect("a helper"));
            maker.wait().expect("ended");
            // The helper has the pipe's other end as long as it lives.
            let (ended, end) = std::sync::mpsc::channel();
            let reading = std::thread::spawn(move || {
                said.read_to_end(&mut Vec::new()).expect("its end");
                ended.send(()).expect("heard");
            });
            let lives = end.recv_timeout(Duration::from_secs(5)).is_err();
            if lives {
                kill(helper, Signal::SIGKILL).expect("killed");
            }
            reading.join().expect("read");
            assert!(!lives, "the helper {helper} outlives its maker");
        }
    }
}
