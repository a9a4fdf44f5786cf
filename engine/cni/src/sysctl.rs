//! Kernel parameters below `/proc/sys`, of the calling thread's namespace.
//!
//! Owns nothing; keeps nothing.

use std::fs;
use std::io;
use std::path::PathBuf;

/// The file of a parameter: with slashes (`net/ipv4/ip_forward`), or with dots
/// where there is no slash.
fn path(name: &str) -> PathBuf {
    let slashed = if name.contains('/') {
        name.trim_start_matches('/').to_owned()
    } else {
        name.replace('.', "/")
    };
    PathBuf::from("/proc/sys").join(slashed)
}

/// Reads a parameter without its line end.
pub(crate) fn read(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(name))?.trim_end().to_owned())
}

/// Writes a parameter.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value)
}

/// Writes a parameter unless it has that value already.
pub(crate) fn ensure(name: &str, value: &str) -> io::Result<()> {
    if read(name).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    write(name, value)
}
