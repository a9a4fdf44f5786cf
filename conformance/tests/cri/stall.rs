//! A disk that stands still: whoever needs it waits, and nobody else. A full one: nothing
//! begins, everything can end, and how it ended stays.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use proto::v1;

use crate::crash::newest;
use crate::rig::{Rig, deadline, monitor_pid, with_own_engine};

/// How long an answer may take that needs no disk.
fn prompt() -> Duration {
    conformance::patient(5)
}

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

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Leaves no byte of room.
    fn fill(&self) {
        // Fails where there is no byte left, which is what it is for.
        let filled = Command::new("dd")
            .args(["if=/dev/zero", "bs=4k"])
            .arg(format!("of={}", self.filler().display()))
            .output()
            .expect("dd");
        assert!(!filled.status.success(), "the disk is full");
    }

    /// Gives the room back.
    fn empty(&self) {
        std::fs::remove_file(self.filler()).expect("room again");
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
    let answered = tokio::time::timeout(prompt(), work).await;
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
            disk.fill();
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
            disk.empty();
            rig.running("after", &["/bin/sleep", "1000"]).await;
        };
        with_root_on_a_disk(test, rig).await;
    });
}

/// A pod whose container ends once `flag` is on the volume.
async fn waiting(rig: &mut Rig, name: &str, flag: &str, code: i32) -> (String, String) {
    let volume = rig.engine.path("volume");
    std::fs::create_dir_all(&volume).expect("volume");
    let sandbox = rig.sandbox(name);
    let pod = rig.client.run_pod(&sandbox).await.expect("run");
    let script = format!("while [ ! -e /v/{flag} ]; do sleep 0.01; done; exit {code}");
    let mut config = rig.container("main", &["/bin/sh", "-c", &script]);
    // No line of its record fits in what is left of a block.
    config.annotations.insert("long".into(), "x".repeat(10_000));
    config.mounts = vec![v1::Mount {
        container_path: "/v".into(),
        host_path: volume.to_string_lossy().into_owned(),
        ..Default::default()
    }];
    let id = rig.started(&pod, &config, &sandbox).await;
    (pod, id)
}

/// Makes a container as those that an earlier engine has created: no room is kept for
/// its end.
fn take_room_away(rig: &Rig, (pod, id): &(String, String)) {
    let room = rig.engine.path(&format!("root/pods/{pod}/exits/{id}"));
    // There was none before this was thought of.
    drop(std::fs::remove_file(room));
}

fn raise(rig: &Rig, flag: &str) {
    std::fs::write(rig.engine.path("volume").join(flag), "").expect("flag");
}

/// Asserts that these containers are said to have ended as before.
async fn assert_ended_as(rig: &mut Rig, ends: &[v1::ContainerStatus]) {
    let told = |end: &v1::ContainerStatus| {
        let (reason, message) = (end.reason.clone(), end.message.clone());
        let times = (end.started_at, end.finished_at);
        (end.exit_code, reason, message, times)
    };
    for end in ends {
        assert_eq!(told(&rig.exited(&end.id).await), told(end));
    }
}

/// Waits until a container's record has its end.
async fn record_has_the_end(rig: &Rig, pod: &str, id: &str) {
    let record = rig
        .engine
        .path(&format!("root/pods/{pod}/containers/{id}.json"));
    let ended = conformance::eventually(deadline(), async || {
        let text = std::fs::read_to_string(&record).ok()?;
        newest(&text)["state"]["Exited"].is_object().then_some(())
    });
    ended.await.expect("the record has the end");
}

#[test]
fn how_containers_ended_on_a_full_disk_stays_whoever_dies_then() {
    with_own_engine(async |rig| {
        let test = async |rig: &mut Rig, disk: &Disk| {
            let stopped = waiting(rig, "stopped", "first", 0).await;
            let unmonitored = waiting(rig, "unmonitored", "first", 0).await;
            let away = waiting(rig, "away", "second", 7).await;
            disk.fill();
            raise(rig, "first");
            let mut ends = vec![
                rig.exited(&stopped.1).await,
                rig.exited(&unmonitored.1).await,
            ];
            rig.engine.kill().expect("kill");
            raise(rig, "second");
            rig.client = rig.engine.start().await.expect("an engine on a full disk");
            ends.push(rig.exited(&away.1).await);
            let codes: Vec<_> = ends.iter().map(|end| end.exit_code).collect();
            assert_eq!(codes, [0, 0, 7]);
            // Those who know it go: the monitors, and the engine with its memory.
            let status = rig.client.pod(&unmonitored.0).await.expect("status");
            let monitor = monitor_pid(&status);
            nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGKILL).expect("kill");
            for (pod, _) in [&stopped, &away] {
                in_time("StopPodSandbox", rig.client.stop_pod(pod)).await;
            }
            rig.crash_and_restart().await;
            assert_ended_as(rig, &ends).await;
            disk.empty();
            for (pod, id) in [&stopped, &unmonitored, &away] {
                record_has_the_end(rig, pod, id).await;
            }
            rig.crash_and_restart().await;
            assert_ended_as(rig, &ends).await;
        };
        with_root_on_a_disk(test, rig).await;
    });
}

/// Not every file system keeps room for an exit.
#[test]
fn ends_that_a_full_disk_did_not_take_are_written_when_there_is_room() {
    with_own_engine(async |rig| {
        let test = async |rig: &mut Rig, disk: &Disk| {
            let stopped = waiting(rig, "stopped", "go", 0).await;
            let monitored = waiting(rig, "monitored", "go", 3).await;
            let exits = |pod: &str| rig.engine.path(&format!("root/pods/{pod}/exits"));
            let exits = [exits(&stopped.0), exits(&monitored.0)];
            take_room_away(rig, &stopped);
            take_room_away(rig, &monitored);
            disk.fill();
            raise(rig, "go");
            let ends = [rig.exited(&stopped.1).await, rig.exited(&monitored.1).await];
            assert_eq!((ends[0].exit_code, ends[1].exit_code), (0, 3));
            in_time("StopPodSandbox", rig.client.stop_pod(&stopped.0)).await;
            disk.empty();
            for (pod, id) in [&stopped, &monitored] {
                record_has_the_end(rig, pod, id).await;
            }
            let names = |dir: &Path| -> Vec<_> {
                let entries = std::fs::read_dir(dir).expect("exits").flatten();
                entries.map(|entry| entry.file_name()).collect()
            };
            let written = conformance::eventually(deadline(), async || {
                (names(&exits[1]) == [monitored.1.as_str()]).then_some(())
            });
            written.await.expect("the monitor has written it as well");
            rig.engine.terminate().expect("terminate");
            rig.client = rig.engine.start().await.expect("an engine");
            assert_ended_as(rig, &ends).await;
        };
        with_root_on_a_disk(test, rig).await;
    });
}

#[test]
fn an_engine_that_ends_writes_what_a_full_disk_did_not_take() {
    with_own_engine(async |rig| {
        let test = async |rig: &mut Rig, disk: &Disk| {
            let (pod, id) = waiting(rig, "main", "go", 0).await;
            take_room_away(rig, &(pod.clone(), id.clone()));
            disk.fill();
            raise(rig, "go");
            let end = rig.exited(&id).await;
            // By then the pause is longer than the engine takes to end.
            let log = rig.engine.path("engine.log");
            let tried = conformance::eventually(deadline(), async || {
                let log = std::fs::read_to_string(&log).ok()?;
                (log.matches("the container's record stays stale").count() >= 3).then_some(())
            });
            tried.await.expect("it is tried again and again");
            disk.empty();
            rig.engine.terminate().expect("terminate");
            record_has_the_end(rig, &pod, &id).await;
            rig.client = rig.engine.start().await.expect("an engine");
            assert_ended_as(rig, &[end]).await;
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
        let refused = conformance::eventually(deadline(), async || {
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
