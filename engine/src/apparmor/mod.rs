//! AppArmor: whether the kernel has it, which profiles are loaded, and the default one.
//!
//! The default profile is loaded by the node's apparmor_parser when the engine starts, in
//! the place of the one of an engine before it. Containers have it that ask for
//! RuntimeDefault, and those that ask for nothing, unless they are privileged. It stays
//! loaded when the engine ends, as its containers do.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The name of the default profile.
pub(crate) const DEFAULT: &str = "slipway-default";

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// The engine's own profile.
const OWN: &str = "/proc/self/attr/current";
const TEXT: &str = include_str!("profile");
/// Where distributions have the parser.
const PARSERS: [&str; 4] = [
    "/usr/sbin/apparmor_parser",
    "/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
    "/usr/local/sbin/apparmor_parser",
];

/// The default profile is in the kernel; this engine put it there.
static LOADED: AtomicBool = AtomicBool::new(false);

/// Why the default profile is not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// There is nothing to load it with.
    #[error("the node has no apparmor_parser")]
    NoParser,
    /// The parser could not be run.
    #[error("run {0}")]
    Run(&'static str, #[source] io::Error),
    /// The parser refused it.
    #[error("apparmor_parser: {0}")]
    Refused(String),
}

/// Whether the kernel has AppArmor; it cannot change while it runs.
pub(crate) fn is_enabled() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| std::fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y"))
}

/// Whether the default profile was loaded.
pub(crate) fn has_default() -> bool {
    LOADED.load(Ordering::Relaxed)
}

/// Whether the kernel has a profile of this name.
///
/// # Errors
/// The kernel's list cannot be read.
pub(crate) fn is_loaded(name: &str) -> io::Result<bool> {
    let listed = std::fs::read_to_string(PROFILES)?;
    Ok(is_listed(&listed, name))
}

/// A line is a name and, in parentheses, a mode; a name may have spaces.
fn is_listed(listed: &str, name: &str) -> bool {
    let mut names = listed.lines().filter_map(|line| line.rsplit_once(" ("));
    names.any(|(known, _)| known == name)
}

/// Where the parser is.
///
/// # Errors
/// `NoParser`.
pub(crate) fn parser() -> Result<&'static str, LoadError> {
    let mut known = PARSERS.into_iter();
    known
        .find(|path| std::path::Path::new(path).is_file())
        .ok_or(LoadError::NoParser)
}

/// Loads the default profile, in the place of an older one; blocking, for as long as the
/// parser takes.
///
/// # Errors
/// There is no parser, or it refuses.
pub(crate) fn load() -> Result<(), LoadError> {
    let parser = parser()?;
    let own = std::fs::read_to_string(OWN).unwrap_or_default();
    let failed = |error| LoadError::Run(parser, error);
    let mut command = Command::new(parser);
    // Replaces; neither reads nor writes the node's cache of profiles.
    command.args(["--replace", "--skip-cache"]);
    command.env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A parser that has ended says why by itself.
        drop(stdin.write_all(text(&own).as_bytes()));
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(LoadError::Refused(said.trim().chars().take(500).collect()));
    }
    LOADED.store(true, Ordering::Relaxed);
    Ok(())
}

/// The profile for an engine that runs under `own`, as the kernel says it: a name and,
/// in parentheses, a mode.
fn text(own: &str) -> String {
    let own = own.trim_end_matches(['\n', '\0']);
    let name = own.rsplit_once(" (").map_or(own, |(name, _)| name);
    // What would not be one word in the profile is nobody that has to be let in.
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    match !name.is_empty() && name.chars().all(plain) {
        true => TEXT.replace("@ENGINE@", name),
        false => TEXT.replace("@ENGINE@", "unconfined"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_listed_by_its_whole_name() {
        let listed = "slipway-default (enforce)\nmy profile (complain)\nx//y (enforce)\n";
        for name in ["slipway-default", "my profile", "x//y"] {
            assert!(is_listed(listed, name), "{name}");
        }
        for name in ["slipway", "my profile (complain)", "", "enforce"] {
            assert!(!is_listed(listed, name), "{name}");
        }
    }

    #[test]
    fn the_engine_may_signal_under_any_profile_that_it_may_have() {
        assert!(TEXT.contains(&format!("profile {DEFAULT} ")));
        let peer = |own: &str| {
            let text = text(own);
            assert!(!text.contains('@'), "{text}");
            text.contains("signal (receive) peer=/usr/bin/slipway,")
        };
        assert!(peer("/usr/bin/slipway (enforce)\n"));
        for own in ["unconfined\n", "", "a, } profile b { (enforce)"] {
            assert!(!peer(own), "{own}");
        }
    }
}
