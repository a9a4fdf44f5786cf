//! Signals of the API to those of the kernel and back.

use proto::v1::Signal;

/// The names of the API in the order of its numbers, from 1 on.
const NAMES: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

const KERNEL: [i32; 34] = [
    libc::SIGABRT,
    libc::SIGALRM,
    libc::SIGBUS,
    libc::SIGCHLD,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGFPE,
    libc::SIGHUP,
    libc::SIGILL,
    libc::SIGINT,
    libc::SIGIO,
    libc::SIGABRT,
    libc::SIGKILL,
    libc::SIGPIPE,
    libc::SIGIO,
    libc::SIGPROF,
    libc::SIGPWR,
    libc::SIGQUIT,
    libc::SIGSEGV,
    libc::SIGSTKFLT,
    libc::SIGSTOP,
    libc::SIGSYS,
    libc::SIGTERM,
    libc::SIGTRAP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGVTALRM,
    libc::SIGWINCH,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

const RTMIN_IN_API: i32 = Signal::Sigrtmin as i32;
const RTMAX_IN_API: i32 = Signal::Sigrtmax as i32;
/// What glibc leaves of the kernel's real-time signals: 34 to 64.
const RTMIN: i32 = 34;

/// A signal of the API as the kernel's number; `None` for the default.
pub(crate) fn to_kernel(signal: Signal) -> Option<i32> {
    let api = signal as i32;
    match api {
        0 => None,
        RTMIN_IN_API..=RTMAX_IN_API => Some(RTMIN + api - RTMIN_IN_API),
        _ => usize::try_from(api - 1)
            .ok()
            .and_then(|at| KERNEL.get(at))
            .copied(),
    }
}

/// A signal of the kernel as the API's; the default for what it has no name for.
pub(crate) fn from_kernel(signal: i32) -> Signal {
    let api = if signal >= RTMIN {
        RTMIN_IN_API + signal - RTMIN
    } else {
        let at = KERNEL.iter().position(|known| *known == signal);
        at.and_then(|at| i32::try_from(at + 1).ok())
            .unwrap_or_default()
    };
    Signal::try_from(api).unwrap_or(Signal::RuntimeDefault)
}

/// A signal as an image names it: a number, or a name with or without `SIG`.
pub(crate) fn parse(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let offset = |rest: &str| {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.get(1..).and_then(|n| n.parse::<i32>().ok())
        }
    };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => offset(rest).map(|n| RTMIN + n),
        (_, Some(rest)) => offset(rest).map(|n| 64 - n),
        _ => NAMES
            .iter()
            .position(|known| *known == name)
            .map(|at| KERNEL[at]),
    };
    real_time.filter(|number| (1..=64).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_survive_the_round_trip() {
        for number in 1..=65 {
            let api = Signal::try_from(number).expect("known");
            let kernel = to_kernel(api).expect("not the default");
            // SIGCLD, SIGIOT and SIGPOLL are second names.
            assert_eq!(to_kernel(from_kernel(kernel)), Some(kernel), "{api:?}");
        }
        assert_eq!(to_kernel(Signal::RuntimeDefault), None);
        assert_eq!(to_kernel(Signal::Sigrtmax), Some(64));
    }

    #[test]
    fn an_image_names_signals_in_many_ways() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "SIG", "0", "65", "SIGNOPE", "RTMIN+99"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
