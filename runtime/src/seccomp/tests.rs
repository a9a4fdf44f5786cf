//! Profiles, compiled and loaded into child processes.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, Capability, LinuxSeccomp, LinuxSeccompAction};
use serde_json::json;

use super::compact::{compact, rewrite, starts};
use super::compile::{compile, uncompacted};
use super::program::{
    AND, ARCH, Instruction, JUMP, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, JUMP_SET, LOAD, NUMBER,
    Program, RETURN,
};
use super::{Cache, SeccompError, by_capability, default_for, default_profile, parse};
use crate::sys::filtered_child::{Abi, Call, Report, run};

const EPERM: i64 = -(libc::EPERM as i64);
const ENOSYS: i64 = -(libc::ENOSYS as i64);

fn call(number: i64, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    (number, all)
}

fn profile(value: &serde_json::Value) -> LinuxSeccomp {
    parse(value.to_string().as_bytes()).unwrap()
}

fn under(profile: &LinuxSeccomp, calls: &[Call]) -> Report {
    run(&compile(profile).unwrap(), calls, Abi::Native)
}

fn results(profile: &LinuxSeccomp, calls: &[Call]) -> Vec<i64> {
    under(profile, calls)
        .results
        .into_iter()
        .map(Option::unwrap)
        .collect()
}

#[test]
fn default_profile_is_loaded_and_lets_programs_live() {
    let report = under(default_profile(), &[call(libc::SYS_getppid, &[])]);
    assert_eq!(report.results, [Some(std::process::id().into())]);
    assert!(
        report.status.contains("\nSeccomp:\t2\n"),
        "{}",
        report.status
    );
    assert_eq!(report.signal, None);
}

#[test]
fn default_profile_denies_what_escapes() {
    let denied = [
        call(libc::SYS_mount, &[]),
        call(libc::SYS_umount2, &[]),
        call(libc::SYS_unshare, &[libc::CLONE_NEWUSER as u64]),
        call(libc::SYS_setns, &[]),
        call(libc::SYS_keyctl, &[]),
        call(libc::SYS_add_key, &[]),
        call(libc::SYS_request_key, &[]),
        call(libc::SYS_io_uring_setup, &[]),
        call(libc::SYS_userfaultfd, &[]),
        call(libc::SYS_bpf, &[]),
        call(libc::SYS_perf_event_open, &[]),
        call(libc::SYS_kexec_load, &[]),
        call(libc::SYS_init_module, &[]),
        call(libc::SYS_open_by_handle_at, &[]),
        call(libc::SYS_sethostname, &[]),
        call(libc::SYS_chroot, &[]),
        call(libc::SYS_syslog, &[]),
        call(libc::SYS_reboot, &[]),
        call(libc::SYS_open_tree, &[]),
        call(libc::SYS_pidfd_getfd, &[]),
    ];
    assert_eq!(
        results(default_profile(), &denied),
        vec![EPERM; denied.len()]
    );
}

#[test]
fn default_profile_allows_ptrace_and_looking_around() {
    let calls = [
        call(libc::SYS_ptrace, &[libc::PTRACE_PEEKUSER.into(), 0]),
        call(libc::SYS_personality, &[0xffff_ffff]),
        call(libc::SYS_personality, &[0xffff_ffff_ffff_ffff]),
        call(libc::SYS_prctl, &[libc::PR_GET_DUMPABLE as u64]),
    ];
    assert_eq!(
        results(default_profile(), &calls),
        [-i64::from(libc::ESRCH), 0, 0, 1]
    );
}

#[test]
fn default_profile_limits_personalities() {
    let calls = [
        call(libc::SYS_personality, &[libc::ADDR_NO_RANDOMIZE as u64]),
        call(libc::SYS_personality, &[0x0020_0000]),
        call(libc::SYS_personality, &[0x0002_0000]),
    ];
    assert_eq!(results(default_profile(), &calls), [EPERM, ENOSYS, 0]);
}

#[test]
fn default_profile_refuses_namespaces_in_clone_and_hides_clone3() {
    let mut calls = vec![call(libc::SYS_clone3, &[])];
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        calls.push(call(libc::SYS_clone, &[flag as u64]));
        // The kernel ignores the upper half, the filter must too.
        calls.push(call(libc::SYS_clone, &[flag as u64 | 1 << 40]));
    }
    // CLONE_SIGHAND without CLONE_VM: allowed here, refused by the kernel.
    calls.push(call(libc::SYS_clone, &[libc::CLONE_SIGHAND as u64]));
    let mut want = vec![EPERM; calls.len()];
    want[0] = ENOSYS;
    want[calls.len() - 1] = -i64::from(libc::EINVAL);
    assert_eq!(results(default_profile(), &calls), want);
}

#[test]
fn default_profile_opens_no_vsock_and_no_kernel_crypto_socket() {
    let open = |family: u64| call(libc::SYS_socket, &[family, libc::SOCK_STREAM as u64]);
    let calls = [
        open(38),
        open(40),
        open(38 | 1 << 32),
        open(40 | 1 << 32),
        open(48),
    ];
    for result in results(default_profile(), &calls) {
        assert_eq!(result, ENOSYS);
    }
    for result in results(
        default_profile(),
        &[open(1), open(2), open(10), open(1 | 1 << 32)],
    ) {
        assert!(result > 0, "{result}");
    }
}

#[test]
fn calls_newer_than_libseccomp_are_answered_by_name() {
    let calls = [
        call(451, &[u64::MAX]), // cachestat: allowed, bad descriptor
        call(452, &[u64::MAX]), // fchmodat2: allowed, bad address
        call(467, &[u64::MAX]), // open_tree_attr: needs a capability
        call(460, &[]),         // lsm_set_self_attr: likewise
        call(9999, &[]),        // nobody knows
    ];
    let got = results(default_profile(), &calls);
    assert!(
        ![EPERM, 0].contains(&got[0]) && ![EPERM, 0].contains(&got[1]),
        "{got:?}"
    );
    assert_eq!(got[2..], [EPERM, EPERM, ENOSYS]);
}

#[test]
fn numbers_above_the_profile_answer_enosys_unless_it_lets_calls_pass() {
    let mut value = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{
            "names": ["read", "write", "exit_group", "mlock2"],
            "action": "SCMP_ACT_ALLOW"
        }]
    });
    let calls = [
        call(libc::SYS_getppid, &[]),
        call(libc::SYS_mlock2, &[0, 0, 9]),
        call(libc::SYS_statx, &[]),
        call(460, &[]),
    ];
    let invalid = -i64::from(libc::EINVAL);
    assert_eq!(
        results(&profile(&value), &calls),
        [EPERM, invalid, ENOSYS, ENOSYS]
    );
    value["defaultAction"] = "SCMP_ACT_LOG".into();
    assert!(results(&profile(&value), &calls[..1])[0] > 0);
}

#[test]
fn the_32_bit_entry_is_filtered_too() {
    // i386 numbers: getppid, mount, umount, clone3, one nobody knows, and
    // socketcall, by which most 32-bit programs reach the network.
    let calls = [
        call(64, &[]),
        call(21, &[]),
        call(22, &[]),
        call(435, &[]),
        call(9999, &[]),
        call(102, &[1, 0]),
    ];
    let open = profile(&json!({ "defaultAction": "SCMP_ACT_LOG",
        "architectures": ["SCMP_ARCH_NATIVE", "SCMP_ARCH_X86"] }));
    let report = compile(&open)
        .ok()
        .map(|filter| run(&filter, &calls[..1], Abi::I386));
    let entry = report.and_then(|report| report.results[0]);
    if entry != Some(std::process::id().into()) {
        // Another architecture, or a kernel without 32-bit calls.
        return;
    }
    let report = run(&compile(default_profile()).unwrap(), &calls, Abi::I386);
    let got: Vec<i64> = report.results.into_iter().map(Option::unwrap).collect();
    let fault = -i64::from(libc::EFAULT);
    assert_eq!(
        got,
        [
            std::process::id().into(),
            EPERM,
            EPERM,
            ENOSYS,
            ENOSYS,
            fault
        ]
    );
    // A profile without the architecture kills whoever enters that way.
    let native = profile(&json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["reboot"], "action": "SCMP_ACT_ERRNO" }] }));
    let report = run(&compile(&native).unwrap(), &calls[..1], Abi::I386);
    assert_eq!(report.signal, Some(libc::SIGSYS));
}

#[test]
fn x32_numbers_are_missing_calls_unless_the_profile_has_the_architecture() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let getppid = [call(libc::SYS_getppid | 0x4000_0000, &[])];
    assert_eq!(results(default_profile(), &getppid), [ENOSYS]);
    let deny = |arches: serde_json::Value| {
        profile(
            &json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": arches,
            "syscalls": [{ "names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 }] }),
        )
    };
    assert_eq!(
        results(&deny(json!(["SCMP_ARCH_X86_64"])), &getppid),
        [ENOSYS]
    );
    let both = deny(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]));
    assert_eq!(results(&both, &getppid), [-77]);
    // Newer calls are told apart as well.
    let newer = profile(&json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_X86"],
        "syscalls": [{ "names": ["mseal"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 }] }));
    let calls = [
        call(462, &[]),
        call(462 | 0x4000_0000, &[]),
        call(libc::SYS_getppid, &[]),
    ];
    assert_eq!(
        results(&newer, &calls),
        [-77, -77, std::process::id().into()]
    );
}

#[test]
fn a_capability_opens_its_own_calls_only() {
    let calls = [
        call(libc::SYS_mount, &[]),
        call(libc::SYS_clone3, &[]),
        call(
            libc::SYS_clone,
            &[libc::CLONE_NEWPID as u64 | libc::CLONE_SIGHAND as u64],
        ),
        call(libc::SYS_chroot, &[]),
        call(libc::SYS_keyctl, &[]),
        call(libc::SYS_reboot, &[]),
    ];
    let admin = results(&default_for(&[Capability::SysAdmin]), &calls);
    assert!(
        admin[..3]
            .iter()
            .all(|&result| ![EPERM, ENOSYS].contains(&result)),
        "{admin:?}"
    );
    assert_eq!(admin[3..], [EPERM; 3]);
    let chroot = results(
        &default_for(&[Capability::SysChroot, Capability::Chown]),
        &calls,
    );
    assert_eq!(chroot[..3], [EPERM, ENOSYS, EPERM]);
    assert_eq!(chroot[3], -i64::from(libc::EFAULT));
}

#[test]
fn the_capability_table_names_capabilities_and_calls_that_exist() {
    let denied: Vec<&String> = default_profile()
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.action() != LinuxSeccompAction::ScmpActAllow)
        .flat_map(|rule| rule.names())
        .collect();
    assert_eq!(by_capability().len(), 14);
    for (capability, calls) in by_capability() {
        let short = capability.strip_prefix("CAP_").unwrap();
        assert!(short.parse::<Capability>().is_ok(), "{capability}");
        for name in calls {
            assert!(
                denied.contains(&name) || name == "clone3",
                "{name} is not denied before"
            );
        }
    }
}

#[test]
fn default_profile_names_each_call_once_and_none_in_vain() {
    let profile = default_profile();
    assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActErrno);
    let mut plain = std::collections::HashSet::new();
    for rule in profile
        .syscalls()
        .iter()
        .flatten()
        .filter(|rule| rule.args().is_none())
    {
        for name in rule.names() {
            assert!(plain.insert(name), "{name} stands twice");
            let newer = super::newer::is_known(name);
            assert!(
                newer || ScmpSyscall::from_name(name).is_ok(),
                "{name} is no system call"
            );
        }
    }
    for name in ["socket", "clone", "personality"] {
        assert!(!plain.contains(&name.to_owned()));
    }
}

#[test]
fn operators_and_actions_do_what_they_say() {
    let rule = |action: &str, op: &str, value: u64, two: u64, errno: u32| {
        json!({
            "names": ["getpgid"], "action": action, "errnoRet": errno,
            "args": [{ "index": 0, "op": op, "value": value, "valueTwo": two }]
        })
    };
    for (op, value, two, hit, miss) in [
        ("SCMP_CMP_EQ", 7, 0, 7, 8),
        ("SCMP_CMP_NE", 7, 0, 8, 7),
        ("SCMP_CMP_LT", 7, 0, 6, 7),
        ("SCMP_CMP_LE", 7, 0, 7, 8),
        ("SCMP_CMP_GT", 7, 0, 8, 7),
        ("SCMP_CMP_GE", 7, 0, 7, 6),
        ("SCMP_CMP_MASKED_EQ", 0xf0, 0x50, 0x5a, 0x6a),
    ] {
        let value = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            rule("SCMP_ACT_ERRNO", op, value, two, 77)] });
        let calls = [hit, miss].map(|arg| call(libc::SYS_getpgid, &[arg]));
        let got = results(&profile(&value), &calls);
        assert_eq!(got[0], -77, "{op}");
        assert_ne!(got[1], -77, "{op}");
    }
    for (action, signal) in [
        ("SCMP_ACT_KILL", libc::SIGSYS),
        ("SCMP_ACT_KILL_PROCESS", libc::SIGSYS),
        ("SCMP_ACT_TRAP", libc::SIGSYS),
    ] {
        let value = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["getppid"], "action": action }] });
        assert_eq!(
            under(&profile(&value), &[call(libc::SYS_getppid, &[])]).signal,
            Some(signal)
        );
    }
    // Nobody traces, nobody listens: both answer ENOSYS. Logging lets pass.
    for (action, want) in [
        ("SCMP_ACT_TRACE", ENOSYS),
        ("SCMP_ACT_NOTIFY", ENOSYS),
        ("SCMP_ACT_LOG", std::process::id().into()),
    ] {
        let value = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["getppid"], "action": action }] });
        assert_eq!(
            results(&profile(&value), &[call(libc::SYS_getppid, &[])]),
            [want],
            "{action}"
        );
    }
}

#[test]
fn comparisons_of_one_argument_mean_any_of_them() {
    let value = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
        "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77,
        "args": [{ "index": 0, "op": "SCMP_CMP_EQ", "value": 7 },
                 { "index": 0, "op": "SCMP_CMP_EQ", "value": 9 }]
    }] });
    let calls = [7, 8, 9].map(|arg| call(libc::SYS_getpgid, &[arg]));
    let got = results(&profile(&value), &calls);
    assert_eq!((got[0], got[2]), (-77, -77));
    assert_ne!(got[1], -77);
}

#[test]
fn unknown_calls_are_skipped_and_unknown_words_are_errors() {
    let base = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["no_such_call", "getppid"], "action": "SCMP_ACT_ERRNO" }] });
    assert_eq!(
        results(&profile(&base), &[call(libc::SYS_getppid, &[])]),
        [EPERM]
    );
    for (pointer, word) in [
        ("/defaultAction", "SCMP_ACT_MAYBE"),
        ("/syscalls/0/action", "SCMP_ACT_WHATEVER"),
    ] {
        let mut broken = base.clone();
        *broken.pointer_mut(pointer).unwrap() = word.into();
        let error = parse(broken.to_string().as_bytes()).unwrap_err();
        let SeccompError::Parse { source } = error else {
            panic!("{error}")
        };
        assert!(source.to_string().contains(word), "{source}");
    }
    let mut broken = base.clone();
    broken["syscalls"][0]["args"] = json!([{ "index": 0, "op": "SCMP_CMP_LIKE", "value": 1 }]);
    let SeccompError::Parse { source } = parse(broken.to_string().as_bytes()).unwrap_err() else {
        panic!()
    };
    assert!(source.to_string().contains("SCMP_CMP_LIKE"), "{source}");
    broken["syscalls"][0]["args"] = json!([{ "index": 6, "op": "SCMP_CMP_EQ", "value": 1 }]);
    assert!(matches!(
        compile(&profile(&broken)),
        Err(SeccompError::Argument { .. })
    ));
}

#[test]
fn conditional_rules_of_other_formats_are_refused() {
    let value = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        { "names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {}, "excludes": {} },
        { "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } }
    ] });
    let error = parse(value.to_string().as_bytes()).unwrap_err();
    assert!(
        matches!(
            error,
            SeccompError::Conditional {
                rule: 1,
                key: "includes"
            }
        ),
        "{error}"
    );
}

#[test]
fn architectures_of_other_machines_are_accepted_or_named() {
    let with = |arch: &str| {
        profile(&json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NATIVE", arch],
        "syscalls": [{ "names": ["getppid"], "action": "SCMP_ACT_ERRNO" }] }))
    };
    for arch in [
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_AARCH64",
    ] {
        assert_eq!(
            results(&with(arch), &[call(libc::SYS_getppid, &[])]),
            [EPERM],
            "{arch}"
        );
    }
    let error = compile(&with("SCMP_ARCH_S390X")).unwrap_err();
    assert!(error.to_string().contains("SCMP_ARCH_S390X"), "{error}");
    assert_eq!(Arch::ScmpArchX86_64.to_string(), "SCMP_ARCH_X86_64");
    assert_ne!(ScmpArch::native(), ScmpArch::Native);
}

#[test]
fn the_cache_compiles_a_profile_once() {
    let cache = Cache::new();
    let first = cache.get(default_profile()).unwrap();
    let again = cache.get(&default_profile().clone()).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &again));
    let other = cache.get(&default_for(&[Capability::SysAdmin])).unwrap();
    assert!(first != other);
    assert!(first.len() / 8 < 2048, "{} instructions", first.len() / 8);
}

/// Runs a filter on a call with all its arguments.
fn answer(code: &[Instruction], arch: u32, number: u32, args: &[u32; 12]) -> u32 {
    let (mut at, mut word) = (0, 0);
    loop {
        let one = code[at];
        let holds = match one.op {
            LOAD => {
                word = match one.value {
                    NUMBER => number,
                    ARCH => arch,
                    offset => args[usize::try_from(offset - 16).unwrap() / 4],
                };
                true
            }
            AND => {
                word &= one.value;
                true
            }
            RETURN => return one.value,
            JUMP => {
                at += 1 + usize::try_from(one.value).unwrap();
                continue;
            }
            JUMP_EQUAL => word == one.value,
            JUMP_GREATER => word > one.value,
            JUMP_AT_LEAST => word >= one.value,
            JUMP_SET => word & one.value != 0,
            op => panic!("{op:#x}"),
        };
        at += 1 + usize::from(if holds { one.if_true } else { one.if_false });
    }
}

/// Values on either side of all that arguments are compared with.
fn interesting(code: &[Instruction]) -> Vec<u32> {
    let mut values: Vec<u32> = [0, 1, u32::MAX].into();
    for one in code.iter().filter(|one| one.op != LOAD && one.op != RETURN) {
        values.extend([one.value.wrapping_sub(1), one.value, one.value | 1 << 30]);
    }
    values.sort_unstable();
    values.dedup();
    values
}

#[test]
fn a_compacted_filter_answers_as_before() {
    let only_some = profile(&json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            { "names": ["openat", "write"], "action": "SCMP_ACT_KILL" },
            { "names": ["close"], "action": "SCMP_ACT_LOG" },
            { "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
              "args": [{ "index": 0, "value": 5, "op": "SCMP_CMP_GT" },
                       { "index": 2, "value": 1_u64 << 40, "op": "SCMP_CMP_LE" }] },
            { "names": ["ioctl"], "action": "SCMP_ACT_TRAP",
              "args": [{ "index": 1, "value": 0xff00, "valueTwo": 0x1200, "op": "SCMP_CMP_MASKED_EQ" }] },
        ],
    }));
    let all = [Capability::SysAdmin, Capability::SysPtrace, Capability::Bpf];
    for profile in [default_profile(), &default_for(&all), &only_some] {
        let before = uncompacted(profile).unwrap().code;
        let after = rewrite(&before).expect("understood").code;
        let numbers = starts(&before);
        let values = interesting(&before);
        for arch in [0xc000_003e, 0x4000_0003, 0xc000_00b7, 0x4000_0028, 1] {
            for &number in &numbers {
                let args = |seed: usize| {
                    let mut value = |place: usize| values[(seed * 31 + place * 17) % values.len()];
                    std::array::from_fn(&mut value)
                };
                for seed in 0..40 {
                    let args: [u32; 12] = if seed == 0 {
                        [0; 12]
                    } else {
                        args(seed + number as usize)
                    };
                    assert_eq!(
                        answer(&before, arch, number, &args),
                        answer(&after, arch, number, &args),
                        "{arch:#x} {number:#x} {args:x?}"
                    );
                }
            }
        }
    }
}

/// The kernel translates it for every process that is started.
#[test]
fn the_default_filter_is_short() {
    let before = uncompacted(default_profile()).unwrap().code.len();
    let after = Program::parse(&compile(default_profile()).unwrap())
        .code
        .len();
    assert!(after * 3 < before, "{before} became {after}");
}

#[test]
fn a_filter_that_is_not_understood_stays_as_it_was() {
    let mut code = uncompacted(default_profile()).unwrap();
    // A word of the memory for notes: nothing here writes one.
    code.code.insert(0, Instruction::new(0x60, 0, 0, 0));
    assert!(compact(&code).is_none());
}
