//! Configurations of images, as files beside the layers.
//!
//! ```text
//! <root>/images/configs/<image>/config    the text, whose digest is the image's id
//! <root>/images/configs/<image>/process   what of it the processes of containers get
//! ```
//!
//! A text may have mebibytes, and a node hundreds of images: who wants it reads it. The
//! other file is small whatever the image is, and is read whenever a container is made.
//! Both are written in staging, moved to their place and synced before the image's record,
//! and go with that.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::image::{Config, ImageConfiguration};

use crate::manifest;

const TEXT: &str = "config";
const PROCESS: &str = "process";

/// Files and a directory.
pub(crate) const INODES: u64 = 3;
/// What the usual file systems give at a time.
const BLOCK: u64 = 4096;

/// A configuration that is to be kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    /// Its exact text.
    pub config: String,
    /// What of it processes get.
    pub process: Config,
}

impl Texts {
    /// Writes both into a fresh directory.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join(TEXT), &self.config)?;
        fs::write(dir.join(PROCESS), self.process_text()?)
    }

    /// Whether both are in a directory as they should be.
    pub(crate) fn are_in(&self, dir: &Path) -> io::Result<bool> {
        let holds = |name, text: &[u8]| match fs::read(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            found => Ok(found.is_ok_and(|found| found == text)),
        };
        Ok(holds(TEXT, self.config.as_bytes())? && holds(PROCESS, &self.process_text()?)?)
    }

    /// How many bytes of the disk they take.
    pub(crate) fn bytes_on_disk(&self) -> io::Result<u64> {
        let on_disk = |bytes: usize| (bytes as u64).next_multiple_of(BLOCK);
        Ok(BLOCK + on_disk(self.config.len()) + on_disk(self.process_text()?.len()))
    }

    fn process_text(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(&self.process)?)
    }
}

/// Reads a whole configuration.
pub(crate) fn read(dir: &Path) -> io::Result<ImageConfiguration> {
    let text = fs::read(dir.join(TEXT))?;
    manifest::parse_config(&text).map_err(io::Error::other)
}

/// Reads what of it processes get.
pub(crate) fn read_process(dir: &Path) -> io::Result<Config> {
    let text = fs::read(dir.join(PROCESS))?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_read_again_and_their_blocks_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Config::default();
        process.set_env(Some(vec!["A=b".to_owned()]));
        let texts = Texts {
            config: r#"{"os":"linux","config":{"Labels":{"a":"b"}}}"#.to_owned(),
            process: process.clone(),
        };
        assert!(!texts.are_in(dir.path()).unwrap());
        texts.write(dir.path()).unwrap();
        assert!(texts.are_in(dir.path()).unwrap());
        assert_eq!(texts.bytes_on_disk().unwrap(), 3 * BLOCK);
        assert_eq!(read_process(dir.path()).unwrap(), process);
        let whole = read(dir.path()).unwrap();
        let labels = whole.config().as_ref().unwrap().labels().clone().unwrap();
        assert_eq!(labels.get("a").map(String::as_str), Some("b"));
        fs::write(dir.path().join(TEXT), "").unwrap();
        assert!(!texts.are_in(dir.path()).unwrap());
        fs::remove_file(dir.path().join(PROCESS)).unwrap();
        assert!(read_process(dir.path()).is_err());
    }
}
