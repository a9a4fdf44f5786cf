//! A disk that stands still: whoever needs it waits, and nobody else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use proto::v1;

use crate::rig::{Rig, with_own_engine};

/// How long an answer may take that needs no disk.
const PROMPT: Duration = Duration::from_secs(5);

/// A file system of its own that can be frozen; thawed and unmounted in the end.
pub(crate) struct Disk(PathBuf);

impl Disk {
    pub(crate) fn mount(dir: &Path, image: &Path) -> Self {
        let file = std::fs::File::create(image).expect("an image file");
        file.set_len(512 << 20).expect("its size");
        run(Command::new("mkfs.ext4").arg("-q").arg(image));
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(dir));
        Self(dir.to_owned())
    }

    pub(crate) fn freeze(&self) {
        run(Command::new("fsfreeze").arg("-f").arg(&self.0));
    }

    pub(crate) fn thaw(&self) {
        run(Command::new("fsfreeze").arg("-u").arg(&self.0));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Frozen no more, as a rule: then this fails, and harms nothing.
        let thawed = Command::new("fsfreeze").arg("-u").arg(&self.0).output();
        let gone = Command::new("umount").arg("-l").arg(&self.0).output();
        drop((thawed, gone));
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Moves the engine's root to a disk of its own.
async fn with_root_on_a_disk(test: impl AsyncFnOnce(&mut Rig, &Disk), rig: &mut Rig) {
    rig.engine.terminate().expect("terminate");
    let (root, before) = (rig.engine.path("root"), rig.engine.path("root.before"));
    std::fs::rename(&root, &before).expect("moved");
    std::fs::create_dir(&root).expect("a mount point");
    let disk = Disk::mount(&root, &rig.engine.path("root.img"));
    run(Command::new("cp")
        .arg("-a")
        .arg(before.join("."))
        .arg(&root));
    rig.client = rig.engine.start().await.expect("an engine");
    test(rig, &disk).await;
    rig.engine.clean_up().await.expect("clean up");
    drop(disk);
    rig.client = rig.engine.start().await.expect("an engine");
}

async fn in_time<T>(what: &str, work: impl Future<Output = Result<T, tonic::Status>>) -> T {
    let answered = tokio::time::timeout(PROMPT, work).await;
    let answered = answered.unwrap_or_else(|_| panic!("{what} waits for the disk"));
    answered.unwrap_or_else(|error| panic!("{what}: {error}"))
}

#[test]
fn lists_and_statuses_answer_while_the_disk_of_the_records_stands_still() {
    with_own_engine(async |rig| {
        let test = async |rig: &mut Rig, disk: &Disk| {
            let mut running = Vec::new();
            for number in 0..7 {
                let name = format!("still{number}");
                running.push(rig.running(&name, &["/bin/sleep", "1000"]).await);
            }
            let (_, ended) = running.pop().expect("one more");
            rig.client.stop(&ended, 0).await.expect("stop");
            disk.freeze();
            // A writable layer to throw away.
            let remove = {
                let mut client = rig.client.clone();
                tokio::task::spawn_local(async move { client.remove(&ended).await })
            };
            // More of them than the engine has threads, each with a record to write.
            let stops: Vec<_> = running
                .iter()
                .map(|(pod, _)| {
                    let (mut client, pod) = (rig.client.clone(), pod.clone());
                    tokio::task::spawn_local(async move { client.stop_pod(&pod).await })
                })
                .collect();
            for _ in 0..20 {
                in_time("Version", rig.client.version()).await;
                let mut client = rig.client.clone();
                let request = v1::StatusRequest::default();
                in_time("Status", client.runtime.status(request)).await;
                assert_eq!(in_time("ListPodSandbox", rig.client.pods()).await.len(), 7);
                let containers = in_time("ListContainers", rig.client.containers()).await;
                assert!((6..=7).contains(&containers.len()));
                let request = v1::ImageFsInfoRequest {};
                in_time("ImageFsInfo", client.images.image_fs_info(request)).await;
                let request = v1::ListContainerStatsRequest::default();
                let stats = client.runtime.list_container_stats(request);
                in_time("ListContainerStats", stats).await;
                in_time("ContainerStatus", rig.client.container(&running[0].1)).await;
            }
            disk.thaw();
            for stop in stops {
                stop.await.expect("no panic").expect("stopped after all");
            }
            remove.await.expect("no panic").expect("removed after all");
        };
        with_root_on_a_disk(test, rig).await;
    });
}

#[test]
fn on_a_full_disk_nothing_begins_and_everything_can_end() {
    with_own_engine(async |rig| {
        let test = async |rig: &mut Rig, disk: &Disk| {
            let (pod, id) = rig.running("before", &["/bin/sleep", "1000"]).await;
            let sandbox = rig.sandbox("before");
            let filler = disk.0.join("filler");
            // Fails where there is no byte left, which is what it is for.
            let filled = Command::new("dd")
                .args(["if=/dev/zero", "bs=4k"])
                .arg(format!("of={}", filler.display()))
                .output()
                .expect("dd");
            assert!(!filled.status.success(), "the disk is full");
            let mut refused = 0;
            for attempt in 0..20 {
                let mut config = rig.container("more", &["/bin/sleep", "1000"]);
                config.metadata.as_mut().expect("metadata").attempt = attempt;
                match rig.client.create(&pod, &config, &sandbox).await {
                    Ok(created) => rig.client.remove(&created).await.expect("remove"),
                    Err(_) => refused += 1,
                }
            }
            assert!(refused > 0, "a record needs room at some time");
            // What was answered is there after a crash, and nothing else.
            let before: Vec<_> = rig.client.containers().await.expect("list");
            rig.crash_and_restart().await;
            let after = rig.client.containers().await.expect("list");
            let ids = |all: &[v1::Container]| -> Vec<String> {
                all.iter().map(|one| one.id.clone()).collect()
            };
            assert_eq!(ids(&before), ids(&after));
            assert!(ids(&after).contains(&id));
            rig.client.stop(&id, 0).await.expect("stop the container");
            rig.client.stop_pod(&pod).await.expect("stop the pod");
            rig.client.remove_pod(&pod).await.expect("remove the pod");
            std::fs::remove_file(&filler).expect("room again");
            rig.running("after", &["/bin/sleep", "1000"]).await;
        };
        with_root_on_a_disk(test, rig).await;
    });
}

#[test]
fn a_volume_that_does_not_answer_holds_up_its_own_container_alone() {
    with_own_engine(async |rig| {
        let volume = rig.engine.path("volume");
        std::fs::create_dir(&volume).expect("a mount point");
        let disk = Disk::mount(&volume, &rig.engine.path("volume.img"));
        disk.freeze();
        let sandbox = rig.sandbox("volume");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        // It is not there: to be made, it needs the frozen disk.
        let missing = volume.join("missing");
        config.mounts = vec![v1::Mount {
            container_path: "/v".into(),
            host_path: missing.to_string_lossy().into_owned(),
            ..Default::default()
        }];
        let creating = {
            let (mut client, pod) = (rig.client.clone(), pod.clone());
            let (config, sandbox) = (config.clone(), sandbox.clone());
            tokio::task::spawn_local(async move { client.create(&pod, &config, &sandbox).await })
        };
        // Others are refused by name as soon as the path is known not to answer.
        let other = rig.sandbox("other");
        let second = rig.client.run_pod(&other).await.expect("run");
        let mut client = rig.client.clone();
        let mut number = 0;
        let refused = conformance::eventually(crate::rig::DEADLINE, async || {
            // The same container again would only join the first call for it.
            number += 1;
            config.metadata.as_mut().expect("metadata").attempt = number;
            let attempt = tokio::time::timeout(
                Duration::from_millis(500),
                client.create(&second, &config, &other),
            );
            Some(attempt.await.ok()?.expect_err("the volume does not answer"))
        });
        let refused = refused.await.expect("refused");
        let named = refused.message().contains("volume/missing");
        assert!(
            named && refused.message().contains("not answered"),
            "{refused}"
        );
        in_time("StopPodSandbox", rig.client.stop_pod(&pod)).await;
        let created = creating.await.expect("no panic");
        created.expect_err("its pod was stopped");
        in_time("RemovePodSandbox", rig.client.remove_pod(&pod)).await;
        in_time("StopPodSandbox", rig.client.stop_pod(&second)).await;
        disk.thaw();
    });
}
