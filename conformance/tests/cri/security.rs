//! What a security context grants: groups, capabilities, an open /proc, the node.

use proto::v1;

use crate::rig::{Rig, with_engine};

fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().expect("linux");
    linux.security_context.as_mut().expect("a security context")
}

/// What a script in a container prints; both streams.
async fn prints(rig: &mut Rig, id: &str, script: &str) -> String {
    let output = rig.client.exec(id, &["/bin/sh", "-c", script], 10).await;
    let output = output.expect("exec");
    format!("{}{}", output.stdout, output.stderr)
}

#[test]
fn a_strict_policy_leaves_the_images_groups_out() {
    with_engine(async |rig| {
        let status = rig
            .client
            .runtime
            .status(v1::StatusRequest::default())
            .await;
        let features = status.expect("status").into_inner().features;
        assert!(features.expect("features").supplemental_groups_policy);
        let sandbox = rig.sandbox("groups");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        for (policy, groups) in [
            (v1::SupplementalGroupsPolicy::Merge, vec![777, 4242, 65534]),
            (v1::SupplementalGroupsPolicy::Strict, vec![777, 65534]),
        ] {
            let name = format!("{policy:?}").to_lowercase();
            let mut config = rig.container(&name, &["/bin/sleep", "1000"]);
            let wanted = context(&mut config);
            // In the image's /etc/group this user is in group 4242 as well.
            wanted.run_as_username = "nobody".to_owned();
            wanted.supplemental_groups = vec![777];
            wanted.supplemental_groups_policy = policy as i32;
            let id = rig.started(&pod, &config, &sandbox).await;
            let status = rig.client.container(&id).await.expect("status");
            let user = status.user.and_then(|user| user.linux).expect("a user");
            assert_eq!(user.supplemental_groups, groups, "{policy:?}");
            for process in ["1", "self"] {
                let script = format!("grep Groups: /proc/{process}/status");
                let said = prints(rig, &id, &script).await;
                let mut ids: Vec<i64> = said
                    .split_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect();
                ids.sort_unstable();
                assert_eq!(ids, groups, "{policy:?} {process}: {said}");
            }
        }
    });
}

/// The kernel gives them to a program of a user without privileges.
#[test]
fn ambient_capabilities_are_what_a_user_without_others_has() {
    with_engine(async |rig| {
        let sandbox = rig.sandbox("ambient");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        let wanted = context(&mut config);
        wanted.run_as_user = Some(v1::Int64Value { value: 1000 });
        wanted.no_new_privs = true;
        wanted.capabilities = Some(v1::Capability {
            drop_capabilities: vec!["ALL".to_owned()],
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
            ..Default::default()
        });
        let id = rig.started(&pod, &config, &sandbox).await;
        // CAP_NET_BIND_SERVICE is the tenth.
        let one = "0000000000000400";
        for process in ["1", "self"] {
            let said = prints(rig, &id, &format!("grep ^Cap /proc/{process}/status")).await;
            for line in said.lines() {
                assert!(line.ends_with(one), "{process}: {said}");
            }
            assert_eq!(said.lines().count(), 5, "{said}");
        }
    });
}

/// `procMount: Unmasked`, as the kubelet asks for it.
#[test]
fn empty_lists_of_paths_leave_proc_open() {
    with_engine(async |rig| {
        let sandbox = rig.sandbox("unmasked");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let script = "grep -c ' /proc/' /proc/self/mounts; wc -c </proc/timer_list; \
                      ( : >>/proc/sys/net/ipv4/ip_forward ) 2>&1 | grep -o 'Read-only'";
        for (name, open) in [("masked", false), ("unmasked", true)] {
            let mut config = rig.container(name, &["/bin/sleep", "1000"]);
            let wanted = context(&mut config);
            if open {
                wanted.masked_paths.clear();
                wanted.readonly_paths.clear();
            } else {
                wanted.masked_paths = vec!["/proc/timer_list".to_owned()];
                wanted.readonly_paths = vec!["/proc/sys".to_owned()];
            }
            let id = rig.started(&pod, &config, &sandbox).await;
            let said = prints(rig, &id, script).await;
            match open {
                true => assert!(said.starts_with("0\n") && !said.contains("\n0\n"), "{said}"),
                false => assert_eq!(said, "2\n0\nRead-only\n"),
            }
        }
    });
}

#[test]
fn a_privileged_container_has_the_nodes_devices_and_an_ordinary_one_has_none_of_them() {
    with_engine(async |rig| {
        let mut sandbox = rig.sandbox("privileged");
        let linux = sandbox.linux.as_mut().expect("linux");
        let of_pod = linux.security_context.as_mut().expect("a security context");
        of_pod.privileged = true;
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("all", &["/bin/sleep", "1000"]);
        let wanted = context(&mut config);
        wanted.privileged = true;
        // Lists that a client sends all the same say nothing to it.
        wanted.masked_paths = vec!["/proc/timer_list".to_owned()];
        wanted.readonly_paths = vec!["/proc/sys".to_owned()];
        let all = rig.started(&pod, &config, &sandbox).await;
        let config = rig.container("few", &["/bin/sleep", "1000"]);
        let few = rig.started(&pod, &config, &sandbox).await;
        let flags =
            "grep -E ' (/sys|/sys/fs/cgroup) ' /proc/self/mounts | cut -d' ' -f4 | cut -d, -f1";
        assert_eq!(prints(rig, &all, flags).await, "rw\nrw\n");
        assert_eq!(prints(rig, &few, flags).await, "ro\nro\n");
        let seccomp = "grep ^Seccomp: /proc/1/status | tr -d '\t'";
        assert_eq!(prints(rig, &all, seccomp).await, "Seccomp:0\n");
        let below_proc = "grep -c ' /proc/' /proc/self/mounts";
        assert_eq!(prints(rig, &all, below_proc).await, "0\n");
        // A node that the default rules do not name: /dev/kmsg is 1:11.
        let open = "mknod /tmp/k c 1 11; ( : </tmp/k ) 2>&1 | grep -o 'not permitted'";
        assert_eq!(prints(rig, &few, open).await, "not permitted\n");
        assert_eq!(prints(rig, &all, open).await, "");
        let nodes = "ls /dev | grep -vE '^(pts|shm|mqueue|fd|std.*|core|console|ptmx)$' | wc -l";
        let count = |text: String| text.trim().parse::<usize>().expect("a number");
        let (many, usual) = (
            count(prints(rig, &all, nodes).await),
            count(prints(rig, &few, nodes).await),
        );
        assert_eq!(usual, 6, "null, zero, full, random, urandom, tty");
        let host = std::fs::read_dir("/dev")
            .expect("/dev")
            .filter_map(Result::ok);
        let host = host.filter(|entry| {
            use std::os::unix::fs::FileTypeExt;
            let kind = entry.file_type().expect("a type");
            kind.is_char_device() || kind.is_block_device()
        });
        assert!(many + 3 >= host.count() && many >= usual, "{many}");
    });
}

/// Labels are not set yet: a kernel that knows them must not be told otherwise.
#[test]
fn a_label_is_refused_where_the_kernel_has_selinux_and_passed_over_elsewhere() {
    with_engine(async |rig| {
        let known = std::fs::read_to_string("/proc/filesystems").expect("filesystems");
        let enabled = known.contains("\tselinuxfs\n");
        let label = v1::SeLinuxOption {
            level: "s0:c1,c2".to_owned(),
            ..Default::default()
        };
        let plain = rig.sandbox("labelled");
        let mut sandbox = plain.clone();
        let linux = sandbox.linux.as_mut().expect("linux");
        let of_pod = linux.security_context.as_mut().expect("a security context");
        of_pod.selinux_options = Some(label.clone());
        let refused = |error: &tonic::Status| {
            assert_eq!(error.code(), tonic::Code::Unimplemented, "{error}");
            assert!(error.message().contains("selinux_options"), "{error}");
        };
        let pod = match rig.client.run_pod(&sandbox).await {
            Ok(pod) if !enabled => pod,
            Ok(pod) => panic!("{pod} has a label that is not set"),
            Err(error) => {
                assert!(enabled, "{error}");
                refused(&error);
                rig.client.run_pod(&plain).await.expect("run")
            }
        };
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        context(&mut config).selinux_options = Some(label);
        match rig.client.create(&pod, &config, &plain).await {
            Ok(id) => assert!(!enabled, "{id} has a label that is not set"),
            Err(error) => refused(&error),
        }
    });
}
