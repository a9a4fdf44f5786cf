//! Calls that are repeated, abandoned or made at the same time.

use std::time::Duration;

use proto::v1;

use crate::rig::{deadline, with_own_engine};

#[test]
fn a_client_that_goes_away_finds_its_one_sandbox_again() {
    with_own_engine(async |rig| {
        for (number, wait) in [1_u64, 5, 20].into_iter().enumerate() {
            let sandbox = rig.sandbox(&format!("dropped{number}"));
            let mut client = rig.client.clone();
            let patience = Duration::from_millis(wait);
            // Ok where the call was quicker than the client's patience.
            drop(tokio::time::timeout(patience, client.run_pod(&sandbox)).await);
            let pod = rig.client.run_pod(&sandbox).await.expect("the retry joins");
            let named = rig
                .client
                .pods()
                .await
                .expect("list")
                .into_iter()
                .filter(|one| {
                    one.metadata
                        .as_ref()
                        .is_some_and(|one| one.name == format!("dropped{number}"))
                });
            let ids: Vec<_> = named.map(|one| one.id).collect();
            assert_eq!(ids, std::slice::from_ref(&pod));

            let config = rig.container("main", &["/bin/sleep", "1000"]);
            let patience = Duration::from_millis(wait);
            drop(tokio::time::timeout(patience, client.create(&pod, &config, &sandbox)).await);
            let id = rig
                .client
                .create(&pod, &config, &sandbox)
                .await
                .expect("the retry joins");
            let all = rig.client.containers().await.expect("list");
            let of_pod: Vec<_> = all
                .into_iter()
                .filter(|one| one.pod_sandbox_id == pod)
                .collect();
            assert_eq!(of_pod.len(), 1);
            assert_eq!(of_pod[0].id, id);
            rig.client.start(&id).await.expect("start");
            rig.client.start(&id).await.expect("start again is quiet");
        }
    });
}

#[test]
fn ten_callers_of_the_same_sandbox_get_one() {
    with_own_engine(async |rig| {
        let sandbox = rig.sandbox("crowd");
        let calls = (0..10).map(|_| {
            let (mut client, sandbox) = (rig.client.clone(), sandbox.clone());
            tokio::spawn(async move { client.run_pod(&sandbox).await })
        });
        let mut ids = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            ids.push(call.await.expect("no panic").expect("run"));
        }
        ids.dedup();
        assert_eq!(ids.len(), 1);
    });
}

#[test]
fn a_stop_that_arrives_during_the_start_wins() {
    with_own_engine(async |rig| {
        let sandbox = rig.sandbox("early");
        let mut client = rig.client.clone();
        let (config, mut other) = (sandbox.clone(), rig.client.clone());
        let running = tokio::spawn(async move { client.run_pod(&config).await });
        let pod = running.await.expect("no panic").expect("run");
        let container = rig.container("main", &["/bin/sleep", "1000"]);
        let (created, stopped) = tokio::join!(
            rig.client.create(&pod, &container, &sandbox),
            other.stop_pod(&pod)
        );
        stopped.expect("stop");
        if let Ok(id) = created {
            let status = rig.exited(&id).await;
            assert_eq!(status.exit_code, 137);
        }
    });
}

#[test]
fn twenty_pods_at_once_survive_a_crash_in_the_middle_and_none_runs_twice() {
    with_own_engine(async |rig| {
        let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(5));
        let (done, mut count) = tokio::sync::mpsc::unbounded_channel();
        let mut works = Vec::new();
        for number in 0..20 {
            let name = format!("many{number}");
            let sandbox = rig.sandbox(&name);
            let config = rig.container("main", &["/bin/sleep", "1000"]);
            let (gate, done) = (gate.clone(), done.clone());
            let socket = rig.engine.socket();
            works.push(tokio::task::spawn_local(async move {
                let _turn = gate.acquire().await.expect("open");
                let id = insist(&socket, &config, &sandbox).await;
                done.send(()).expect("counted");
                id
            }));
        }
        for _ in 0..7 {
            count.recv().await.expect("a pod");
        }
        rig.crash_and_restart().await;
        for work in works {
            work.await.expect("no panic");
        }
        let all = rig.client.containers().await.expect("list");
        assert_eq!(all.len(), 20);
        let running = v1::ContainerState::ContainerRunning as i32;
        assert!(all.iter().all(|one| one.state == running), "{all:#?}");
        assert_eq!(rig.client.pods().await.expect("list").len(), 20);
    });
}

/// What a kubelet does: the same calls again until they succeed.
async fn insist(
    socket: &std::path::Path,
    config: &v1::ContainerConfig,
    sandbox: &v1::PodSandboxConfig,
) -> String {
    conformance::eventually(deadline() * 3, async || {
        let mut client = conformance::client::Client::connect(socket).await.ok()?;
        let pod = client.run_pod(sandbox).await.ok()?;
        let known = client.containers().await.ok()?;
        let known = known.into_iter().find(|one| one.pod_sandbox_id == pod);
        let id = match known {
            Some(one) => one.id,
            None => client.create(&pod, config, sandbox).await.ok()?,
        };
        client.start(&id).await.ok()?;
        Some(id)
    })
    .await
    .expect("the pod runs at last")
}
