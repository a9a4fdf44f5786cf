//! A tiny image around a static BusyBox, as an OCI archive built here.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The name that the tiny image gets.
pub const NAME: &str = "localhost/slipway/tiny:latest";

const APPLETS: [&str; 33] = [
    "sh", "ls", "cat", "echo", "sleep", "id", "true", "false", "grep", "touch", "mkdir", "mount",
    "umount", "ps", "env", "hostname", "head", "tail", "seq", "yes", "dd", "kill", "wc", "stat",
    "test", "ip", "od", "wget", "nc", "chmod", "rm", "sync", "printf",
];

/// What goes into an image beside BusyBox.
#[derive(Debug, Default)]
pub struct Extras {
    /// Files by path without a leading slash, with their mode.
    pub files: Vec<(String, Vec<u8>, u32)>,
    /// Symbolic links by path without a leading slash, with where they lead. What an
    /// image has in their place it does without.
    pub links: Vec<(String, String)>,
    /// Changes to the image's configuration, merged into `config`.
    pub config: Value,
    /// Another name than [`NAME`].
    pub name: Option<String>,
}

/// Where the node has a BusyBox that needs no libraries.
///
/// # Errors
/// It has none; `busybox-static` brings one.
pub fn busybox() -> anyhow::Result<PathBuf> {
    let known = ["/bin/busybox", "/usr/bin/busybox"];
    match known.iter().map(Path::new).find(|path| path.is_file()) {
        Some(path) => Ok(path.to_owned()),
        None => bail!("no busybox in {known:?}; install busybox-static"),
    }
}

/// Writes the archive.
///
/// # Errors
/// BusyBox is missing or the file cannot be written.
pub fn write(path: &Path, extras: &Extras) -> anyhow::Result<()> {
    let plain = layer(extras)?;
    let diff_id = digest(&plain);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&plain)?;
    let compressed = encoder.finish()?;
    let mut process = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Cmd": ["/bin/sh"],
        "WorkingDir": "/",
    });
    merge(&mut process, &extras.config);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)],
    })
    .to_string();
    let name = extras.name.as_deref().unwrap_or(NAME);
    let mut entry = descriptor(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut archive = Builder::new(file);
    add(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    add(&mut archive, "index.json", index.as_bytes(), 0o644)?;
    for blob in [config.as_bytes(), manifest.as_bytes(), &compressed] {
        let name = digest(blob).replace(':', "/");
        add(&mut archive, &format!("blobs/{name}"), blob, 0o644)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn merge(base: &mut Value, over: &Value) {
    if let (Some(base), Some(over)) = (base.as_object_mut(), over.as_object()) {
        base.extend(over.clone());
    }
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(blob), "size": blob.len() })
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn add<W: Write>(tar: &mut Builder<W>, name: &str, data: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(u64::try_from(data.len())?);
    header.set_mode(mode);
    header.set_entry_type(EntryType::Regular);
    tar.append_data(&mut header, name, data)?;
    Ok(())
}

fn layer(extras: &Extras) -> anyhow::Result<Vec<u8>> {
    let busybox = std::fs::read(busybox()?).context("read busybox")?;
    let mut tar = Builder::new(Vec::new());
    for (dir, mode) in [
        ("bin/", 0o755),
        ("etc/", 0o755),
        ("root/", 0o700),
        ("proc/", 0o755),
        ("sys/", 0o755),
        ("dev/", 0o755),
        ("tmp/", 0o1777),
    ] {
        let replaced = |(link, _): &(String, String)| dir.trim_end_matches('/') == link;
        if extras.links.iter().any(replaced) {
            continue;
        }
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mode(mode);
        header.set_entry_type(EntryType::Directory);
        tar.append_data(&mut header, dir, std::io::empty())?;
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    add(&mut tar, "etc/passwd", passwd, 0o644)?;
    add(
        &mut tar,
        "etc/group",
        b"root:x:0:\nextra:x:4242:nobody\nnogroup:x:65534:\n",
        0o644,
    )?;
    add(&mut tar, "bin/busybox", &busybox, 0o755)?;
    for applet in APPLETS {
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o755);
        header.set_entry_type(EntryType::Link);
        tar.append_link(&mut header, format!("bin/{applet}"), "bin/busybox")?;
    }
    for (link, target) in &extras.links {
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o777);
        header.set_entry_type(EntryType::Symlink);
        tar.append_link(&mut header, link, target)?;
    }
    for (name, data, mode) in &extras.files {
        add(&mut tar, name, data, *mode)?;
    }
    Ok(tar.into_inner()?)
}
