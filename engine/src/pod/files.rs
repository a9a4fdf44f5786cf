//! The files that all containers of a sandbox share: hostname, hosts,
//! resolv.conf, and the tmpfs behind /dev/shm.

use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::model::{Dns, IdRange, NetworkMode, SandboxConfig};

/// What can go wrong with them.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}", path.display())]
pub(crate) struct FilesError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn named(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError { step, path, source }
}

/// Writes all three files.
pub(crate) fn write(dir: &Path, config: &SandboxConfig) -> Result<(), FilesError> {
    let put = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(named("write", &path))?;
        match config.user_ids {
            None => Ok(()),
            // Root of the pod may write to them, as root does elsewhere.
            Some(IdRange { first, .. }) => {
                std::os::unix::fs::chown(&path, Some(first), Some(first))
                    .map_err(named("set the owner of", &path))
            }
        }
    };
    put("hostname", format!("{}\n", config.hostname))?;
    // A pod with the node's name and network is who the node's file says it is.
    let own_name = match config.network {
        NetworkMode::Pod => config.hostname.as_str(),
        NetworkMode::Node => "",
    };
    put("hosts", hosts(own_name))?;
    put("resolv.conf", resolv(config.dns.as_ref()))
}

fn hosts(hostname: &str) -> String {
    let host = std::fs::read_to_string("/etc/hosts")
        .unwrap_or_else(|_| "127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned());
    if hostname.is_empty() || host.split_whitespace().any(|word| word == hostname) {
        return host;
    }
    format!("{}\n127.0.0.1\t{hostname}\n", host.trim_end())
}

fn resolv(dns: Option<&Dns>) -> String {
    let says_something =
        |dns: &&Dns| !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty());
    let Some(dns) = dns.filter(says_something) else {
        return std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Mounts the sandbox's /dev/shm, whose root belongs to root of the pod; a second time does
/// nothing.
pub(crate) fn mount_shm(path: &Path, user_ids: Option<IdRange>) -> Result<(), FilesError> {
    std::fs::create_dir_all(path).map_err(named("create", path))?;
    if is_mount_point(path) {
        return Ok(());
    }
    // Programs may be executed there, as beside other engines: code that is made at
    // run time is kept in shared memory by some.
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let root = user_ids.map_or(0, |ids| ids.first);
    let options = format!("mode=1777,size=65536k,uid={root},gid={root}\0");
    let options = CStr::from_bytes_until_nul(options.as_bytes()).ok();
    rustix::mount::mount("shm", path, "tmpfs", flags, options)
        .map_err(|error| named("mount tmpfs on", path)(error.into()))
}

fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    path.parent()
        .is_some_and(|parent| device(parent) != device(path))
}

/// Gives the sandbox's /dev/shm back; a second time does nothing.
pub(crate) fn unmount_shm(path: &Path) -> Result<(), FilesError> {
    // Detached lazily: a container that is just ending may still have it open.
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(named("unmount", path)(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_is_written_in_resolver_syntax() {
        let dns = Dns {
            servers: vec!["10.0.0.1".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv(Some(&dns)),
            "search a.b c\nnameserver 10.0.0.1\noptions ndots:5\n"
        );
    }

    #[test]
    fn a_hostname_that_the_node_knows_is_not_written_twice() {
        assert!(!hosts("localhost").ends_with("127.0.0.1\tlocalhost\n127.0.0.1\tlocalhost\n"));
        assert!(hosts("some-pod").ends_with("127.0.0.1\tsome-pod\n"));
    }
}
