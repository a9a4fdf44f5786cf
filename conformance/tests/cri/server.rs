//! The socket and the process.

use conformance::client::Client;
use conformance::engine::{Driver, Engine, executable};
use proto::v1;
use tonic::Code;

use crate::rig::with_own_engine;

#[test]
fn version_and_conditions_are_complete() {
    with_own_engine(async |rig| {
        let version = rig.client.version().await.expect("version");
        assert_eq!(version.runtime_name, "slipway");
        assert_eq!(version.runtime_api_version, "v1");
        assert!(!version.version.is_empty() && !version.runtime_version.is_empty());
        let request = v1::StatusRequest { verbose: true };
        let status = rig
            .client
            .runtime
            .status(request)
            .await
            .expect("status")
            .into_inner();
        let conditions = status.status.expect("there").conditions;
        for name in ["RuntimeReady", "NetworkReady"] {
            let condition = conditions
                .iter()
                .find(|one| one.r#type == name)
                .expect(name);
            assert!(condition.status, "{condition:?}");
        }
        assert!(
            status
                .runtime_handlers
                .iter()
                .any(|one| one.name.is_empty())
        );
        let info: serde_json::Value = serde_json::from_str(&status.info["config"]).expect("JSON");
        assert!(info["stateDir"].is_string());
        let config = rig
            .client
            .runtime
            .runtime_config(v1::RuntimeConfigRequest {})
            .await;
        let linux = config.expect("config").into_inner().linux.expect("linux");
        let driver = match Driver::of_environment() {
            Driver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
            Driver::Systemd => v1::CgroupDriver::Systemd,
        };
        assert_eq!(linux.cgroup_driver, driver as i32);
    });
}

#[test]
fn what_is_not_there_yet_says_so_by_its_name() {
    with_own_engine(async |rig| {
        let mut client = rig.client.runtime.clone();
        let answer = client
            .checkpoint_pod(v1::CheckpointPodRequest::default())
            .await;
        let error = answer.expect_err("CheckpointPod");
        assert_eq!(error.code(), Code::Unimplemented);
        assert!(error.message().starts_with("CheckpointPod"), "{error}");
    });
}

#[test]
fn sigterm_ends_the_engine_within_two_seconds_and_containers_live_on() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("lives", &["/bin/sleep", "1000"]).await;
        let mut client = rig.client.clone();
        let other = id.clone();
        // A call that would last longer does not hold the end up.
        let hanging = tokio::spawn(async move { client.exec(&other, &["sleep", "60"], 0).await });
        tokio::task::yield_now().await;
        let took = rig.engine.terminate().expect("terminate");
        assert!(took < conformance::patient(2), "{took:?}");
        assert!(!rig.engine.socket().exists());
        drop(hanging.await);
        rig.client = rig.engine.start().await.expect("an engine");
        let status = rig.client.container(&id).await.expect("status");
        assert_eq!(status.state, v1::ContainerState::ContainerRunning as i32);
    });
}

#[test]
fn a_socket_that_an_engine_lives_behind_is_refused_and_a_stale_one_is_taken() {
    with_own_engine(async |rig| {
        let mut second = Engine::prepare(&executable().expect("slipway")).expect("scratch");
        second.listen_at(rig.engine.socket());
        second.spawn().expect("spawn");
        second
            .ended()
            .await
            .expect("there is no room for a second engine");
        let said = second.log_end();
        assert!(said.contains("another engine listens on"), "{said}");
        rig.client
            .version()
            .await
            .expect("the first is not disturbed");
        rig.engine.kill().expect("kill");
        assert!(rig.engine.socket().exists(), "a crash leaves the socket");
        rig.client = rig
            .engine
            .start()
            .await
            .expect("the stale socket is taken over");
    });
}

#[test]
fn messages_of_sixteen_mebibytes_pass() {
    with_own_engine(async |rig| {
        let mut sandbox = rig.sandbox("large");
        sandbox
            .annotations
            .insert("blob".into(), "x".repeat(15 * 1024 * 1024));
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let status = rig.client.pod(&pod).await;
        // Twice that size, once as status and once as information, is too much for a
        // client; the list is not.
        drop(status);
        let list = rig.client.pods().await.expect("list");
        assert_eq!(list[0].annotations["blob"].len(), 15 * 1024 * 1024);
    });
}

#[test]
fn two_engines_live_side_by_side() {
    with_own_engine(async |rig| {
        let mut second = Engine::prepare(&executable().expect("slipway")).expect("scratch");
        let mut client = second.start().await.expect("a second engine");
        client.version().await.expect("version");
        rig.client.version().await.expect("version");
        let mut again = Client::connect(&second.socket()).await.expect("connect");
        assert!(again.pods().await.expect("list").is_empty());
        second.clean_up().await.expect("clean up");
    });
}

#[test]
fn a_state_that_another_engine_has_is_refused_and_its_pods_stay() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("first", &["/bin/sleep", "1000"]).await;
        let state = rig.engine.path("state");
        let mut second = Engine::prepare(&executable().expect("slipway")).expect("scratch");
        second.keep_state_at(state.clone());
        second.spawn().expect("spawn");
        second.ended().await.expect("the state is another's");
        let said = second.log_end();
        let named = format!("another engine works on {}", state.display());
        assert!(said.contains(&named), "{said}");
        let alive = rig.client.exec(&id, &["true"], 5).await.expect("exec");
        assert_eq!(alive.code, 0);
        // After a restart, too: the way to the monitor is below the state.
        rig.crash_and_restart().await;
        let alive = rig.client.exec(&id, &["true"], 5).await.expect("exec");
        assert_eq!(alive.code, 0);
        second.keep_state_at(second.path("root"));
        second.spawn().expect("spawn");
        second.ended().await.expect("nor may it be the root");
        let said = second.log_end();
        assert!(said.contains("must not be one folder"), "{said}");
    });
}
