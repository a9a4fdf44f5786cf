//! What the integration tests share: images made in memory, and a registry.

pub(crate) mod authority;
pub(crate) mod docker;
pub(crate) mod image;
pub(crate) mod registry;

use std::path::Path;
use std::time::{Duration, Instant};

use image_store::{ImageStore, OpenError, StoreOptions, Tuning};

/// Waits until a condition holds, for half a minute at most.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// A store below `dir`, with the patience of a test.
pub(crate) async fn open(dir: &Path) -> ImageStore {
    open_with(dir, tuning()).await
}

/// A store below `dir`.
pub(crate) async fn open_with(dir: &Path, tuning: Tuning) -> ImageStore {
    let options = StoreOptions {
        root: dir.join("store"),
        hosts_dir: dir.join("hosts"),
        user_agent: "slipway-test".to_owned(),
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match ImageStore::open_with(options.clone(), tuning.clone()).await {
            // What one that is gone threw away behind its answers keeps it for a moment.
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

/// Short enough for tests, long enough for a busy machine.
pub(crate) fn tuning() -> Tuning {
    Tuning {
        first_byte: Duration::from_millis(700),
        stall: Duration::from_millis(700),
        backoff: Duration::from_millis(5),
        connect: Duration::from_secs(5),
        ..Tuning::default()
    }
}

/// Names in one of the store's directories.
pub(crate) fn names(dir: &Path, sub: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir.join("store").join(sub)) else {
        return Vec::new();
    };
    let mut out: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    out.sort();
    out
}

/// Layers and staging directories that are there.
pub(crate) fn left_over(dir: &Path) -> Vec<String> {
    [names(dir, "images/layers"), names(dir, "images/staging")].concat()
}

/// Writes the hosts of a registry.
pub(crate) fn hosts(dir: &Path, registry: &str, text: &str) {
    let folder = dir.join("hosts").join(registry);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
}

/// Writes a file beside the hosts of `r.example`.
pub(crate) fn beside_hosts(dir: &Path, name: &str, text: &str) {
    let folder = dir.join("hosts/r.example");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), text).unwrap();
}

/// Set in the process that [`in_own_network`] starts.
const INSIDE: &str = "SLIPWAY_TEST_INSIDE";
/// An address there that is not the node's own by its kind.
pub(crate) const ELSEWHERE: &str = "203.0.113.7";
/// A file of authorities that is believed there.
pub(crate) const TRUSTED: &str = "SSL_CERT_FILE";

/// Runs the test of this name again in a network of its own, where the loopback
/// device has the address [`ELSEWHERE`] as well, `inner.test` leads to loopback,
/// and `registry.test` and `layers.test` to the other address. True in there.
pub(crate) fn in_own_network(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let dir = tempfile::tempdir().unwrap();
    let names = format!("127.0.0.1 localhost inner.test\n{ELSEWHERE} registry.test layers.test\n");
    std::fs::write(dir.path().join("hosts"), names).unwrap();
    let script = format!(
        "ip link set lo up && ip address add {ELSEWHERE}/32 dev lo && \
         mount --bind \"$1\" /etc/hosts && shift && exec \"$@\""
    );
    let output = std::process::Command::new("unshare")
        .args(["--net", "--mount", "--", "sh", "-c", &script, "sh"])
        .arg(dir.path().join("hosts"))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "yes")
        .env(TRUSTED, dir.path().join("trusted.pem"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    assert!(said.contains("1 passed"), "{said}");
    false
}

/// A small disk; unmounted when dropped, also by a test that fails.
pub(crate) struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    pub(crate) fn mount(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        let mounted = mount
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(path)
            .status();
        assert!(mounted.unwrap().success());
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}
