//! Images as volumes: what a container sees of them, how long, and what is refused.

use conformance::image::{self, Extras};
use proto::v1;
use tonic::Code;

use crate::rig::{Rig, with_own_engine};

const NAME: &str = "localhost/slipway/volume:latest";

/// Brings a second image in, which has `words/` with a file and links.
async fn second_image(rig: &mut Rig) {
    let link = |name: &str, target: &str| (name.to_owned(), target.to_owned());
    let extras = Extras {
        files: vec![("words/text".to_owned(), b"of the image".to_vec(), 0o644)],
        links: vec![
            link("inside", "/words"),
            link("outside", "../../../../../etc/shadow"),
        ],
        name: Some(NAME.to_owned()),
        ..Extras::default()
    };
    let archive = rig.engine.path("second.tar");
    image::write(&archive, &extras).expect("an image");
    rig.engine.terminate().expect("terminate");
    rig.engine.import(&archive).expect("import");
    rig.client = rig.engine.start().await.expect("an engine");
}

fn volume(path: &str, sub_path: &str) -> v1::Mount {
    v1::Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(v1::ImageSpec {
            user_specified_image: NAME.to_owned(),
            ..conformance::client::image(NAME)
        }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    }
}

async fn remove_image(rig: &mut Rig, name: &str) {
    let request = v1::RemoveImageRequest {
        image: Some(conformance::client::image(name)),
    };
    let removed = rig.client.images.remove_image(request).await;
    removed.expect("RemoveImage");
}

async fn id_of(rig: &mut Rig, name: &str) -> Option<String> {
    let request = v1::ImageStatusRequest {
        image: Some(conformance::client::image(name)),
        verbose: false,
    };
    let answer = rig.client.images.image_status(request).await;
    answer
        .expect("ImageStatus")
        .into_inner()
        .image
        .map(|image| image.id)
}

/// Layers in the engine's store.
fn layers(rig: &Rig) -> usize {
    let dir = rig.engine.path("root/images/layers");
    std::fs::read_dir(dir).expect("layers").count()
}

#[test]
fn an_image_is_a_volume_read_only_with_its_programs_and_its_status() {
    with_own_engine(async |rig| {
        second_image(rig).await;
        let sandbox = rig.sandbox("image-volume");
        let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        config.mounts = vec![
            volume("/all", ""),
            volume("/part", "words"),
            volume("/link", "inside"),
            volume("/file", "words/text"),
        ];
        let id = rig.started(&pod, &config, &sandbox).await;
        for path in ["/all/words/text", "/part/text", "/link/text", "/file"] {
            let read = rig.client.exec(&id, &["cat", path], 5).await.expect("exec");
            assert_eq!(read.stdout, "of the image", "{path}: {read:?}");
        }
        let run = ["/all/bin/echo", "runs"];
        let run = rig.client.exec(&id, &run, 5).await.expect("exec");
        assert_eq!(run.stdout, "runs\n", "its programs are executed: {run:?}");
        let script = "touch /all/new; touch /part/new; echo x >/file; mount -o remount,rw /all";
        let written = rig.client.exec(&id, &["sh", "-c", script], 5).await;
        let written = written.expect("exec");
        assert_eq!(
            written.stderr.matches("Read-only").count(),
            3,
            "{written:?}"
        );
        let named = id_of(rig, NAME).await.expect("the image");
        let status = rig.client.container(&id).await.expect("status");
        for (said, asked) in status.mounts.iter().zip(&config.mounts) {
            let mut expected = asked.clone();
            let image = expected.image.as_mut().expect("an image");
            image.image_ref.clone_from(&named);
            assert_eq!(*said, expected);
        }
    });
}

#[test]
fn an_image_that_is_a_volume_outlives_its_removal_and_a_crash() {
    with_own_engine(async |rig| {
        second_image(rig).await;
        let before = layers(rig);
        let sandbox = rig.sandbox("kept");
        let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        config.mounts = vec![volume("/all", "")];
        let id = rig.started(&pod, &config, &sandbox).await;
        remove_image(rig, NAME).await;
        assert_eq!(id_of(rig, NAME).await, None);
        rig.crash_and_restart().await;
        assert_eq!(
            layers(rig),
            before,
            "nothing is taken from a living container"
        );
        let script = ["/all/bin/cat", "/all/words/text"];
        let read = rig.client.exec(&id, &script, 5).await.expect("exec");
        assert_eq!(read.stdout, "of the image", "{read:?}");
        let mut second = rig.container("second", &["/bin/true"]);
        second.mounts = vec![volume("/all", "")];
        let gone = rig.client.create(&pod, &second, &sandbox).await;
        let gone = gone.expect_err("the image is removed");
        assert_eq!(gone.code(), Code::NotFound, "{gone}");
        rig.client.stop_pod(&pod).await.expect("stop");
        rig.client.remove_pod(&pod).await.expect("remove");
        let mut counted = before;
        conformance::eventually(crate::rig::deadline(), async || {
            counted = layers(rig);
            (counted == before - 1).then_some(())
        })
        .await
        .unwrap_or_else(|| panic!("{counted} layers are left of {before}"));
    });
}

/// Volumes that cannot be, with a word of the error.
fn refused_volumes() -> [(&'static str, Code, v1::Mount); 10] {
    [
        (
            "ImageVolumeMountFailed: ",
            Code::InvalidArgument,
            volume("/x", "missing"),
        ),
        // The link leads to the image's own /etc/shadow, of which it has none.
        (
            "does not exist",
            Code::InvalidArgument,
            volume("/x", "outside"),
        ),
        (
            "image_sub_path",
            Code::InvalidArgument,
            volume("/x", "../words"),
        ),
        (
            "image_sub_path",
            Code::InvalidArgument,
            volume("/x", "/words"),
        ),
        (
            "readonly",
            Code::InvalidArgument,
            v1::Mount {
                readonly: false,
                ..volume("/x", "")
            },
        ),
        (
            "host_path",
            Code::InvalidArgument,
            v1::Mount {
                host_path: "/tmp".to_owned(),
                ..volume("/x", "")
            },
        ),
        (
            "propagation",
            Code::InvalidArgument,
            v1::Mount {
                propagation: v1::MountPropagation::PropagationBidirectional as i32,
                ..volume("/x", "")
            },
        ),
        (
            "image_sub_path",
            Code::InvalidArgument,
            v1::Mount {
                image: None,
                host_path: "/tmp".to_owned(),
                ..volume("/x", "words")
            },
        ),
        (
            "ImageVolumeMountFailed: ",
            Code::NotFound,
            v1::Mount {
                image: Some(conformance::client::image("localhost/no/such:image")),
                ..volume("/x", "")
            },
        ),
        (
            "mount_options",
            Code::InvalidArgument,
            v1::Mount {
                mount_options: vec!["nosuid".to_owned(), "exec".to_owned()],
                ..volume("/x", "")
            },
        ),
    ]
}

#[test]
fn what_an_image_volume_cannot_be_is_refused_and_leaves_nothing() {
    with_own_engine(async |rig| {
        second_image(rig).await;
        let sandbox = rig.sandbox("refused");
        let pod = rig.client.run_pod(&sandbox).await.expect("RunPodSandbox");
        for (word, code, mount) in refused_volumes() {
            let mut config = rig.container("main", &["/bin/true"]);
            config.mounts = vec![mount.clone()];
            let error = rig.client.create(&pod, &config, &sandbox).await;
            let error = error.expect_err(word);
            assert_eq!(error.code(), code, "{mount:?}: {error}");
            let said = error.message();
            match word.strip_suffix(' ') {
                Some(_) => assert!(said.starts_with(word), "{error}"),
                None => assert!(said.contains(word), "{mount:?}: {error}"),
            }
        }
        assert!(rig.client.containers().await.expect("list").is_empty());
        let snapshots = std::fs::read_dir(rig.engine.path("root/snapshots"));
        let shards = snapshots.expect("snapshots").filter_map(Result::ok);
        let shards = shards.filter(|shard| shard.file_name() != "trash");
        let all = shards.flat_map(|shard| std::fs::read_dir(shard.path()).expect("a shard"));
        let left: Vec<_> = all.filter_map(Result::ok).map(|one| one.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}
