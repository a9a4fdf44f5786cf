//! Images through the socket; what registries do is tested in image-store.

use conformance::image::Extras;
use proto::v1;
use serde_json::json;
use tonic::Code;

use crate::rig::{with_image, with_own_engine};

#[test]
fn an_image_is_found_by_every_name_and_removed_with_all() {
    with_own_engine(async |rig| {
        let list = rig
            .client
            .images
            .list_images(v1::ListImagesRequest::default())
            .await;
        let list = list.expect("list").into_inner().images;
        assert_eq!(list.len(), 1);
        let image = list[0].clone();
        assert!(
            image.id.starts_with("sha256:") && image.size > 0,
            "{image:?}"
        );
        assert_eq!(image.repo_tags, std::slice::from_ref(&rig.image));
        let short = image.id.trim_start_matches("sha256:")[..12].to_owned();
        for name in [image.id.clone(), rig.image.clone(), short] {
            let request = v1::ImageStatusRequest {
                image: Some(conformance::client::image(&name)),
                verbose: true,
            };
            let answer = rig
                .client
                .images
                .image_status(request)
                .await
                .expect("status");
            assert_eq!(answer.into_inner().image.expect(&name).id, image.id);
        }
        let request = v1::RemoveImageRequest {
            image: Some(conformance::client::image(&rig.image)),
        };
        for _ in 0..2 {
            rig.client
                .images
                .remove_image(request.clone())
                .await
                .expect("remove");
        }
        let list = rig
            .client
            .images
            .list_images(v1::ListImagesRequest::default())
            .await;
        assert!(list.expect("list").into_inner().images.is_empty());
    });
}

#[test]
fn a_running_container_survives_the_removal_of_its_image() {
    with_own_engine(async |rig| {
        let (_, id) = rig.running("leased", &["/bin/sleep", "1000"]).await;
        let request = v1::RemoveImageRequest {
            image: Some(conformance::client::image(&rig.image)),
        };
        rig.client
            .images
            .remove_image(request)
            .await
            .expect("remove");
        let output = rig
            .client
            .exec(&id, &["ls", "/bin/busybox"], 5)
            .await
            .expect("exec");
        assert_eq!(output.code, 0, "{output:?}");
    });
}

#[test]
fn an_unreachable_registry_is_unknown_and_says_so_first() {
    with_own_engine(async |rig| {
        let error = rig
            .client
            .pull("127.0.0.1:9/nothing:here")
            .await
            .expect_err("nobody there");
        assert_eq!(error.code(), Code::Unknown);
        assert!(
            error.message().starts_with("RegistryUnavailable"),
            "{error}"
        );
        let error = rig
            .client
            .pull("localhost/UPPER")
            .await
            .expect_err("no reference");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    });
}

#[test]
fn the_image_filesystem_is_counted() {
    with_own_engine(async |rig| {
        let answer = rig
            .client
            .images
            .image_fs_info(v1::ImageFsInfoRequest {})
            .await;
        let answer = answer.expect("info").into_inner();
        let usage = &answer.image_filesystems[0];
        assert!(usage.timestamp > 0);
        assert!(usage.used_bytes.expect("bytes").value > 100_000);
        assert!(usage.inodes_used.expect("inodes").value > 5);
        assert!(
            !usage
                .fs_id
                .as_ref()
                .expect("filesystem")
                .mountpoint
                .is_empty()
        );
    });
}

/// A static program may load the image's NSS modules when it looks a user up.
#[test]
fn a_hostile_nsswitch_gets_no_code_run_before_the_process() {
    let library = b"not an ELF file, but a name that would be opened".to_vec();
    let extras = Extras {
        files: vec![
            (
                "etc/nsswitch.conf".into(),
                b"passwd: evil\ngroup: evil\n".to_vec(),
                0o644,
            ),
            (
                "lib/x86_64-linux-gnu/libnss_evil.so.2".into(),
                library.clone(),
                0o755,
            ),
            ("lib/libnss_evil.so.2".into(), library, 0o755),
        ],
        config: json!({ "User": "nobody", "Env": [] }),
        name: None,
        ..Extras::default()
    };
    with_image(&extras, async |rig| {
        let (_, id) = rig
            .running("hostile", &["/bin/sh", "-c", "env; sleep 1000"])
            .await;
        let log = rig.log_with("hostile", "HOME=/").await;
        assert!(log.contains("PATH="), "{log}");
        let ids = rig.client.exec(&id, &["id", "-u"], 5).await.expect("exec");
        assert_eq!(ids.stdout.trim(), "65534");
    });
}

/// The kernel takes this id for "leave it as it is": the process would stay root.
#[test]
fn an_image_cannot_run_as_the_id_that_means_unchanged() {
    let extras = Extras {
        config: json!({ "User": "4294967295" }),
        ..Extras::default()
    };
    with_image(&extras, async |rig| {
        let sandbox = rig.sandbox("minus-one");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let config = rig.container("main", &["/bin/true"]);
        let error = rig.client.create(&pod, &config, &sandbox).await;
        let error = error.expect_err("no such user");
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("4294967295"), "{error}");
    });
}
