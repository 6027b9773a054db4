// SPDX-License-Identifier: MIT OR Apache-2.0
//! An image from scratch, as an OCI image layout in one tar file (OCI image specification 1.1, image-layout, manifest and
//! config), which `podman load`, `docker load` (25 and newer), `ctr images import` and `skopeo` all read.
//!
//! In: one program. Out: bytes, always the same for the same program: no time, no owner, no name of this machine goes in.

use std::io::Write;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The epoch, as the specification writes it.
const CREATED: &str = "1970-01-01T00:00:00Z";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What goes into an image.
pub struct Contents<'a> {
    /// `NAME:TAG`.
    pub name: &'a str,
    /// As Go calls it: `amd64`, `arm64`.
    pub architecture: &'a str,
    /// Where the program stands in the image, without the leading slash; it is the image's entry point.
    pub path: &'a str,
    /// A static program.
    pub program: &'a [u8],
    /// Shown by `docker inspect` and in registries.
    pub labels: Value,
}

/// The image as a tar file.
pub fn write(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let layer = tar(&[(contents.path, contents.program, 0o755)])?;
    let packed = gzip(&layer)?;
    let config = json(&json!({
        "architecture": contents.architecture,
        "os": "linux",
        "created": CREATED,
        "config": { "Entrypoint": [format!("/{}", contents.path)], "Labels": contents.labels },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        "history": [{ "created": CREATED, "created_by": "cargo xtask image" }],
    }))?;
    let manifest = json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &packed)],
    }))?;
    let tag = contents.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let mut described = descriptor(MANIFEST, &manifest);
    described["platform"] = json!({ "architecture": contents.architecture, "os": "linux" });
    // The first is the specification's, the second what containerd and kind name the image by.
    described["annotations"] =
        json!({ "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": contents.name });
    let index = json(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [described] }))?;
    let layout = json(&json!({ "imageLayoutVersion": "1.0.0" }))?;
    let blobs = [&config, &manifest, &packed].map(|blob| (blob_path(blob), blob));
    let mut files: Vec<(&str, &[u8], u32)> = vec![("oci-layout", &layout, 0o644), ("index.json", &index, 0o644)];
    files.extend(blobs.iter().map(|(path, blob)| (path.as_str(), blob.as_slice(), 0o644)));
    tar(&files)
}

/// Files of root's, as old as the epoch, with the directories that they are in.
fn tar(files: &[(&str, &[u8], u32)]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut directories: Vec<&str> = Vec::new();
    for (path, bytes, mode) in files {
        for (end, _) in path.match_indices('/') {
            let directory = &path[..=end];
            if !directories.contains(&directory) {
                directories.push(directory);
                append(&mut archive, directory, tar::EntryType::Directory, 0o755, &[])?;
            }
        }
        append(&mut archive, path, tar::EntryType::Regular, *mode, bytes)?;
    }
    archive.into_inner().context("can't end a tar archive")
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    bytes: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, path, bytes).with_context(|| format!("can't put {path} into a tar archive"))
}

/// Without name and time in the header.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).context("can't compress the layer")
}

fn json(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("can't write JSON")
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

/// `sha256:HEX`.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob_path(blob: &[u8]) -> String {
    format!("blobs/{}", digest(blob).replace(':', "/"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    fn image() -> Vec<u8> {
        let contents = Contents {
            name: "localhost/shunt:1",
            architecture: "amd64",
            path: "bin/lb-agent",
            program: b"a program",
            labels: json!({}),
        };
        write(&contents).unwrap()
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().to_string_lossy().into_owned(), bytes)
        });
        entries.collect()
    }

    #[test]
    fn every_blob_is_found_by_its_digest_down_to_the_program() {
        let files = files(&image());
        let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap();
            let bytes = &files[&format!("blobs/{}", name.replace(':', "/"))];
            assert_eq!(name, digest(bytes));
            assert_eq!(descriptor["size"], bytes.len());
            bytes.clone()
        };
        assert_eq!(parsed(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let index = parsed(&files["index.json"]);
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/shunt:1");
        let manifest = parsed(&blob(&index["manifests"][0]));
        let config = parsed(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/lb-agent"]));
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(&blob(&manifest["layers"][0])[..]).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let layer = self::files(&layer);
        assert_eq!(layer["bin/lb-agent"], b"a program");
        assert!(layer.contains_key("bin/"));
    }

    #[test]
    fn the_same_program_gives_the_same_image() {
        assert_eq!(image(), image());
    }
}
