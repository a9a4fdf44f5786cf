//! From the raw shape to settings that hold: every key is checked, and one
//! whose feature is not there yet is refused by its name.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use runtime::cgroup::DriverKind;

use super::raw::{self, Raw};
use super::{
    Cdi, Cgroup, Cni, Config, Handler, HandlerOptions, Hierarchy, Launcher, MetricsAddress, Places,
    Registry, Streaming, StreamingTls, parse_address,
};

/// What can be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file or folder could not be read.
    #[error("read configuration {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is no TOML, or has a key that is not known.
    #[error("parse configuration {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key and reason.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("configuration key {key}: {reason}")]
    Value {
        /// The key with its table.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key or value that a later version will know how to honour.
    #[error("configuration key {key}: {feature} is not there yet")]
    NotYet {
        /// The key with its table.
        key: String,
        /// What it asks for.
        feature: &'static str,
    },
}

fn wrong(key: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        key: key.to_owned(),
        reason: reason.into(),
    }
}

fn not_yet(key: &str, feature: &'static str) -> ConfigError {
    ConfigError::NotYet {
        key: key.to_owned(),
        feature,
    }
}

fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(wrong(
            key,
            format!("{} is not an absolute path", path.display()),
        ))
    }
}

/// Checks every part; takes nothing from the node but the current folder, which
/// relative paths of the command line are resolved against.
pub(super) fn check(raw: Raw, places: &Places, dir: &Path) -> Result<Config, ConfigError> {
    let Raw {
        cdi,
        cgroup,
        cni,
        metrics,
        registry,
        streaming,
        runtime,
    } = raw;
    let streaming = check_streaming(streaming)?;
    let here = |key: &str, path: &Path| {
        std::path::absolute(path).map_err(|error| wrong(key, error.to_string()))
    };
    let root = here("--root", &places.root)?;
    let state = here("--state", &places.state)?;
    let listen = match &places.listen {
        Some(path) => here("--listen", path)?,
        None => state.join("slipway.sock"),
    };
    let open_files = check_open_files(runtime.open_files)?;
    let (default_handler, handlers) = check_runtime(runtime)?;
    let raw::Registry {
        config_path,
        first_byte_timeout,
        foreign_layer_hosts,
    } = registry;
    Ok(Config {
        cdi: check_cdi(cdi)?,
        cgroup: check_cgroup(cgroup)?,
        cni: check_cni(cni)?,
        metrics: check_metrics(metrics)?,
        registry_config_path: match config_path {
            Some(path) => absolute("registry.config_path", path)?,
            None => here("--config-dir", dir)?.join("certs.d"),
        },
        registry: check_registry(first_byte_timeout.as_deref(), foreign_layer_hosts)?,
        root,
        state,
        listen,
        streaming,
        default_handler,
        open_files,
        handlers,
    })
}

/// As many as containers have elsewhere, unless it is said.
fn check_open_files(wanted: Option<u64>) -> Result<u64, ConfigError> {
    const USUAL: u64 = 1_048_576;
    // Below that hardly any program starts.
    const LEAST: u64 = 64;
    match wanted.unwrap_or(USUAL) {
        few if few < LEAST => Err(wrong(
            "runtime.open_files",
            format!("{few} is less than {LEAST}"),
        )),
        enough => Ok(enough),
    }
}

fn check_registry(
    first_byte_timeout: Option<&str>,
    foreign_layer_hosts: Option<Vec<String>>,
) -> Result<Registry, ConfigError> {
    let text = first_byte_timeout.unwrap_or("30s");
    let first_byte_timeout = image_store::parse_duration(text)
        .filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| {
            let reason = format!("{text:?} is no duration such as \"30s\" or \"1m30s\"");
            wrong("registry.first_byte_timeout", reason)
        })?;
    let foreign_layer_hosts = foreign_layer_hosts.unwrap_or_default();
    let is_odd = |c: char| !c.is_ascii_alphanumeric() && !"-.:[]".contains(c);
    for host in &foreign_layer_hosts {
        if host.is_empty() || host.contains(is_odd) {
            let reason = format!("{host:?} is no host, with or without a port");
            return Err(wrong("registry.foreign_layer_hosts", reason));
        }
    }
    Ok(Registry {
        first_byte_timeout,
        foreign_layer_hosts,
    })
}

fn check_metrics(metrics: raw::Metrics) -> Result<Option<MetricsAddress>, ConfigError> {
    let raw::Metrics { listen } = metrics;
    let Some(text) = listen else { return Ok(None) };
    if text.starts_with('/') {
        return Ok(Some(MetricsAddress::Unix(text.into())));
    }
    match text.parse() {
        Ok(address) => Ok(Some(MetricsAddress::Tcp(address))),
        Err(_) => Err(wrong(
            "metrics.listen",
            format!("{text:?} is neither an address with a port nor an absolute path"),
        )),
    }
}

fn check_cdi(cdi: raw::Cdi) -> Result<Cdi, ConfigError> {
    let raw::Cdi { spec_dirs } = cdi;
    let usual = || vec!["/etc/cdi".into(), "/var/run/cdi".into()];
    let dirs = spec_dirs.unwrap_or_else(usual).into_iter();
    let dirs = dirs.map(|path| absolute("cdi.spec_dirs", path));
    Ok(Cdi {
        spec_dirs: dirs.collect::<Result<_, _>>()?,
    })
}

fn check_cgroup(cgroup: raw::Cgroup) -> Result<Cgroup, ConfigError> {
    let raw::Cgroup { driver, hierarchy } = cgroup;
    let driver = match driver.as_deref() {
        None | Some("cgroupfs") => DriverKind::Cgroupfs,
        Some("systemd") => DriverKind::Systemd,
        Some(other) => {
            return Err(wrong(
                "cgroup.driver",
                format!("{other:?} is neither \"cgroupfs\" nor \"systemd\""),
            ));
        }
    };
    let hierarchy = match hierarchy.as_deref() {
        None | Some("all") => Hierarchy::All,
        Some("unified") => Hierarchy::Unified,
        Some(other) => {
            return Err(wrong(
                "cgroup.hierarchy",
                format!("{other:?} is neither \"all\" nor \"unified\""),
            ));
        }
    };
    Ok(Cgroup { driver, hierarchy })
}

/// In the clear, bytes go nowhere but to the node itself.
fn check_streaming(streaming: raw::Streaming) -> Result<Streaming, ConfigError> {
    let raw::Streaming {
        address,
        port,
        tls_certificate,
        tls_key,
        tls_client_ca,
    } = streaming;
    let ip = match address {
        None => IpAddr::from(Ipv4Addr::LOCALHOST),
        Some(text) => parse_address(&text)
            .ok_or_else(|| wrong("streaming.address", format!("{text:?} is no IP address")))?,
    };
    let tls = match (tls_certificate, tls_key, tls_client_ca) {
        (Some(certificate), Some(key), client_ca) => Some(StreamingTls {
            certificate: absolute("streaming.tls_certificate", certificate)?,
            key: absolute("streaming.tls_key", key)?,
            client_ca: client_ca
                .map(|path| absolute("streaming.tls_client_ca", path))
                .transpose()?,
        }),
        (None, None, None) => None,
        _ => {
            let reason =
                "a certificate and its key belong together, and authorities of clients to both";
            return Err(wrong("streaming.tls_certificate, tls_key", reason));
        }
    };
    if ip.is_unspecified() {
        let reason = format!("{ip} stands for many addresses; name the one that clients reach");
        return Err(wrong("streaming.address", reason));
    }
    if !ip.is_loopback() && tls.is_none() {
        let reason =
            format!("{ip} is not of this node alone: it needs tls_certificate and tls_key");
        return Err(wrong("streaming.address", reason));
    }
    let address = SocketAddr::new(ip, port.unwrap_or(0));
    Ok(Streaming { address, tls })
}

fn check_cni(cni: raw::Cni) -> Result<Cni, ConfigError> {
    let raw::Cni {
        conf_dir,
        bin_dirs,
        netns_dir,
        external_plugins,
        loopback_only,
    } = cni;
    let external_plugins = external_plugins.unwrap_or_default();
    for name in &external_plugins {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            let reason = format!("{name:?} is no type of a plugin");
            return Err(wrong("cni.external_plugins", reason));
        }
    }
    let bin_dirs = bin_dirs.unwrap_or_else(|| {
        ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]
            .map(PathBuf::from)
            .to_vec()
    });
    Ok(Cni {
        conf_dir: absolute(
            "cni.conf_dir",
            conf_dir.unwrap_or_else(|| "/etc/cni/net.d".into()),
        )?,
        bin_dirs: bin_dirs
            .into_iter()
            .map(|path| absolute("cni.bin_dirs", path))
            .collect::<Result<_, _>>()?,
        netns_dir: absolute(
            "cni.netns_dir",
            netns_dir.unwrap_or_else(|| "/run/netns".into()),
        )?,
        external_plugins,
        loopback_only: loopback_only.unwrap_or(false),
    })
}

fn check_runtime(
    runtime: raw::Runtime,
) -> Result<(String, BTreeMap<String, Handler>), ConfigError> {
    let raw::Runtime {
        default_handler,
        open_files: _,
        handlers,
    } = runtime;
    let mut checked = BTreeMap::new();
    for (name, launcher) in [
        ("native", Launcher::Native),
        ("libcontainer", Launcher::Libcontainer),
    ] {
        let handler = Handler {
            launcher,
            path: None,
            options: HandlerOptions::default(),
        };
        checked.insert(name.to_owned(), handler);
    }
    for (name, handler) in handlers {
        checked.insert(name.clone(), check_handler(&name, handler)?);
    }
    let default = default_handler.unwrap_or_else(|| "native".to_owned());
    if !checked.contains_key(&default) {
        let reason = format!("no handler {default:?} under runtime.handlers");
        return Err(wrong("runtime.default_handler", reason));
    }
    Ok((default, checked))
}

fn check_handler(name: &str, handler: raw::Handler) -> Result<Handler, ConfigError> {
    let key = |part: &str| format!("runtime.handlers.{name}.{part}");
    if name.is_empty() {
        return Err(wrong(&key(""), "the empty name is the default handler's"));
    }
    let raw::Handler {
        launcher,
        path,
        options,
    } = handler;
    let launcher = match launcher.as_deref() {
        Some("libcontainer") => {
            return check_libcontainer(path.as_deref(), options.unwrap_or_default(), key);
        }
        Some("native") => Launcher::Native,
        Some("oci") => return check_oci(path, options, key),
        Some("shim") => return Err(not_yet(&key("launcher"), "the shim launcher")),
        Some(other) => {
            let known = "\"native\", \"libcontainer\", \"oci\" or \"shim\"";
            return Err(wrong(
                &key("launcher"),
                format!("{other:?} is none of {known}"),
            ));
        }
        None => return Err(wrong(&key("launcher"), "is missing")),
    };
    refuse_path(path.as_deref(), &key)?;
    if options.is_some() {
        return Err(wrong(&key("options"), "this launcher has no options"));
    }
    Ok(Handler {
        launcher,
        path: None,
        options: HandlerOptions::default(),
    })
}

fn refuse_path(path: Option<&Path>, key: &impl Fn(&str) -> String) -> Result<(), ConfigError> {
    match path {
        Some(_) => Err(wrong(
            &key("path"),
            "this launcher is built in, it has no path",
        )),
        None => Ok(()),
    }
}

fn check_libcontainer(
    path: Option<&Path>,
    options: raw::HandlerOptions,
    key: impl Fn(&str) -> String,
) -> Result<Handler, ConfigError> {
    refuse_path(path, &key)?;
    let raw::HandlerOptions {
        args,
        allow_tracers,
    } = options;
    if args.is_some() {
        let reason = "this launcher is built in, it takes no arguments";
        return Err(wrong(&key("options.args"), reason));
    }
    Ok(Handler {
        launcher: Launcher::Libcontainer,
        path: None,
        options: HandlerOptions {
            args: Vec::new(),
            allow_tracers: allow_tracers.unwrap_or_default(),
        },
    })
}

/// That the runtime is there is `slipway check`'s to say: it may come later.
fn check_oci(
    path: Option<PathBuf>,
    options: Option<raw::HandlerOptions>,
    key: impl Fn(&str) -> String,
) -> Result<Handler, ConfigError> {
    let path = path.ok_or_else(|| wrong(&key("path"), "names the runtime's executable"))?;
    let raw::HandlerOptions {
        args,
        allow_tracers,
    } = options.unwrap_or_default();
    Ok(Handler {
        launcher: Launcher::Oci,
        path: Some(absolute(&key("path"), path)?),
        options: HandlerOptions {
            args: args.unwrap_or_default(),
            allow_tracers: allow_tracers.unwrap_or_default(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn places(dir: &Path) -> Places {
        Places {
            root: dir.join("root"),
            state: dir.join("state"),
            listen: None,
            file: None,
            dir: Some(dir.to_owned()),
        }
    }

    fn with(files: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("write");
        }
        load(&places(dir.path()))
    }

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        let printed = with(&[("a.toml", crate::config::default_text())]).expect("valid");
        let bare = with(&[]).expect("valid");
        assert_eq!(printed.cni.bin_dirs, bare.cni.bin_dirs);
        assert_eq!(printed.cni.conf_dir, bare.cni.conf_dir);
        assert_eq!(printed.cni.netns_dir, bare.cni.netns_dir);
        assert_eq!(printed.default_handler, bare.default_handler);
        assert_eq!(printed.open_files, bare.open_files);
        assert_eq!(printed.handlers.len(), bare.handlers.len());
        let timeout = bare.registry.first_byte_timeout;
        assert_eq!(printed.registry.first_byte_timeout, timeout);
        assert!(bare.registry.foreign_layer_hosts.is_empty());
    }

    #[test]
    fn registry_settings_reach_the_image_store_and_nonsense_is_refused() {
        let text = "[registry]\nfirst_byte_timeout = \"1m30s\"\n\
                    foreign_layer_hosts = [\"a.example:8443\"]\n";
        let tuning = with(&[("x.toml", text)]).expect("valid").tuning();
        assert_eq!(tuning.first_byte, std::time::Duration::from_secs(90));
        assert_eq!(tuning.foreign_layer_hosts, ["a.example:8443"]);
        for (wrong, key) in [
            (
                "first_byte_timeout = \"soon\"",
                "registry.first_byte_timeout",
            ),
            ("first_byte_timeout = \"0s\"", "registry.first_byte_timeout"),
            (
                "foreign_layer_hosts = [\"https://a\"]",
                "registry.foreign_layer_hosts",
            ),
            (
                "foreign_layer_hosts = [\"\"]",
                "registry.foreign_layer_hosts",
            ),
        ] {
            let text = format!("[registry]\n{wrong}\n");
            let error = with(&[("x.toml", &text)]).expect_err("wrong").to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_later_drop_in_wins_key_by_key() {
        let config = with(&[
            ("10.toml", "[cni]\nconf_dir = \"/a\"\nnetns_dir = \"/n\"\n"),
            ("20.toml", "[cni]\nconf_dir = \"/b\"\n"),
        ])
        .expect("valid");
        assert_eq!(config.cni.conf_dir, Path::new("/b"));
        assert_eq!(config.cni.netns_dir, Path::new("/n"));
    }

    #[test]
    fn an_unknown_key_fails_and_is_named_with_its_file() {
        let error = with(&[("x.toml", "[cni]\nconf_dirs = \"/a\"\n")]).expect_err("unknown");
        let text = format!(
            "{error}: {}",
            std::error::Error::source(&error).expect("source")
        );
        assert!(
            text.contains("x.toml") && text.contains("conf_dirs"),
            "{text}"
        );
    }

    #[test]
    fn an_oci_runtime_has_a_path_and_may_have_arguments() {
        let text = "[runtime.handlers.crun]\nlauncher = \"oci\"\npath = \"/usr/bin/crun\"\n\
                    options = { args = [\"--debug\"] }\n";
        let config = with(&[("x.toml", text)]).expect("valid");
        let handler = config.handler("crun").expect("there");
        assert_eq!(handler.launcher, Launcher::Oci);
        assert_eq!(handler.path.as_deref(), Some(Path::new("/usr/bin/crun")));
        assert_eq!(handler.options.args, ["--debug"]);
        for wrong in [
            "launcher = \"oci\"\n",
            "launcher = \"oci\"\npath = \"crun\"\n",
            "launcher = \"native\"\npath = \"/usr/bin/crun\"\n",
        ] {
            let text = format!("[runtime.handlers.x]\n{wrong}");
            let error = with(&[("x.toml", &text)]).expect_err("wrong").to_string();
            assert!(error.contains("runtime.handlers.x.path"), "{error}");
        }
    }

    #[test]
    fn tracers_are_let_in_where_a_handler_says_so() {
        let text = "[runtime.handlers.own]\nlauncher = \"libcontainer\"\n\
                    options = { allow_tracers = true }\n";
        let config = with(&[("x.toml", text)]).expect("valid");
        let allowed = |name| {
            let handler = config.handler(name).expect("there");
            handler.options.allow_tracers
        };
        assert!(allowed("own") && !allowed("libcontainer"));
        for (text, key) in [
            (
                "launcher = \"libcontainer\"\noptions = { args = [] }\n",
                "x.options.args",
            ),
            (
                "launcher = \"native\"\noptions = { allow_tracers = true }\n",
                "x.options",
            ),
        ] {
            let text = format!("[runtime.handlers.x]\n{text}");
            let error = with(&[("x.toml", &text)]).expect_err("wrong").to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_key_whose_feature_is_not_there_is_refused_by_name() {
        let text = "[runtime.handlers.x]\nlauncher = \"shim\"\n";
        let error = with(&[("x.toml", text)]).expect_err("not yet");
        assert!(matches!(error, ConfigError::NotYet { .. }), "{error}");
        let key = "runtime.handlers.x.launcher";
        assert!(error.to_string().contains(key), "{error}");
    }

    #[test]
    fn a_native_handler_can_be_the_default() {
        let native = "[runtime.handlers.fast]\nlauncher = \"native\"\n";
        let config = with(&[
            ("10.toml", native),
            ("20.toml", "[runtime]\ndefault_handler = \"fast\"\n"),
        ])
        .expect("valid");
        let launcher = config.handler("").map(|handler| handler.launcher);
        assert_eq!(launcher, Some(Launcher::Native));
        let path = format!("{native}path = \"/x\"\n");
        let error = with(&[("x.toml", path.as_str())]).expect_err("wrong");
        assert!(error.to_string().contains("fast.path"), "{error}");
    }

    #[test]
    fn the_driver_is_cgroupfs_unless_systemd_is_asked_for() {
        let driver = |files: &[(&str, &str)]| with(files).expect("valid").cgroup.driver;
        assert_eq!(driver(&[]), DriverKind::Cgroupfs);
        for kind in [DriverKind::Cgroupfs, DriverKind::Systemd] {
            let text = format!("[cgroup]\ndriver = {:?}\n", kind.as_str());
            assert_eq!(driver(&[("x.toml", &text)]), kind);
        }
    }

    #[test]
    fn hierarchies_are_all_unless_only_the_v2_tree_is_asked_for() {
        let hierarchy = |files: &[(&str, &str)]| with(files).expect("valid").cgroup.hierarchy;
        assert_eq!(hierarchy(&[]), Hierarchy::All);
        let unified = ("x.toml", "[cgroup]\nhierarchy = \"unified\"\n");
        assert_eq!(hierarchy(&[unified]), Hierarchy::Unified);
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (text, key) in [
            ("[cgroup]\ndriver = \"upstart\"\n", "cgroup.driver"),
            ("[cgroup]\nhierarchy = \"v1\"\n", "cgroup.hierarchy"),
            ("[cni]\nconf_dir = \"relative\"\n", "cni.conf_dir"),
            (
                "[runtime]\ndefault_handler = \"none\"\n",
                "runtime.default_handler",
            ),
            ("[runtime]\nopen_files = 3\n", "runtime.open_files"),
            ("[runtime.handlers.x]\n", "runtime.handlers.x.launcher"),
            ("[streaming]\naddress = \"nowhere\"\n", "streaming.address"),
            ("[streaming]\naddress = \"0.0.0.0\"\n", "streaming.address"),
            ("[streaming]\naddress = \"10.0.0.1\"\n", "streaming.address"),
            ("[streaming]\ntls_key = \"/key\"\n", "streaming.tls_"),
            (
                "[streaming]\ntls_key = \"/key\"\ntls_certificate = \"x\"\n",
                "streaming.tls_certificate",
            ),
        ] {
            let error = with(&[("x.toml", text)]).expect_err("wrong");
            assert!(matches!(error, ConfigError::Value { .. }), "{error}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
