//! The container's process: what it runs, where, with which environment.

use std::collections::HashSet;
use std::path::PathBuf;

use runtime::spec::Process;

use super::user::Account;
use super::{Inputs, SpecError, apparmor, caps, limits};
use crate::model::Bytes;

/// What every image may count on.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The container's first process, and what exec inherits from it.
pub(super) fn build(inputs: &Inputs<'_>, account: Account) -> Result<Process, SpecError> {
    let (config, security) = (inputs.config, &inputs.config.security);
    let env = environment(inputs, &account);
    Ok(Process {
        args: arguments(inputs)?,
        env,
        cwd: working_dir(inputs)?,
        terminal: config.tty,
        uid: account.uid,
        gid: account.gid,
        groups: account.groups,
        umask: None,
        capabilities: caps::sets(security)?,
        rlimits: vec![limits::open_files(inputs.open_files)],
        no_new_privileges: security.no_new_privs,
        apparmor_profile: apparmor(config),
        selinux_label: None,
        oom_score_adj: i32::try_from(config.resources.oom_score_adj).ok(),
    })
}

/// The request's working directory, or the image's, or the root.
fn working_dir(inputs: &Inputs<'_>) -> Result<PathBuf, SpecError> {
    let of_request = inputs.config.working_dir.as_str();
    let of_image = inputs.image.working_dir().as_deref();
    match (of_request, of_image.unwrap_or_default()) {
        ("", "") => Ok(PathBuf::from("/")),
        ("", dir) if !dir.starts_with('/') => Err(SpecError::RelativeWorkingDir(dir.to_owned())),
        ("", dir) | (dir, _) => Ok(PathBuf::from(dir)),
    }
}

/// Command and arguments by Kubernetes' rule: a command hides both of the
/// image's, arguments alone only its Cmd.
fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, SpecError> {
    let config = inputs.config;
    let entrypoint = inputs.image.entrypoint().clone().unwrap_or_default();
    let cmd = inputs.image.cmd().clone().unwrap_or_default();
    let mut words;
    if !config.command.is_empty() {
        words = config.command.clone();
        words.extend(config.args.iter().cloned());
    } else {
        words = entrypoint;
        words.extend(if config.args.is_empty() {
            cmd
        } else {
            config.args.clone()
        });
    }
    if words.iter().all(String::is_empty) {
        Err(SpecError::NoCommand)
    } else {
        Ok(words)
    }
}

/// The image's environment, then the request's; the last word on a name wins.
fn environment(inputs: &Inputs<'_>, account: &Account) -> Vec<Vec<u8>> {
    let of_image = inputs.image.env().clone().unwrap_or_default();
    let mut all = vec![PATH.as_bytes().to_vec()];
    if inputs.config.tty {
        all.push(b"TERM=xterm".to_vec());
    }
    let hostname = &inputs.sandbox.hostname;
    if !hostname.is_empty() {
        all.push(format!("HOSTNAME={hostname}").into_bytes());
    }
    // Always there: a launcher that had to look it up would read the image's
    // user database with the image's own modules.
    all.push(format!("HOME={}", account.home).into_bytes());
    let pairs = of_image.into_iter().filter(|pair| pair.contains('='));
    all.extend(pairs.map(String::into_bytes));
    let requested = inputs.config.envs.iter();
    all.extend(requested.map(|(name, Bytes(value))| [name.as_bytes(), b"=", value].concat()));
    last_of_each_name(all)
}

/// Whether the image or the request says where the home of the process is.
pub(super) fn says_home(inputs: &Inputs<'_>) -> bool {
    let mut of_image = inputs.image.env().iter().flatten();
    let mut requested = inputs.config.envs.iter();
    requested.any(|(name, _)| name == "HOME") || of_image.any(|pair| pair.starts_with("HOME="))
}

/// Of pairs with the same name the last one, where it stands.
fn last_of_each_name(all: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut later = HashSet::with_capacity(all.len());
    let mut kept: Vec<Vec<u8>> = all
        .into_iter()
        .rev()
        .filter(|pair| {
            let name = pair.split(|byte| *byte == b'=').next();
            later.insert(name.unwrap_or_default().to_vec())
        })
        .collect();
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_a_name_wins() {
        let pairs = ["A=1", "B=2", "A=3", "C=", "B=4=5"];
        let kept = last_of_each_name(pairs.map(|pair| pair.as_bytes().to_vec()).into());
        assert_eq!(kept, [&b"A=3"[..], b"C=", b"B=4=5"]);
    }
}
