//! Images made in memory: layers, configuration, manifest.

use std::io::Write;
use std::path::Path;

use image_store::Digest;
use serde_json::json;

/// How a layer travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// One layer.
#[derive(Clone)]
pub(crate) struct Layer {
    pub plain: Vec<u8>,
    pub blob: Vec<u8>,
    pub media_type: String,
}

/// One image.
#[derive(Clone)]
pub(crate) struct Image {
    pub config: Vec<u8>,
    pub layers: Vec<Layer>,
    pub manifest: Vec<u8>,
}

/// Go's name of this machine's architecture.
pub(crate) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A tar of files; a name that ends in a slash is a directory.
pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in files {
        let mut h = tar::Header::new_gnu();
        h.set_mode(if name.ends_with('/') { 0o755 } else { 0o644 });
        h.set_mtime(1_600_000_000);
        h.set_entry_type(if name.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        h.set_size(body.len() as u64);
        builder.append_data(&mut h, name, *body).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A layer of these files.
pub(crate) fn layer(packing: Packing, files: &[(&str, &[u8])]) -> Layer {
    layer_of(packing, tar_of(files))
}

/// A layer of this archive.
pub(crate) fn layer_of(packing: Packing, plain: Vec<u8>) -> Layer {
    let base = "application/vnd.oci.image.layer.v1.tar";
    let (blob, suffix) = match packing {
        Packing::Plain => (plain.clone(), ""),
        Packing::Gzip => {
            let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            e.write_all(&plain).unwrap();
            (e.finish().unwrap(), "+gzip")
        }
        Packing::Zstd => (zstd::encode_all(&plain[..], 1).unwrap(), "+zstd"),
    };
    Layer {
        plain,
        blob,
        media_type: format!("{base}{suffix}"),
    }
}

/// An image of these layers for this machine.
pub(crate) fn image(layers: &[Layer]) -> Image {
    image_for("linux", arch(), layers)
}

/// An image of these layers for some machine.
pub(crate) fn image_for(os: &str, arch: &str, layers: &[Layer]) -> Image {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|l| Digest::of(&l.plain).to_string())
        .collect();
    let config = json!({
        "architecture": arch, "os": os,
        "config": {"Cmd": ["/bin/true"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = manifest(&config, layers);
    Image {
        config,
        layers: layers.to_vec(),
        manifest,
    }
}

fn manifest(config: &[u8], layers: &[Layer]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|l| descriptor(&l.media_type, &l.blob))
        .collect();
    serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": layers,
    }))
    .unwrap()
}

/// Points to bytes.
pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

/// A name in an archive.
pub(crate) fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

impl Image {
    /// The image's id.
    pub(crate) fn id(&self) -> image_store::ImageId {
        image_store::ImageId(Digest::of(&self.config))
    }

    /// The manifest's digest.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The files of an OCI layout that holds this image under a name.
    pub(crate) fn layout(&self, name: Option<&str>) -> Vec<(String, Vec<u8>)> {
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &self.manifest);
        if let Some(name) = name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
            (blob_path(&self.manifest), self.manifest.clone()),
            (blob_path(&self.config), self.config.clone()),
        ];
        for layer in &self.layers {
            files.push((blob_path(&layer.blob), layer.blob.clone()));
        }
        files
    }

    /// The files of a `docker save` archive.
    pub(crate) fn saved(&self, tags: &[&str]) -> Vec<(String, Vec<u8>)> {
        let names: Vec<String> = (0..self.layers.len())
            .map(|i| format!("{i}/layer.tar"))
            .collect();
        let config = format!("{}.json", self.id().hex());
        let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": names}]);
        let mut files = vec![(config, self.config.clone())];
        for (name, layer) in names.into_iter().zip(&self.layers) {
            files.push((name, layer.plain.clone()));
        }
        files.push((
            "manifest.json".to_owned(),
            serde_json::to_vec(&manifest).unwrap(),
        ));
        files
    }
}

/// Writes files into a directory.
pub(crate) fn write_dir(dir: &Path, files: &[(String, Vec<u8>)]) {
    for (name, body) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    }
}

/// Packs files into an archive.
pub(crate) fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()))
        .collect();
    tar_of(&files)
}
