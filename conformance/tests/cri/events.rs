//! What the engine tells unasked, and lists in pieces: both say what lists say.

#![expect(
    clippy::expect_used,
    reason = "helpers of tests, which the exception for tests misses"
)]

use proto::v1;
use proto::v1::ContainerEventType as Kind;
use tonic::Code;

use crate::rig::{Rig, deadline, with_own_engine};

type Events = tonic::Streaming<v1::ContainerEventResponse>;

async fn listen(rig: &mut Rig) -> Events {
    let request = v1::GetEventsRequest {};
    let events = rig.client.runtime.get_container_events(request).await;
    events.expect("events").into_inner()
}

async fn next(events: &mut Events) -> v1::ContainerEventResponse {
    let event = tokio::time::timeout(deadline(), events.message()).await;
    let event = event.expect("an event in time").expect("no error");
    event.expect("the stream goes on")
}

#[test]
fn events_tell_a_pods_life_in_order_with_its_status() {
    with_own_engine(async |rig| {
        let mut events = listen(rig).await;
        let (pod, id) = rig
            .running("told", &["/bin/sh", "-c", "read x; exit 3"])
            .await;
        rig.client.stop(&id, 0).await.expect("stop");
        rig.client.remove(&id).await.expect("remove");
        rig.client.stop_pod(&pod).await.expect("stop the pod");
        rig.client.remove_pod(&pod).await.expect("remove the pod");
        let told = [
            (&pod, Kind::ContainerCreatedEvent),
            (&pod, Kind::ContainerStartedEvent),
            (&id, Kind::ContainerCreatedEvent),
            (&id, Kind::ContainerStartedEvent),
            (&id, Kind::ContainerStoppedEvent),
            (&id, Kind::ContainerDeletedEvent),
            (&pod, Kind::ContainerStoppedEvent),
            (&pod, Kind::ContainerDeletedEvent),
        ];
        let mut last = 0;
        for (of, kind) in told {
            let event = next(&mut events).await;
            assert_eq!(
                (&event.container_id, event.container_event_type()),
                (of, kind)
            );
            assert!(event.created_at >= last, "{event:?}");
            last = event.created_at;
            let status = event.pod_sandbox_status.expect("the pod's status");
            let metadata = status.metadata.expect("metadata");
            assert_eq!(
                (status.id.as_str(), metadata.name.as_str()),
                (pod.as_str(), "told")
            );
            let states: Vec<_> = event
                .containers_statuses
                .iter()
                .map(|one| one.state)
                .collect();
            let expected = match (of == &id, kind) {
                (true, Kind::ContainerCreatedEvent) => {
                    vec![v1::ContainerState::ContainerCreated as i32]
                }
                (true, Kind::ContainerStartedEvent) => {
                    vec![v1::ContainerState::ContainerRunning as i32]
                }
                (true, Kind::ContainerStoppedEvent) => {
                    vec![v1::ContainerState::ContainerExited as i32]
                }
                _ => vec![],
            };
            assert_eq!(states, expected, "{kind:?}");
        }
    });
}

#[test]
fn who_does_not_read_events_is_told_that_some_are_missing() {
    with_own_engine(async |rig| {
        let mut events = listen(rig).await;
        let sandbox = rig.sandbox("flood");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        // Two events each, and none of them is read.
        let large = "x".repeat(256 << 10);
        for attempt in 0..700 {
            let mut config = rig.container("main", &["/bin/sleep", "1000"]);
            config.metadata.as_mut().expect("metadata").attempt = attempt;
            config.annotations.insert("blob".into(), large.clone());
            let id = rig.client.create(&pod, &config, &sandbox).await;
            rig.client
                .remove(&id.expect("create"))
                .await
                .expect("remove");
        }
        let missed = loop {
            match tokio::time::timeout(deadline(), events.message())
                .await
                .expect("in time")
            {
                Ok(Some(_)) => {}
                Ok(None) => panic!("an end without a word"),
                Err(error) => break error,
            }
        };
        assert_eq!(missed.code(), Code::DataLoss, "{missed}");
    });
}

#[test]
fn lists_in_pieces_say_what_lists_say() {
    with_own_engine(async |rig| {
        let (pod, id) = rig.running("pieces", &["/bin/sleep", "1000"]).await;
        let mut client = rig.client.runtime.clone();
        let request = v1::StreamPodSandboxesRequest::default();
        let mut stream = client
            .stream_pod_sandboxes(request)
            .await
            .expect("pods")
            .into_inner();
        let piece = stream.message().await.expect("a piece").expect("one");
        assert_eq!(piece.pod_sandboxes, rig.client.pods().await.expect("list"));
        assert_eq!(piece.pod_sandboxes[0].id, pod);
        assert!(stream.message().await.expect("the end").is_none());
        let request = v1::StreamContainersRequest::default();
        let mut stream = client
            .stream_containers(request)
            .await
            .expect("containers")
            .into_inner();
        let piece = stream.message().await.expect("a piece").expect("one");
        assert_eq!(
            piece.containers,
            rig.client.containers().await.expect("list")
        );
        let filter = v1::ContainerStatsFilter {
            id: id.clone(),
            ..v1::ContainerStatsFilter::default()
        };
        let request = v1::StreamContainerStatsRequest {
            filter: Some(filter),
        };
        let mut stream = client
            .stream_container_stats(request)
            .await
            .expect("stats")
            .into_inner();
        let piece = stream.message().await.expect("a piece").expect("one");
        assert_eq!(piece.container_stats.len(), 1);
        let request = v1::StreamPodSandboxStatsRequest::default();
        let stream = client.stream_pod_sandbox_stats(request).await;
        let piece = stream.expect("stats").into_inner().message().await;
        assert_eq!(
            piece
                .expect("a piece")
                .expect("one")
                .pod_sandbox_stats
                .len(),
            1
        );
        let request = v1::StreamContainersRequest {
            filter: Some(v1::ContainerFilter {
                id: "0".repeat(64),
                ..v1::ContainerFilter::default()
            }),
        };
        let mut stream = client
            .stream_containers(request)
            .await
            .expect("none")
            .into_inner();
        assert!(stream.message().await.expect("the end").is_none());
    });
}
