//! Registry hosts of one name: `hosts.toml` as containerd reads it, or a folder
//! of certificates without one, as Docker does.
//!
//! Owns the search for the file, its keys and the defaults without one; opens
//! no connection. The file is read at every pull, so an edit needs no restart.
//! Keys that are not known are refused with the file and the key, since a
//! misspelt `skip_verify` or `ca` would otherwise change what is trusted.
//!
//! A `[host]` with the address of the server is the registry itself and no
//! mirror: it gets the credentials, and the server, should it be asked after
//! all, has the settings below that host.
//!
//! Plain HTTP is spoken only where a `hosts.toml` says `http://`, and to
//! loopback names (`localhost`, `127.0.0.0/8`, `[::1]`) with a port other than
//! 443, which is where containerd falls back to it as well. TLS on such a port
//! takes a `server = "https://localhost:5000"`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use toml::{Table, Value};

use crate::duration::parse_duration;
use crate::reference::DEFAULT_REGISTRY;

/// Where Docker Hub answers the registry protocol.
const DOCKER_HUB: &str = "registry-1.docker.io";
const FILE: &str = "hosts.toml";
const DEFAULT_DIR: &str = "_default";

/// One place to ask, in the order of trying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// The address with the path up to and including the API's version.
    pub api: Url,
    /// The registry itself, and no mirror: only it gets the pull's credentials.
    pub origin: bool,
    /// May be asked what a tag stands for.
    pub resolve: bool,
    /// May be asked for content by digest.
    pub pull: bool,
    /// How the connection is made.
    pub tls: Tls,
    /// Headers for each request to this host.
    pub headers: Vec<(String, String)>,
    /// How long connecting may take.
    pub dial_timeout: Option<Duration>,
}

/// What is trusted and shown on a TLS connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Trust anybody.
    pub skip_verify: bool,
    /// Files with authorities to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// The file with a client certificate, and that of its key where it is apart.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
}

/// Why a `hosts.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file is there and cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not valid TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A key that is not known.
    #[error("{}: unknown key `{key}`", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key with the tables around it.
        key: String,
    },
    /// A certificate or key cannot be used.
    #[error("{} cannot be used for TLS", path.display())]
    Certificate {
        /// The file; empty where the whole setting is at fault.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A value that cannot be used.
    #[error("{}: `{key}` {reason}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key with the tables around it.
        key: String,
        /// What it should be.
        reason: String,
    },
}

impl Host {
    /// Host and port as they stand in the address.
    #[must_use]
    pub(crate) fn authority(&self) -> String {
        authority(&self.api)
    }
}

/// Host and, unless it is the scheme's own, port.
#[must_use]
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether a host, with or without port, is this machine by convention.
#[must_use]
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(bare, _)| bare),
    };
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The hosts for a registry, mirrors first.
pub(crate) fn hosts_for(dir: &Path, registry: &str) -> Result<Vec<Host>, HostsError> {
    for candidate in candidates(registry) {
        let folder = dir.join(candidate);
        let path = folder.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => return parse(&text, &path, registry),
            Err(e) if is_absent(&e) => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
        let tls = certificates(&folder)?;
        if tls != Tls::default() {
            return Ok(host_with(registry, tls).into_iter().collect());
        }
    }
    Ok(default_host(registry).into_iter().collect())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// A folder without `hosts.toml`: each `*.crt` is an authority, and `*.cert`
/// with the `*.key` of the same name what is shown.
fn certificates(folder: &Path) -> Result<Tls, HostsError> {
    let fail = |source| HostsError::Read {
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(e) if is_absent(&e) => return Ok(Tls::default()),
        other => other.map_err(fail)?,
    };
    let mut files = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<Vec<PathBuf>, _>>()
        .map_err(fail)?;
    files.sort();
    let with = |extension: &'static str| {
        let fits = move |path: &&PathBuf| path.extension().is_some_and(|e| e == extension);
        files.iter().filter(fits).cloned()
    };
    let shown: Vec<PathBuf> = with("cert").collect();
    if let [_, second, ..] = shown.as_slice() {
        return Err(HostsError::BadValue {
            path: folder.to_owned(),
            key: second.display().to_string(),
            reason: "is a second client certificate, and a connection shows one".to_owned(),
        });
    }
    let client = shown.into_iter().next().map(|certificate| {
        let key = certificate.with_extension("key");
        (certificate, Some(key))
    });
    Ok(Tls {
        skip_verify: false,
        ca: with("crt").collect(),
        client,
    })
}

/// The registry itself with certificates, which are for HTTPS.
fn host_with(registry: &str, tls: Tls) -> Option<Host> {
    let mut host = default_host(registry)?;
    // The one way that cannot fail: both schemes are of the same kind.
    host.api.set_scheme("https").ok()?;
    Some(Host { tls, ..host })
}

/// `HOST_PORT_` is for file systems that cannot have a colon in a name.
fn candidates(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':')
        && port.bytes().all(|b| b.is_ascii_digit())
        && !port.is_empty()
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push(DEFAULT_DIR.to_owned());
    names
}

/// The registry itself when nothing is configured for it.
fn default_host(registry: &str) -> Option<Host> {
    let host = if registry == DEFAULT_REGISTRY {
        DOCKER_HUB
    } else {
        registry
    };
    let port = host
        .rsplit_once(':')
        .map(|(_, port)| port)
        .filter(|p| p.parse::<u16>().is_ok());
    let plain = is_loopback(host) && !matches!(port, None | Some("443"));
    let scheme = if plain { "http" } else { "https" };
    let api = Url::parse(&format!("{scheme}://{host}/v2")).ok()?;
    Some(Host {
        api,
        origin: true,
        resolve: true,
        pull: true,
        tls: Tls::default(),
        headers: Vec::new(),
        dial_timeout: None,
    })
}

fn parse(text: &str, path: &Path, registry: &str) -> Result<Vec<Host>, HostsError> {
    let table: Table = text.parse().map_err(|source| HostsError::Syntax {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let file = File { path };
    let mut hosts = Vec::new();
    if let Some(mirrors) = table.get("host") {
        for (url, settings) in file.table(mirrors, "host")? {
            let key = format!("host.\"{url}\"");
            let settings = file.table(settings, &key)?;
            if settings.contains_key("host") || settings.contains_key("server") {
                let inner = if settings.contains_key("host") {
                    "host"
                } else {
                    "server"
                };
                return Err(file.unknown(format!("{key}.{inner}")));
            }
            hosts.push(file.host(url, settings, &key, false)?);
        }
    }
    let origin = match table.get("server") {
        Some(server) => Some(file.string(server, "server")?.to_owned()),
        None => default_host(registry).map(|host| host.api.to_string()),
    };
    // The settings beside `server` belong to it.
    if let Some(origin) = origin {
        let server = file.host(&origin, &table, "", true)?;
        add_server(&mut hosts, server);
    }
    Ok(hosts)
}

/// Puts the server behind the hosts. One of them with its address is the server
/// too, so what the file leaves unsaid of the server is as it says there.
fn add_server(hosts: &mut Vec<Host>, mut server: Host) {
    let place = server.api.origin();
    for host in hosts.iter_mut().filter(|h| h.api.origin() == place) {
        host.origin = true;
        if server.tls == Tls::default() {
            server.tls.clone_from(&host.tls);
        }
        if server.headers.is_empty() {
            server.headers.clone_from(&host.headers);
        }
        server.dial_timeout = server.dial_timeout.or(host.dial_timeout);
    }
    // Nothing is gained by asking the same host the same again.
    let again = |host: &Host| {
        *host
            == Host {
                resolve: host.resolve,
                pull: host.pull,
                ..server.clone()
            }
            && (host.resolve || !server.resolve)
            && (host.pull || !server.pull)
    };
    if !hosts.iter().any(again) {
        hosts.push(server);
    }
}

/// Reads values and names the file and the key when one is wrong.
struct File<'a> {
    path: &'a Path,
}

impl File<'_> {
    fn host(&self, url: &str, t: &Table, at: &str, origin: bool) -> Result<Host, HostsError> {
        let key = |name: &str| {
            if at.is_empty() {
                name.into()
            } else {
                format!("{at}.{name}")
            }
        };
        let mut host = Host {
            api: Url::parse("http://localhost").map_err(|e| self.bad("server", &e.to_string()))?,
            origin,
            resolve: true,
            pull: true,
            tls: Tls::default(),
            headers: Vec::new(),
            dial_timeout: None,
        };
        let mut override_path = false;
        for (name, value) in t {
            let key = key(name);
            match name.as_str() {
                "server" | "host" => {}
                "capabilities" => (host.resolve, host.pull) = self.capabilities(value, &key)?,
                "ca" => host.tls.ca = self.files(value, &key)?,
                "client" => host.tls.client = Some(self.client(value, &key)?),
                "skip_verify" => host.tls.skip_verify = self.boolean(value, &key)?,
                "header" => host.headers = self.headers(value, &key)?,
                "override_path" => override_path = self.boolean(value, &key)?,
                "dial_timeout" => host.dial_timeout = Some(self.duration(value, &key)?),
                _ => return Err(self.unknown(key)),
            }
        }
        let at = if at.is_empty() { "server" } else { at };
        host.api = self.api(url, at, override_path)?;
        Ok(host)
    }

    fn api(&self, text: &str, key: &str, override_path: bool) -> Result<Url, HostsError> {
        let text = match text.contains("://") {
            true => text.to_owned(),
            false => format!("https://{text}"),
        };
        let mut url = Url::parse(&text).map_err(|e| self.bad(key, &format!("is no URL: {e}")))?;
        let usable = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        if !usable {
            return Err(self.bad(
                key,
                "has to be http:// or https://, a host, and at most a path",
            ));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        if override_path || path.ends_with("/v2") {
            url.set_path(&path);
        } else {
            url.set_path(&format!("{path}/v2"));
        }
        Ok(url)
    }

    fn capabilities(&self, value: &Value, key: &str) -> Result<(bool, bool), HostsError> {
        let (mut resolve, mut pull) = (false, false);
        for name in self.strings(value, key)? {
            match name.as_str() {
                "resolve" => resolve = true,
                "pull" => pull = true,
                // Nothing is pushed, and referrers are not asked for.
                "push" | "referrers" => {}
                other => return Err(self.bad(key, &format!("has no capability `{other}`"))),
            }
        }
        Ok((resolve, pull))
    }

    fn files(&self, value: &Value, key: &str) -> Result<Vec<PathBuf>, HostsError> {
        Ok(self
            .strings(value, key)?
            .iter()
            .map(|name| self.beside(name))
            .collect())
    }

    /// `"both.pem"`, `["both.pem"]`, or `[["it.crt", "it.key"]]`; one of them,
    /// since a connection shows one certificate.
    fn client(&self, value: &Value, key: &str) -> Result<(PathBuf, Option<PathBuf>), HostsError> {
        let only = match value {
            Value::Array(items) => match items.as_slice() {
                [only] => only,
                _ => {
                    return Err(self.bad(key, "has to be one certificate, with or without its key"));
                }
            },
            other => other,
        };
        match self.strings(only, key)?.as_slice() {
            [both] => Ok((self.beside(both), None)),
            [cert, private] if private.is_empty() => Ok((self.beside(cert), None)),
            [cert, private] => Ok((self.beside(cert), Some(self.beside(private)))),
            _ => Err(self.bad(key, "has to be a file or a pair of certificate and key")),
        }
    }

    fn headers(&self, value: &Value, key: &str) -> Result<Vec<(String, String)>, HostsError> {
        let mut out = Vec::new();
        for (name, value) in self.table(value, key)? {
            let at = format!("{key}.{name}");
            if reqwest::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
                return Err(self.bad(&at, "is no header name"));
            }
            for text in self.strings(value, &at)? {
                if reqwest::header::HeaderValue::from_str(&text).is_err() {
                    return Err(self.bad(&at, "is no header value"));
                }
                out.push((name.clone(), text));
            }
        }
        Ok(out)
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(name)
    }

    fn string<'v>(&self, value: &'v Value, key: &str) -> Result<&'v str, HostsError> {
        value
            .as_str()
            .ok_or_else(|| self.bad(key, "has to be a string"))
    }

    fn strings(&self, value: &Value, key: &str) -> Result<Vec<String>, HostsError> {
        match value {
            Value::String(one) => Ok(vec![one.clone()]),
            Value::Array(items) => items
                .iter()
                .map(|item| self.string(item, key).map(str::to_owned))
                .collect(),
            _ => Err(self.bad(key, "has to be a string or an array of strings")),
        }
    }

    fn boolean(&self, value: &Value, key: &str) -> Result<bool, HostsError> {
        value
            .as_bool()
            .ok_or_else(|| self.bad(key, "has to be true or false"))
    }

    fn table<'v>(&self, value: &'v Value, key: &str) -> Result<&'v Table, HostsError> {
        value
            .as_table()
            .ok_or_else(|| self.bad(key, "has to be a table"))
    }

    fn duration(&self, value: &Value, key: &str) -> Result<Duration, HostsError> {
        let text = self.string(value, key)?;
        parse_duration(text)
            .filter(|duration| !duration.is_zero())
            .ok_or_else(|| self.bad(key, "has to be a duration such as \"5s\" or \"1m30s\""))
    }

    fn bad(&self, key: &str, reason: &str) -> HostsError {
        HostsError::BadValue {
            path: self.path.to_owned(),
            key: key.into(),
            reason: reason.into(),
        }
    }

    fn unknown(&self, key: String) -> HostsError {
        HostsError::UnknownKey {
            path: self.path.to_owned(),
            key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(registry: &str, text: &str) -> Result<Vec<Host>, HostsError> {
        parse(text, Path::new("/c/hosts.toml"), registry)
    }

    fn urls(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|h| h.api.as_str()).collect()
    }

    #[test]
    fn without_a_file_only_loopback_ports_are_plain() {
        let url = |r: &str| default_host(r).unwrap().api.to_string();
        assert_eq!(url("docker.io"), "https://registry-1.docker.io/v2");
        assert_eq!(url("example.com:5000"), "https://example.com:5000/v2");
        assert_eq!(url("localhost:5000"), "http://localhost:5000/v2");
        assert_eq!(url("127.0.0.1:5000"), "http://127.0.0.1:5000/v2");
        assert_eq!(url("[::1]:5000"), "http://[::1]:5000/v2");
        assert_eq!(url("localhost"), "https://localhost/v2");
        assert_eq!(url("localhost:443"), "https://localhost/v2");
        assert_eq!(
            url("127.0.0.1.example.com:80"),
            "https://127.0.0.1.example.com:80/v2"
        );
    }

    #[test]
    fn mirrors_keep_the_order_of_the_file() {
        let text = r#"
            server = "https://origin.example"
            [host."http://z:1"]
            [host."https://a/prefix"]
            capabilities = ["pull"]
            [host."https://m/x/v2/"]
            [host."https://o/own"]
            override_path = true
        "#;
        let hosts = hosts("r.io", text).unwrap();
        assert_eq!(
            urls(&hosts),
            [
                "http://z:1/v2",
                "https://a/prefix/v2",
                "https://m/x/v2",
                "https://o/own",
                "https://origin.example/v2"
            ]
        );
        assert_eq!(hosts.iter().filter(|h| h.origin).count(), 1);
        assert!(hosts[4].origin && !hosts[1].resolve && hosts[1].pull && hosts[0].resolve);
    }

    #[test]
    fn without_server_the_registry_itself_comes_last() {
        let hosts = hosts("docker.io", "[host.\"https://m\"]").unwrap();
        assert_eq!(
            urls(&hosts),
            ["https://m/v2", "https://registry-1.docker.io/v2"]
        );
    }

    #[test]
    fn every_setting_is_read() {
        let text = r#"
            server = "origin"
            ca = "origin.pem"
            [host."https://m"]
            skip_verify = true
            ca = ["a.pem", "/abs/b.pem"]
            client = [["c.crt", "c.key"]]
            dial_timeout = "1500ms"
            [host."https://m".header]
            X-One = "1"
            X-Two = ["2", "3"]
        "#;
        let hosts = hosts("r.io", text).unwrap();
        let m = &hosts[0];
        assert!(m.tls.skip_verify);
        assert_eq!(
            m.tls.ca,
            [PathBuf::from("/c/a.pem"), PathBuf::from("/abs/b.pem")]
        );
        assert_eq!(
            m.tls.client,
            Some(("/c/c.crt".into(), Some("/c/c.key".into())))
        );
        assert_eq!(m.dial_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(m.headers.len(), 3);
        assert_eq!(hosts[1].tls.ca, [PathBuf::from("/c/origin.pem")]);
        assert_eq!(hosts[1].api.as_str(), "https://origin/v2");
    }

    #[test]
    fn a_host_with_the_servers_address_is_the_server_with_its_settings() {
        let text = r#"
            server = "https://r.io:5000"
            [host."https://r.io:5000"]
            ca = "own.pem"
            client = "node.pem"
            dial_timeout = "1m30s"
        "#;
        let own = hosts("r.io:5000", text).unwrap();
        assert_eq!(urls(&own), ["https://r.io:5000/v2"], "it is asked once");
        assert!(own[0].origin && own[0].resolve && own[0].pull);
        assert_eq!(own[0].tls.ca, [PathBuf::from("/c/own.pem")]);
        assert_eq!(own[0].dial_timeout, Some(Duration::from_secs(90)));
        // Without `server` the registry's own address is the server's.
        let unsaid = hosts("r.io:5000", &text.replace("server", "#")).unwrap();
        assert_eq!(unsaid, own);
        // What the host may not do, the server is asked for, in the same way.
        let part = hosts("r.io:5000", &format!("{text}\ncapabilities = ['pull']")).unwrap();
        assert_eq!(urls(&part), ["https://r.io:5000/v2"; 2]);
        assert!(part.iter().all(|h| h.origin) && part[1].resolve);
        assert_eq!(part[1].tls, own[0].tls);
        // A setting of the server's own stays.
        let both = hosts("r.io:5000", &format!("ca = 'other.pem'\n{text}")).unwrap();
        assert_eq!(both[1].tls.ca, [PathBuf::from("/c/other.pem")]);
        // Another port is another host.
        let mirror = hosts(
            "r.io:5000",
            &text.replace("[host.\"https://r.io:5000", "[host.\"https://r.io:5001"),
        );
        let mirror = mirror.unwrap();
        assert!(!mirror[0].origin && mirror[1].tls == Tls::default());
    }

    #[test]
    fn a_folder_of_certificates_without_a_file_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("localhost:5000");
        fs::create_dir(&folder).unwrap();
        let hosts = || hosts_for(dir.path(), "localhost:5000");
        assert_eq!(hosts().unwrap()[0].api.scheme(), "http");
        for name in ["b.crt", "a.crt", "node.cert", "node.key", "README"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        let host = hosts().unwrap().remove(0);
        assert_eq!(host.api.as_str(), "https://localhost:5000/v2");
        assert!(host.origin);
        assert_eq!(host.tls.ca, [folder.join("a.crt"), folder.join("b.crt")]);
        let client = (folder.join("node.cert"), Some(folder.join("node.key")));
        assert_eq!(host.tls.client, Some(client));
        fs::write(folder.join("other.cert"), "x").unwrap();
        assert!(matches!(hosts(), Err(HostsError::BadValue { .. })));
        fs::write(folder.join(FILE), "server = 'https://x'").unwrap();
        assert_eq!(hosts().unwrap()[0].tls, Tls::default());
    }

    #[test]
    fn unknown_keys_are_refused_with_file_and_key() {
        for (text, key) in [
            ("skip_verfy = true", "skip_verfy"),
            (
                "[host.\"https://m\"]\ncapability = []",
                "host.\"https://m\".capability",
            ),
            (
                "[host.\"https://m\"]\nserver = 'x'",
                "host.\"https://m\".server",
            ),
        ] {
            match hosts("r.io", text) {
                Err(HostsError::UnknownKey { path, key: got }) => {
                    assert_eq!(
                        (path.as_path(), got.as_str()),
                        (Path::new("/c/hosts.toml"), key)
                    );
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for text in [
            "server = 1",
            "server = \"ftp://x\"",
            "server = \"https://user:pass@x\"",
            "capabilities = [\"fly\"]",
            "skip_verify = \"yes\"",
            "dial_timeout = \"soon\"",
            "client = [[\"a\", \"b\", \"c\"]]",
            "client = [\"a\", \"b\"]",
            "host = 3",
            "[header]\n\"a b\" = \"x\"",
            "[header]\na = \"x\\n\"",
        ] {
            assert!(
                matches!(hosts("r.io", text), Err(HostsError::BadValue { .. })),
                "{text}"
            );
        }
        assert!(matches!(
            hosts("r.io", "= ="),
            Err(HostsError::Syntax { .. })
        ));
    }

    #[test]
    fn folder_is_searched_with_both_spellings_then_default() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, server: &str| {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            let text = format!("server = \"https://{server}\"");
            fs::write(dir.path().join(name).join(FILE), text).unwrap();
        };
        let server = |registry: &str| {
            hosts_for(dir.path(), registry).unwrap()[0]
                .api
                .host_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(server("r.io:5000"), "r.io");
        write("_default", "default");
        assert_eq!(server("r.io:5000"), "default");
        write("r.io:5000", "colon");
        assert_eq!(server("r.io:5000"), "colon");
        write("r.io_5000_", "underscore");
        assert_eq!(server("r.io:5000"), "underscore");
        assert_eq!(server("r.io"), "default");
    }
}
