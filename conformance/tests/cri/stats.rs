//! Resource use.

use proto::v1;
use tonic::Code;

use crate::rig::{with_engine, with_own_engine};

#[test]
fn running_containers_have_statistics_and_ended_ones_are_not_listed() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("stats", &["/bin/sleep", "1000"]).await;
        let (_, ended) = rig.running("ended", &["/bin/true"]).await;
        rig.exited(&ended).await;
        // Some kernels count by ticks of 10 ms.
        let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let ran = rig.client.exec(&id, &["/bin/sh", "-c", busy], 60).await;
        assert_eq!(ran.expect("ExecSync").code, 0);
        let request = v1::ListContainerStatsRequest::default();
        let list = rig
            .client
            .runtime
            .list_container_stats(request)
            .await
            .expect("list");
        let list = list.into_inner().stats;
        assert_eq!(list.len(), 1);
        let attributes = list[0].attributes.as_ref().expect("attributes");
        assert_eq!(attributes.id, id);
        let cpu = list[0].cpu.as_ref().expect("cpu");
        assert!(cpu.timestamp > 0);
        assert!(cpu.usage_core_nano_seconds.expect("usage").value > 0);
        let memory = list[0].memory.as_ref().expect("memory");
        assert!(memory.working_set_bytes.expect("working set").value > 0);
        let layer = list[0].writable_layer.as_ref().expect("writable layer");
        assert!(
            !layer
                .fs_id
                .as_ref()
                .expect("filesystem")
                .mountpoint
                .is_empty()
        );
        let request = v1::PodSandboxStatsRequest {
            pod_sandbox_id: pod,
        };
        let stats = rig
            .client
            .runtime
            .pod_sandbox_stats(request)
            .await
            .expect("pod stats");
        let linux = stats
            .into_inner()
            .stats
            .expect("stats")
            .linux
            .expect("linux");
        let network = linux.network.expect("network");
        assert!(network.timestamp > 0);
        assert_eq!(network.default_interface.expect("default").name, "eth0");
        assert!(network.interfaces.iter().all(|one| one.name != "eth0"));
        assert!(
            linux
                .process
                .expect("process")
                .process_count
                .expect("count")
                .value
                >= 1
        );
        assert_eq!(linux.containers.len(), 1);
    });
}

#[test]
fn statistics_of_what_is_unknown_are_not_found() {
    with_engine(async |rig| {
        let request = v1::ContainerStatsRequest {
            container_id: "2".repeat(64),
        };
        let error = rig
            .client
            .runtime
            .container_stats(request)
            .await
            .expect_err("unknown");
        assert_eq!(error.code(), Code::NotFound);
        let request = v1::PodSandboxStatsRequest {
            pod_sandbox_id: "2".repeat(64),
        };
        let error = rig
            .client
            .runtime
            .pod_sandbox_stats(request)
            .await
            .expect_err("unknown");
        assert_eq!(error.code(), Code::NotFound);
    });
}
