//! Files into one table: later drop-ins win key by key, lists are replaced.

use std::path::{Path, PathBuf};

use super::check::ConfigError;
use super::raw::Raw;

/// One parsed file.
pub(super) struct Source {
    path: PathBuf,
    table: toml::Table,
}

/// Reads a file that must be there.
pub(super) fn read(path: &Path) -> Result<Source, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// Reads a file that may be missing.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Source>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn parse(path: &Path, text: &str) -> Result<Source, ConfigError> {
    let named = |source| ConfigError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    };
    // Parsed twice: into the shape for an error that names file, line and key,
    // and into a table for the merge.
    toml::from_str::<Raw>(text).map_err(named)?;
    let table = toml::from_str(text).map_err(named)?;
    Ok(Source {
        path: path.to_owned(),
        table,
    })
}

/// The `*.toml` of a folder in name order.
pub(super) fn drop_ins(dir: &Path, must_exist: bool) -> Result<Vec<PathBuf>, ConfigError> {
    let named = |source| ConfigError::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(named(source)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(named)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
            && path.is_file()
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Merges in order; the last word on a key wins.
pub(super) fn merge(sources: Vec<Source>) -> Result<Raw, ConfigError> {
    let mut merged = toml::Table::new();
    let mut last = PathBuf::from("the defaults");
    for source in sources {
        overlay(&mut merged, source.table);
        last = source.path;
    }
    merged.try_into().map_err(|source| ConfigError::Parse {
        path: last,
        source: Box::new(source),
    })
}

fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
