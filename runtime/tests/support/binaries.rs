//! The executables that tests run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use runtime::client::MonitorBinaries;

/// What makes an executable static and not position independent.
const STATIC: [&str; 3] = [
    "--",
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
];

/// Monitor and launcher helper, loaded once.
pub(crate) fn monitor_binaries() -> Arc<MonitorBinaries> {
    static LOADED: OnceLock<Arc<MonitorBinaries>> = OnceLock::new();
    let load = || Arc::new(MonitorBinaries::load(&monitor_dir()).unwrap());
    Arc::clone(LOADED.get_or_init(load))
}

/// The folder of the executables.
pub(crate) fn monitor_dir() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(find_or_build).clone()
}

fn find_or_build() -> PathBuf {
    if let Some(dir) = std::env::var_os("SLIPWAY_MONITOR_DIR") {
        // Tests run in their package's folder, people in the workspace's.
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        return workspace.join(dir);
    }
    for (package, binary) in [
        ("monitor", "slipway-monitor"),
        ("libcontainer-launcher", "slipway-libcontainer"),
    ] {
        let built = Command::new(env!("CARGO"))
            .args([
                "rustc",
                "--release",
                "--quiet",
                "-p",
                package,
                "--bin",
                binary,
            ])
            .args(STATIC)
            .env("LIBSECCOMP_LINK_TYPE", "static")
            .env("LIBSECCOMP_LIB_PATH", libseccomp_dir())
            .status()
            .unwrap();
        assert!(built.success(), "cargo rustc -p {package}");
    }
    target_dir().join("release")
}

fn libseccomp_dir() -> String {
    format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH)
}

/// The folder that holds what cargo builds: two above the tests' own.
pub(crate) fn target_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// A static BusyBox.
pub(crate) fn busybox() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(find_busybox).clone()
}

fn find_busybox() -> PathBuf {
    let installed = PathBuf::from("/bin/busybox");
    if is_static(&installed) {
        return installed;
    }
    let unpacked = target_dir().join("busybox-static");
    let busybox = unpacked.join("bin/busybox");
    if !is_static(&busybox) {
        let staging = tempfile::tempdir_in(target_dir()).unwrap();
        let script = "apt-get -qq download busybox-static && dpkg -x busybox-static_*.deb unpacked";
        let done = Command::new("sh")
            .args(["-c", script])
            .current_dir(&staging)
            .status()
            .unwrap();
        assert!(done.success(), "{script}");
        // Another test may have been faster.
        let _lost = std::fs::rename(staging.path().join("unpacked"), &unpacked);
        assert!(is_static(&busybox));
    }
    busybox
}

/// A dynamic executable has a program header that names its loader.
fn is_static(path: &Path) -> bool {
    const LOADER: u32 = 3;
    let Ok(bytes) = std::fs::read(path) else {
        return false;
    };
    let number = |at: usize| usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
    let start = usize::try_from(u64::from_ne_bytes(bytes[32..40].try_into().unwrap())).unwrap();
    let (size, count) = (number(54), number(56));
    let kind = |index: usize| {
        let at = start + index * size;
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    };
    bytes.starts_with(b"\x7fELF") && (0..count).all(|index| kind(index) != LOADER)
}
