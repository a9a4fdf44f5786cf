//! Devices by the Container Device Interface: what containers get that ask for one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proto::v1;
use tonic::Code;

use crate::rig::{Rig, with_settings};

/// A folder of specifications that no engine but the test's reads.
fn specifications() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("files")).expect("a folder");
    std::fs::write(dir.path().join("files/word"), "of the vendor").expect("a file");
    dir
}

/// A device of the node that anybody may open who has a node of it.
fn card() -> &'static str {
    let known = ["/dev/fuse", "/dev/loop-control", "/dev/net/tun"];
    let found = known.into_iter().find(|path| Path::new(path).exists());
    found.expect("one of these devices")
}

/// A specification of a vendor's cards `0` and `hooked`, in YAML.
fn write_cards(dir: &Path, word: &str) {
    let files = dir.join("files");
    let card = card();
    let text = format!(
        r#"
cdiVersion: "0.7.0"
kind: vendor.com/card
containerEdits:
  env: ["CARD={word}"]
  additionalGids: [4711]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - {{ path: /dev/card0, hostPath: {card}, permissions: r, uid: 0, gid: 0, fileMode: 288 }}
    mounts:
    - {{ hostPath: {files:?}, containerPath: /card, options: [ro, nosuid, nodev, noexec, rbind] }}
- name: hooked
  containerEdits:
    hooks: [{{ hookName: createContainer, path: /bin/true }}]
"#
    );
    std::fs::write(dir.join("cards.yaml"), text).expect("a specification");
}

fn with_specifications(test: impl AsyncFnOnce(&mut Rig, &Path)) {
    let dir = specifications();
    let settings = format!("[cdi]\nspec_dirs = [{:?}]\n", dir.path());
    with_settings(&settings, async |rig| test(rig, dir.path()).await);
}

fn devices(names: &[&str]) -> Vec<v1::CdiDevice> {
    let named = |name: &&str| v1::CdiDevice {
        name: (*name).to_owned(),
    };
    names.iter().map(named).collect()
}

#[test]
fn a_container_gets_what_the_vendor_says_and_its_commands_too() {
    with_specifications(async |rig, dir| {
        let sandbox = rig.sandbox("cdi");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        config.cdi_devices = devices(&["vendor.com/card=0"]);
        let early = rig.client.create(&pod, &config, &sandbox).await;
        let early = early.expect_err("there is no such specification yet");
        assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
        assert!(early.message().contains("vendor.com/card=0"), "{early}");
        write_cards(dir, "first");
        let by_field = rig.started(&pod, &config, &sandbox).await;
        // As device plugins ask, one name twice.
        let mut config = rig.container("annotated", &["/bin/sleep", "1000"]);
        let names = "vendor.com/card=0,vendor.com/card=0".to_owned();
        config
            .annotations
            .insert("cdi.k8s.io/plugin_1".to_owned(), names);
        write_cards(dir, "second");
        let by_annotation = rig.started(&pod, &config, &sandbox).await;
        for (id, word) in [(by_field, "first"), (by_annotation, "second")] {
            let script = "echo $CARD; cat /card/word; echo; \
                          stat -c '%t %T %a %u' /dev/card0; id -G; \
                          ( : </dev/card0 ) && echo read; \
                          ( : >>/dev/card0 ) 2>&1 | grep -o 'not permitted'; \
                          touch /card/new 2>&1 | grep -o 'Read-only'";
            let output = rig.client.exec(&id, &["/bin/sh", "-c", script], 10).await;
            let said = output.expect("exec").stdout;
            let number = std::fs::metadata(card()).expect("the card").rdev();
            let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
            let expected = format!(
                "{word}\nof the vendor\n{major:x} {minor:x} 440 0\n0 4711\nread\nnot permitted\nRead-only\n"
            );
            assert_eq!(said, expected);
            let status = rig.client.container(&id).await.expect("status");
            let user = status.user.and_then(|user| user.linux).expect("a user");
            assert!(user.supplemental_groups.contains(&4711), "{user:?}");
        }
        let request = v1::StatusRequest { verbose: true };
        let status = rig.client.runtime.status(request).await.expect("status");
        let told = &status.into_inner().info["cdi"];
        assert!(told.contains("vendor.com/card=hooked"), "{told}");
    });
}

#[test]
fn what_a_vendor_asks_for_that_is_not_there_is_refused_and_harms_no_other_device() {
    with_specifications(async |rig, dir| {
        write_cards(dir, "word");
        std::fs::write(dir.join("broken.json"), "{").expect("a file");
        std::os::unix::fs::symlink("/dev/zero", dir.join("endless.json")).expect("a link");
        let fifo = dir.join("fifo.json");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        let sandbox = rig.sandbox("cdi-refused");
        let pod = rig.client.run_pod(&sandbox).await.expect("run");
        for (name, code, word) in [
            ("vendor.com/card=hooked", Code::Unimplemented, "hooks"),
            ("vendor.com/card=1", Code::FailedPrecondition, "broken.json"),
            ("vendor.com/card", Code::InvalidArgument, "CDI_devices"),
            ("vendor.com/card=../0", Code::InvalidArgument, "CDI_devices"),
        ] {
            let mut config = rig.container("main", &["/bin/sleep", "1000"]);
            config.cdi_devices = devices(&[name]);
            let error = rig.client.create(&pod, &config, &sandbox).await;
            let error = error.expect_err(name);
            assert_eq!(error.code(), code, "{name}: {error}");
            assert!(error.message().contains(word), "{name}: {error}");
        }
        assert!(rig.client.containers().await.expect("list").is_empty());
        let mut config = rig.container("main", &["/bin/sleep", "1000"]);
        config.cdi_devices = devices(&["vendor.com/card=0"]);
        rig.started(&pod, &config, &sandbox).await;
    });
}
