//! What registries and images can make the store remember: never much, whatever
//! they send. Each attack runs in a process of its own, whose peak is measured.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use image_store::{Digest, Tuning};
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::image::{Image, Layer, Packing, descriptor, image, layer, layer_of};
use crate::support::registry::{Access, Fault, Registry};
use crate::support::{eventually, left_over, open_with, tuning};

const DIR: &str = "SLIPWAY_TEST_MEMORY_DIR";
/// What is pulled, one after the other.
const REFERENCES: &str = "SLIPWAY_TEST_MEMORY_REFERENCES";
/// References that are pulled beside it, and never arrive.
const DRIPS: &str = "SLIPWAY_TEST_MEMORY_DRIPS";
/// For any layer and any document, the program itself included.
const BOUND_KIB: u64 = 100 << 10;
/// For all layers together, with the budget for large windows.
const ALL_BOUND_KIB: u64 = BOUND_KIB + (128 << 10);
/// What an attack sends: remembered, it would be above the bound.
const MEBIBYTES: usize = 110;
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The process that is measured; does nothing unless started for that.
#[tokio::test(flavor = "multi_thread")]
async fn memory_child() {
    let (Ok(dir), Ok(references)) = (std::env::var(DIR), std::env::var(REFERENCES)) else {
        return;
    };
    let dir = Path::new(&dir);
    // What is measured is memory: a busy machine may take its time.
    let patient = Tuning {
        first_byte: Duration::from_secs(60),
        stall: Duration::from_secs(60),
        ..tuning()
    };
    let store = open_with(dir, patient).await;
    let drips = std::env::var(DRIPS).unwrap_or_default();
    let dripping: JoinSet<_> = drips
        .split_whitespace()
        .map(|reference| {
            let (store, reference) = (store.clone(), reference.to_owned());
            async move { store.pull(&reference, None).await.is_ok() }
        })
        .collect();
    eventually("what drips is on its way", || {
        dripping.is_empty() || left_over(dir).len() >= 12
    })
    .await;
    let mut result = Ok(());
    for reference in references.split_whitespace() {
        let pull = tokio::time::timeout(Duration::from_secs(120), store.pull(reference, None));
        let pulled = pull.await.expect("not within two minutes");
        if let Ok(image) = &pulled {
            store.configuration(&image.id).await.unwrap();
        }
        result = pulled.map(drop);
    }
    drop(dripping);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .unwrap();
    let peak = peak.trim().trim_end_matches(" kB");
    let refused = match &result {
        Ok(()) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    };
    println!("PEAK {peak} {refused}");
    // What is not needed is thrown away behind the answer.
    if result.is_err() && drips.is_empty() {
        eventually("nothing is left", || left_over(dir).is_empty()).await;
    }
    // What the staging thread left is gone when the store is.
    drop(store);
}

/// Pulls in a process of its own; tells the peak in KiB and how it ended.
async fn pulled(registry: &Registry) -> (u64, String) {
    pulled_beside(&[registry.reference("a/b:1")], &[]).await
}

/// The same, with several images, beside others that drip.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
async fn pulled_beside(references: &[String], drips: &[String]) -> (u64, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "memory::memory_child", "--nocapture"])
        .env(DIR, dir.path())
        .env(REFERENCES, references.join(" "))
        .env(DRIPS, drips.join(" "));
    let output = tokio::task::spawn_blocking(move || child.output().unwrap())
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said
        .lines()
        .find_map(|l| l.strip_prefix("PEAK "))
        .unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)));
    let (peak, end) = line.split_once(' ').unwrap();
    if end != "accepted" {
        assert!(left_over(dir.path()).is_empty(), "{end}");
    }
    (peak.parse().unwrap(), end.to_owned())
}

/// A layer from an archive that is written piece by piece: it may be much bigger
/// than what it is compressed to.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn packed(write: impl Fn(&mut dyn Write)) -> Layer {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let mut plain = Vec::new();
    write(&mut plain);
    encoder.write_all(&plain).unwrap();
    Layer {
        blob: encoder.finish().unwrap(),
        plain,
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
    }
}

/// A header, and a body that fills its last block.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn entry(out: &mut dyn Write, name: &str, flag: u8, body: &[u8]) {
    let mut h = tar::Header::new_gnu();
    h.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    h.set_entry_type(tar::EntryType::new(flag));
    h.set_mode(0o755);
    h.set_mtime(1);
    h.set_size(body.len() as u64);
    h.set_cksum();
    out.write_all(h.as_bytes()).unwrap();
    out.write_all(body).unwrap();
    let padding = body.len().next_multiple_of(512) - body.len();
    out.write_all(&vec![0; padding]).unwrap();
}

/// One PAX record of about a mebibyte.
fn record(number: usize) -> Vec<u8> {
    let value = vec![b'v'; 1_000_000];
    let rest = [
        format!(" SCHILY.xattr.user.{number}=").as_bytes(),
        &value,
        b"\n",
    ]
    .concat();
    let len = rest.len() + 7;
    [len.to_string().as_bytes(), &rest].concat()
}

fn pax_flood(out: &mut dyn Write) {
    for number in 0..MEBIBYTES {
        entry(out, "x", b'x', &record(number));
    }
    entry(out, "f", b'0', b"");
}

fn name_flood(out: &mut dyn Write) {
    for _ in 0..MEBIBYTES {
        entry(out, "x", b'L', &vec![b'n'; 1_000_000]);
    }
    entry(out, "f", b'0', b"");
}

fn directories_again(out: &mut dyn Write) {
    let deep = "d".repeat(200) + "/";
    for _ in 0..25_000 {
        entry(out, "x", b'L', deep.repeat(20).as_bytes());
        entry(out, "d", b'5', b"");
    }
}

fn directories_unlisted(out: &mut dyn Write) {
    for n in 0..600 {
        let path = format!("{n}/{}f", ("d".repeat(250) + "/").repeat(15));
        entry(out, "x", b'L', path.as_bytes());
        entry(out, "f", b'0', b"");
    }
}

#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn windowed(log: u32) -> Layer {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder
        .set_parameter(zstd::zstd_safe::CParameter::WindowLog(log))
        .unwrap();
    let mut plain = Vec::new();
    for _ in 0..72 {
        entry(&mut plain, "f", b'0', &vec![7; 1 << 20]);
    }
    encoder.write_all(&plain).unwrap();
    Layer {
        blob: encoder.finish().unwrap(),
        plain,
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_layer_takes_more_memory_than_a_hundred_mebibytes() {
    // A gzip header whose name has no end.
    let mut endless = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
    endless.resize(MEBIBYTES << 20, b'n');
    let endless = Layer {
        blob: endless,
        ..layer(Packing::Gzip, &[])
    };
    for (what, layer, end) in [
        (
            "an honest one",
            layer(Packing::Gzip, &[("f", b"x")]),
            "accepted",
        ),
        ("PAX headers", packed(pax_flood), "cannot be unpacked"),
        ("long names", packed(name_flood), "cannot be unpacked"),
        (
            "one directory again and again",
            packed(directories_again),
            "accepted",
        ),
        (
            "unlisted directories",
            packed(directories_unlisted),
            "not listed",
        ),
        ("a window of 128 MiB", windowed(27), "cannot be unpacked"),
        ("a window of 64 MiB", windowed(26), "accepted"),
        ("a gzip header", endless, "cannot be unpacked"),
    ] {
        let registry = Registry::start().await;
        registry.push("a/b", "1", &image(&[layer]));
        let (peak, ended) = pulled(&registry).await;
        println!("{what}: {} MiB, {ended}", peak >> 10);
        assert!(ended.contains(end), "{what}: {ended}");
        assert!(peak <= BOUND_KIB, "{what}: {peak} KiB");
    }
}

/// A layer that fills a window of 64 MiB from two kilobytes, has small blocks
/// behind that, and never becomes what it should.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn filled(number: usize) -> Layer {
    let block = |kind: u32, len: u32| (kind << 1 | len << 3).to_le_bytes()[..3].to_vec();
    let mut header = tar::Header::new_gnu();
    // A name that is not unpacked: the disk is left alone.
    header.set_path(".wh..wh.big").unwrap();
    header.set_mode(0o644);
    header.set_size(1 << 30);
    header.set_cksum();
    let mut blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 16 << 3];
    blob.extend([&block(0, 512)[..], header.as_bytes()].concat());
    blob.extend([block(1, 128 << 10), vec![0]].concat().repeat(540));
    let small = [block(0, 1000), vec![0; 1000]].concat();
    blob.extend(small.repeat(200));
    blob.extend([block(0, 8), number.to_le_bytes().to_vec()].concat());
    Layer {
        plain: number.to_string().into_bytes(),
        blob,
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
    }
}

/// Four images of one registry and one of each of three others, all of whose
/// layers drip when their windows are full.
async fn dripping() -> (Vec<Registry>, Vec<String>) {
    let (mut registries, mut references) = (Vec::new(), Vec::new());
    for images in [4, 1, 1, 1] {
        let registry = Registry::start().await;
        for _ in 0..images {
            let number = references.len() * 4;
            let repository = format!("drip/{number}");
            let layers: Vec<_> = (number..number + 4).map(filled).collect();
            registry.push(&repository, "1", &image(&layers));
            for layer in &layers {
                let path = format!("blobs/{}", Digest::of(&layer.blob));
                registry.fault(path, usize::MAX, Fault::Drip(4 << 10));
            }
            references.push(registry.reference(&format!("{repository}:1")));
        }
        registries.push(registry);
    }
    (registries, references)
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_all_layers_together_are_bounded_and_those_that_drip_hold_up_no_other() {
    for (what, layer) in [
        ("a window of 64 MiB", windowed(26)),
        ("an ordinary window", windowed(23)),
    ] {
        let (_registries, drips) = dripping().await;
        let registry = Registry::start().await;
        registry.push("a/b", "1", &image(&[layer]));
        let (peak, ended) = pulled_beside(&[registry.reference("a/b:1")], &drips).await;
        println!("{what}: {} MiB, {ended}", peak >> 10);
        assert_eq!(ended, "accepted", "{what}");
        assert!(peak <= ALL_BOUND_KIB, "{what}: {peak} KiB");
    }
}

/// An image with this configuration and no layer.
#[expect(
    clippy::unwrap_used,
    reason = "a test's helper, which the exception for tests misses"
)]
fn configured(config: Vec<u8>) -> Image {
    let manifest = json!({"schemaVersion": 2, "config": descriptor(CONFIG, &config), "layers": []});
    Image {
        config,
        layers: Vec::new(),
        manifest: serde_json::to_vec(&manifest).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_configuration_takes_more_memory_than_a_hundred_mebibytes() {
    let list = |of: &str, bytes: usize| of.repeat(bytes / of.len());
    let config = |inner: String| configured(format!("{{{inner}}}").into_bytes());
    let text = "t".repeat(3 << 20);
    for (what, image, end) in [
        (
            "history",
            config(format!(r#""history":[{}{{}}]"#, list("{},", 3_900_000))),
            "is invalid",
        ),
        (
            "environment",
            config(format!(
                r#""config":{{"Env":[{}""]}}"#,
                list(r#""","#, 3_900_000)
            )),
            "is invalid",
        ),
        (
            "unknown lists",
            config(format!(r#""x":[{}0]"#, list("0,", 3_900_000))),
            "is invalid",
        ),
        (
            "nesting",
            config(format!(r#""x":{}"#, list("[", 1_000_000))),
            "is invalid",
        ),
        (
            "a long label",
            config(format!(r#""config":{{"Labels":{{"a":"{text}"}}}}"#)),
            "accepted",
        ),
        (
            "too long",
            config(format!(r#""x":"{}""#, "t".repeat(9 << 20))),
            "above the bound",
        ),
    ] {
        check(what, image, end).await;
    }
}

/// A node has images of all its pods: what each says of itself is not kept in memory.
#[tokio::test(flavor = "multi_thread")]
async fn configurations_of_all_images_take_no_memory() {
    let registry = Registry::start().await;
    let text = "t".repeat(3 << 20);
    let mut references = Vec::new();
    for number in 0..MEBIBYTES / 3 {
        let config = format!(r#"{{"config":{{"Labels":{{"{number}":"{text}"}}}}}}"#);
        let repository = format!("a/{number}");
        registry.push(&repository, "1", &configured(config.into_bytes()));
        references.push(registry.reference(&format!("{repository}:1")));
    }
    let (peak, ended) = pulled_beside(&references, &[]).await;
    println!("{} images: {} MiB, {ended}", references.len(), peak >> 10);
    assert_eq!(ended, "accepted");
    assert!(peak <= BOUND_KIB, "{peak} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_manifest_takes_more_memory_than_a_hundred_mebibytes() {
    let list = |of: &str, bytes: usize| of.repeat(bytes / of.len());
    let empty = Digest::of(b"");
    let point = format!(r#"{{"digest":"{empty}","size":1}}"#);
    for (what, manifest, end) in [
        (
            "layers",
            format!(
                r#"{{"config":{point},"layers":[{}{point}]}}"#,
                list(&format!("{point},"), 4_000_000)
            ),
            "is invalid",
        ),
        (
            "empty layers",
            format!(
                r#"{{"config":{point},"layers":[{}{{}}]}}"#,
                list("{},", 4_000_000)
            ),
            "is invalid",
        ),
        (
            "addresses",
            format!(
                r#"{{"config":{{"urls":[{}""],"digest":"{empty}","size":1}},"layers":[]}}"#,
                list(r#""","#, 4_000_000)
            ),
            "is invalid",
        ),
        (
            "an index",
            format!(
                r#"{{"manifests":[{}{point}]}}"#,
                list(&format!("{point},"), 4_000_000)
            ),
            "is invalid",
        ),
    ] {
        let image = Image {
            manifest: manifest.into_bytes(),
            ..configured(b"{}".to_vec())
        };
        check(what, image, end).await;
    }
}

async fn check(what: &str, image: Image, end: &str) {
    let registry = Registry::start().await;
    registry.push("a/b", "1", &image);
    registry.put_manifest("a/b", "1", MANIFEST, &image.manifest);
    let (peak, ended) = pulled(&registry).await;
    println!("{what}: {} MiB, {ended}", peak >> 10);
    assert!(ended.contains(end), "{what}: {ended}");
    assert!(peak <= BOUND_KIB, "{what}: {peak} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_takes_more_memory_than_a_hundred_mebibytes() {
    let long = vec![b' '; MEBIBYTES << 20];
    let text: &'static str = String::leak("x".repeat(MEBIBYTES << 20));
    for (path, fault, end) in [
        ("/token", Fault::Says(200, text), "cannot be reached"),
        ("manifests/1", Fault::Other(long.clone()), "above the bound"),
        // A refusal that goes on and on is read no further than it is shown.
        ("manifests/1", Fault::Says(500, text), "cannot be reached"),
    ] {
        let registry = Registry::start().await;
        registry.push("a/b", "1", &image(&[layer_of(Packing::Plain, Vec::new())]));
        registry.access(Access::AnonymousToken);
        registry.fault(path, 9, fault);
        let (peak, ended) = pulled(&registry).await;
        println!("{path}: {} MiB, {ended}", peak >> 10);
        assert!(ended.contains(end), "{path}: {ended}");
        assert!(peak <= BOUND_KIB, "{path}: {peak} KiB");
    }
}
