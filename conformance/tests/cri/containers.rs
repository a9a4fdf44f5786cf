//! Containers: lives, logs, mounts, limits.

use std::time::{Duration, Instant};

use proto::v1;
use tonic::Code;

use crate::rig::{with_engine, with_own_engine};

#[test]
fn exit_code_reason_and_times_are_true() {
    with_engine(async |rig| {
        let (_, id) = rig.running("exits", &["/bin/sh", "-c", "exit 7"]).await;
        let status = rig.exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
        assert!(status.created_at > 0);
        assert!(status.created_at <= status.started_at, "{status:?}");
        assert!(status.started_at <= status.finished_at, "{status:?}");
    });
}

#[test]
fn a_stop_signal_is_honoured_and_a_deaf_process_is_killed_after_its_grace() {
    with_engine(async |rig| {
        let script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done";
        let (_, id) = rig.running("polite", &["/bin/sh", "-c", script]).await;
        rig.log_with("polite", "up").await;
        rig.client.stop(&id, 10).await.expect("stop");
        assert_eq!(
            rig.client.container(&id).await.expect("status").exit_code,
            9
        );
        let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
        let (_, id) = rig.running("deaf", &["/bin/sh", "-c", script]).await;
        rig.log_with("deaf", "up").await;
        let began = Instant::now();
        rig.client.stop(&id, 1).await.expect("stop");
        assert!(began.elapsed() >= Duration::from_secs(1));
        assert_eq!(
            rig.client.container(&id).await.expect("status").exit_code,
            137
        );
    });
}

#[test]
fn a_later_shorter_grace_shortens_a_stop() {
    with_engine(async |rig| {
        let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
        let (_, id) = rig.running("shorten", &["/bin/sh", "-c", script]).await;
        rig.log_with("shorten", "up").await;
        let mut other = rig.client.clone();
        let (long, short) = tokio::join!(rig.client.stop(&id, 600), async {
            other.stop(&id, 1).await
        });
        long.expect("the long stop ends with the short one");
        short.expect("stop");
    });
}

#[test]
fn the_log_has_both_streams_and_rotation_loses_nothing() {
    with_engine(async |rig| {
        let script = "echo out; echo err >&2; i=0; while [ $i -lt 2000 ]; do echo line$i; i=$((i+1)); done; sleep 1000";
        let (_, id) = rig.running("logs", &["/bin/sh", "-c", script]).await;
        let dir = rig.engine.path("logs/logs/main");
        let request = v1::ReopenContainerLogRequest {
            container_id: id.clone(),
        };
        let mut rotated = Vec::new();
        for number in 0..5 {
            let old = dir.join(format!("0.log.{number}"));
            std::fs::rename(dir.join("0.log"), &old).expect("rotate");
            rig.client
                .runtime
                .reopen_container_log(request.clone())
                .await
                .expect("reopen");
            assert!(dir.join("0.log").exists(), "the new file is there at once");
            rotated.push(old);
        }
        rotated.push(dir.join("0.log"));
        let all = conformance::eventually(crate::rig::deadline(), async || {
            let text: String = rotated
                .iter()
                .map(|path| std::fs::read_to_string(path).unwrap_or_default())
                .collect();
            text.contains("line1999").then_some(text)
        })
        .await
        .expect("all lines");
        assert!(
            all.contains(" stdout F out\n") && all.contains(" stderr F err\n"),
            "{all:.200}"
        );
        let numbers: Vec<usize> = all
            .lines()
            .filter_map(|line| line.rsplit_once("line")?.1.parse().ok())
            .collect();
        assert_eq!(numbers, (0..2000).collect::<Vec<_>>());
    });
}

#[test]
fn a_long_line_is_split_and_marked() {
    with_engine(async |rig| {
        let script = "head -c 40000 /dev/zero; echo; echo end; sleep 1000";
        rig.running("long", &["/bin/sh", "-c", script]).await;
        let log = rig.log_with("long", " end\n").await;
        assert!(log.contains(" stdout P "), "no part is marked");
    });
}

#[test]
fn limits_reach_the_cgroup_and_an_update_is_all_or_nothing() {
    with_engine(async |rig| {
        let (_, id) = rig.running("limits", &["/bin/sleep", "1000"]).await;
        let linux = |status: v1::ContainerStatus| {
            status
                .resources
                .and_then(|resources| resources.linux)
                .expect("limits")
        };
        let update = |linux| v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        let limits = v1::LinuxContainerResources {
            memory_limit_in_bytes: 64 * 1024 * 1024,
            cpu_shares: 512,
            ..Default::default()
        };
        rig.client
            .runtime
            .update_container_resources(update(limits))
            .await
            .expect("update");
        let now = linux(rig.client.container(&id).await.expect("status"));
        assert_eq!(
            (now.memory_limit_in_bytes, now.cpu_shares),
            (64 * 1024 * 1024, 512)
        );
        assert_eq!(now.cpu_quota, 50_000, "what is not given stays");
        let bad = v1::LinuxContainerResources {
            cpu_shares: 256,
            cpuset_cpus: "4096".into(),
            ..Default::default()
        };
        let error = rig
            .client
            .runtime
            .update_container_resources(update(bad))
            .await;
        error.expect_err("no such cpu");
        let after = linux(rig.client.container(&id).await.expect("status"));
        assert_eq!(after.cpu_shares, 512);
        let file = format!("/sys/fs/cgroup/cpu{}/{id}/cpu.shares", rig.cgroup);
        if let Ok(shares) = std::fs::read_to_string(&file) {
            assert_eq!(shares.trim(), "512", "{file}");
        }
    });
}

#[test]
fn limits_that_cannot_be_written_down_are_not_set() {
    use nix::mount::{MsFlags, mount, umount};
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("unwritten", &["/bin/sleep", "1000"]).await;
        let megabytes = |limit: i64| v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: limit << 20,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut client = rig.client.runtime.clone();
        let set = client.update_container_resources(megabytes(64)).await;
        set.expect("update");
        // Nothing can be written there, as on a full disk.
        let records = rig.engine.path("root/pods").join(&pod).join("containers");
        let nothing = None::<&str>;
        for flags in [
            MsFlags::MS_BIND,
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        ] {
            mount(Some(&records), &records, nothing, flags, nothing).expect("mount");
        }
        let mut both = [client.clone(), client.clone()];
        let [one, other] = &mut both;
        let (one, other) = tokio::join!(
            one.update_container_resources(megabytes(96)),
            other.update_container_resources(megabytes(80))
        );
        one.expect_err("it cannot be written down");
        other.expect_err("nor can this one");
        umount(&records).expect("unmount");
        let own = rig.engine.cgroup_of(&pod, &id);
        let limits = [
            format!("memory{own}/memory.limit_in_bytes"),
            format!("{}/memory.max", own.trim_start_matches('/')),
            format!("unified{own}/memory.max"),
        ];
        let limit = || {
            let mut files = limits.iter().map(|file| format!("/sys/fs/cgroup/{file}"));
            let text = files.find_map(|file| std::fs::read_to_string(file).ok());
            text.expect("a limit").trim().parse::<i64>().expect("bytes")
        };
        assert_eq!(limit(), 64 << 20);
        for _ in 0..2 {
            let status = rig.client.container(&id).await.expect("status");
            let linux = status.resources.and_then(|all| all.linux);
            assert_eq!(linux.expect("limits").memory_limit_in_bytes, 64 << 20);
            rig.crash_and_restart().await;
        }
        let mut client = rig.client.runtime.clone();
        let again = client.update_container_resources(megabytes(96)).await;
        again.expect("there is room again");
        assert_eq!(limit(), 96 << 20);
    });
}

#[test]
fn a_process_that_cannot_be_executed_is_a_start_error() {
    with_engine(async |rig| {
        let sandbox = rig.sandbox("nothing");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let config = rig.container("main", &["/bin/not-there"]);
        let id = rig
            .client
            .create(&pod, &config, &sandbox)
            .await
            .expect("create");
        let error = rig.client.start(&id).await.expect_err("nothing to run");
        assert!(error.message().contains("not-there"), "{error}");
        let status = rig.exited(&id).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError")
        );
        assert!(status.message.contains("not-there"), "{status:?}");
    });
}

#[test]
fn a_removed_running_container_is_killed_and_gone() {
    with_engine(async |rig| {
        let (_, id) = rig.running("force", &["/bin/sleep", "1000"]).await;
        rig.client.remove(&id).await.expect("remove");
        rig.client.remove(&id).await.expect("remove twice");
        let error = rig.client.container(&id).await.expect_err("gone");
        assert_eq!(error.code(), Code::NotFound);
    });
}

#[test]
fn users_groups_and_environment_come_from_request_and_image() {
    with_own_engine(async |rig| {
        let sandbox = rig.sandbox("users");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        config.envs = vec![v1::KeyValue {
            key: "A".into(),
            value: b"b c".to_vec(),
        }];
        let context = config
            .linux
            .as_mut()
            .expect("linux")
            .security_context
            .as_mut();
        let context = context.expect("context");
        context.run_as_username = "nobody".into();
        context.supplemental_groups = vec![777];
        let id = rig.started(&pod, &config, &sandbox).await;
        let ids = rig.client.exec(&id, &["id"], 5).await.expect("exec").stdout;
        assert!(
            ids.contains("uid=65534") && ids.contains("777") && ids.contains("4242"),
            "{ids}"
        );
        let env = rig
            .client
            .exec(&id, &["env"], 5)
            .await
            .expect("exec")
            .stdout;
        assert!(
            env.contains("A=b c\n") && env.contains("HOSTNAME=users\n"),
            "{env}"
        );
        let user = rig
            .client
            .container(&id)
            .await
            .expect("status")
            .user
            .and_then(|user| user.linux);
        let user = user.expect("user");
        assert_eq!((user.uid, user.gid), (65534, 65534));
        assert_eq!(user.supplemental_groups, [777, 4242, 65534]);
    });
}

#[test]
fn seccomp_and_capabilities_hold_for_the_process_and_for_exec() {
    with_engine(async |rig| {
        let script = "cat /proc/self/status; sleep 1000";
        let (_, id) = rig.running("confined", &["/bin/sh", "-c", script]).await;
        let log = rig.log_with("confined", "Seccomp:").await;
        let exec = rig
            .client
            .exec(&id, &["cat", "/proc/self/status"], 5)
            .await
            .expect("exec");
        let value = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.contains(name)).expect(name);
            line.split_whitespace()
                .next_back()
                .expect("a value")
                .to_owned()
        };
        // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
        // net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
        let default = "00000000a80425fb";
        for text in [log.as_str(), exec.stdout.as_str()] {
            assert_eq!(value(text, "Seccomp:"), "2");
            for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
                assert_eq!(value(text, set), default, "{set} {text}");
            }
            assert_eq!(value(text, "CapAmb:"), "0000000000000000");
        }
    });
}

#[test]
fn a_volume_is_seen_on_both_sides_and_read_only_holds() {
    with_engine(async |rig| {
        let volume = rig.engine.path("volume");
        std::fs::create_dir_all(&volume).expect("volume");
        let sandbox = rig.sandbox("volumes");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let mount = |path: &str, readonly| v1::Mount {
            container_path: path.to_owned(),
            host_path: volume.to_string_lossy().into_owned(),
            readonly,
            ..Default::default()
        };
        config.mounts = vec![mount("/rw", false), mount("/ro", true)];
        let id = rig.started(&pod, &config, &sandbox).await;
        let made = rig
            .client
            .exec(&id, &["touch", "/rw/file"], 5)
            .await
            .expect("exec");
        assert_eq!(made.code, 0, "{made:?}");
        assert!(volume.join("file").exists());
        let refused = rig
            .client
            .exec(&id, &["touch", "/ro/other"], 5)
            .await
            .expect("exec");
        assert!(refused.stderr.contains("Read-only"), "{refused:?}");
        let seen = rig.client.container(&id).await.expect("status").mounts;
        assert_eq!(seen, config.mounts);
    });
}
