//! Bad requests get a code, name the field, and change nothing.

use proto::v1;
use tonic::Code;

use crate::rig::with_own_engine;

#[test]
fn bad_sandboxes_are_refused_by_field() {
    with_own_engine(async |rig| {
        type Change = fn(&mut v1::PodSandboxConfig);
        let cases: [(&str, Code, Change); 6] = [
            ("config.metadata", Code::InvalidArgument, |config| {
                config.metadata = None
            }),
            ("config.metadata.uid", Code::InvalidArgument, |config| {
                config.metadata.as_mut().expect("there").uid.clear();
            }),
            ("log_directory", Code::InvalidArgument, |config| {
                config.log_directory = "relative".into();
            }),
            ("cgroup_parent", Code::InvalidArgument, |config| {
                config.linux.as_mut().expect("linux").cgroup_parent = "/a/../b".into();
            }),
            ("sysctls", Code::InvalidArgument, |config| {
                let linux = config.linux.as_mut().expect("linux");
                linux.sysctls.insert("vm.swappiness".into(), "1".into());
            }),
            ("userns_options.uids", Code::InvalidArgument, |config| {
                let linux = config.linux.as_mut().expect("linux");
                let context = linux.security_context.as_mut().expect("context");
                let options = context.namespace_options.as_mut().expect("options");
                options.userns_options = Some(v1::UserNamespace::default());
            }),
        ];
        for (field, code, change) in cases {
            let mut config = rig.sandbox("bad");
            change(&mut config);
            let error = rig.client.run_pod(&config).await.expect_err(field);
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message().contains(field), "{error}");
        }
        let config = Some(rig.sandbox("bad"));
        let request = v1::RunPodSandboxRequest {
            config,
            runtime_handler: "none".into(),
        };
        let error = rig
            .client
            .runtime
            .run_pod_sandbox(request)
            .await
            .expect_err("no handler");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(rig.client.pods().await.expect("list").is_empty());
    });
}

#[test]
fn bad_containers_are_refused_by_field_and_leave_nothing() {
    with_own_engine(async |rig| {
        type Change = fn(&mut v1::ContainerConfig);
        fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
            let linux = config.linux.as_mut().expect("linux");
            linux.security_context.as_mut().expect("context")
        }
        let cases: [(&str, Code, Change); 10] = [
            ("config.metadata", Code::InvalidArgument, |config| {
                config.metadata = None
            }),
            ("config.image", Code::InvalidArgument, |config| {
                config.image = None
            }),
            ("not-here", Code::NotFound, |config| {
                config.image = Some(conformance::client::image("localhost/not-here:1"));
            }),
            ("log_path", Code::InvalidArgument, |config| {
                config.log_path = "../../x".into()
            }),
            ("run_as_group", Code::InvalidArgument, |config| {
                context(config).run_as_group = Some(v1::Int64Value { value: 5 });
            }),
            ("stranger", Code::InvalidArgument, |config| {
                context(config).run_as_username = "stranger".into();
            }),
            ("FLY", Code::InvalidArgument, |config| {
                let add_capabilities = vec!["FLY".to_owned()];
                context(config).capabilities = Some(v1::Capability {
                    add_capabilities,
                    ..Default::default()
                });
            }),
            ("privileged", Code::InvalidArgument, |config| {
                context(config).privileged = true
            }),
            ("CDI_devices", Code::InvalidArgument, |config| {
                config.cdi_devices = vec![v1::CdiDevice {
                    name: "vendor.com/gpu".into(),
                }];
            }),
            ("recursive_read_only", Code::InvalidArgument, |config| {
                config.mounts = vec![v1::Mount {
                    container_path: "/x".into(),
                    host_path: "/tmp".into(),
                    recursive_read_only: true,
                    ..Default::default()
                }];
            }),
        ];
        let sandbox = rig.sandbox("bad");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        for (word, code, change) in cases {
            let mut config = rig.container("main", &["/bin/true"]);
            change(&mut config);
            let error = rig
                .client
                .create(&pod, &config, &sandbox)
                .await
                .expect_err(word);
            assert_eq!(error.code(), code, "{word}: {error}");
            assert!(error.message().contains(word), "{word}: {error}");
        }
        assert!(rig.client.containers().await.expect("list").is_empty());
        let config = rig.container("main", &["/bin/true"]);
        let error = rig.client.create(&"3".repeat(64), &config, &sandbox).await;
        assert_eq!(error.expect_err("no such sandbox").code(), Code::NotFound);
    });
}
