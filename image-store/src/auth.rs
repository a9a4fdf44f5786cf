//! Credentials: what they are, and for which host they are meant.
//!
//! Owns the rule that credentials go to the registry of the reference, or to
//! the one host that `server_address` names, and to nobody else: no mirror, no
//! host that a redirect leads to. Contacts nobody.

use std::fmt;
use std::hash::Hash;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use crate::reference::DEFAULT_REGISTRY;

/// Credentials for one registry, as CRI hands them over.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    /// User.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// `user:password` in base64, read when there is no user.
    pub auth: Option<String>,
    /// The registry that the credentials are for, as a host or a URL.
    pub server_address: Option<String>,
    /// A refresh token, to be exchanged for access tokens.
    pub identity_token: Option<String>,
    /// An access token, to be sent as it is.
    pub registry_token: Option<String>,
}

/// One way to prove who asks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Basic { username: String, password: String },
    Refresh { token: String },
    Bearer { token: String },
}

/// Secrets stay out of logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic",
            Self::Refresh { .. } => "Refresh",
            Self::Bearer { .. } => "Bearer",
        })
    }
}

impl Auth {
    /// What to show to a host: `authority` is the host asked, and `origin`
    /// says that it is the reference's own registry.
    pub(crate) fn for_host(
        &self,
        registry: &str,
        authority: &str,
        origin: bool,
    ) -> Option<Credentials> {
        let meant = match filled(self.server_address.as_deref()) {
            None => origin,
            Some(address) => {
                let address = canonical(address);
                (origin && address == canonical(registry)) || address == canonical(authority)
            }
        };
        if meant { self.credentials() } else { None }
    }

    fn credentials(&self) -> Option<Credentials> {
        if let Some(token) = filled(self.registry_token.as_deref()) {
            return Some(Credentials::Bearer {
                token: token.to_owned(),
            });
        }
        if let Some(token) = filled(self.identity_token.as_deref()) {
            return Some(Credentials::Refresh {
                token: token.to_owned(),
            });
        }
        if let Some(username) = filled(self.username.as_deref()) {
            let password = self.password.clone().unwrap_or_default();
            return Some(Credentials::Basic {
                username: username.to_owned(),
                password,
            });
        }
        let bytes = filled(self.auth.as_deref()).and_then(decode)?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        let password = password.trim_end_matches('\0').to_owned();
        Some(Credentials::Basic {
            username: username.to_owned(),
            password,
        })
    }
}

fn filled(text: Option<&str>) -> Option<&str> {
    text.filter(|t| !t.is_empty())
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    STANDARD
        .decode(text)
        .or_else(|_| STANDARD_NO_PAD.decode(text))
        .ok()
}

/// Host and port alone, with Docker Hub's several names as one.
fn canonical(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let host = rest
        .split('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let default_port = if scheme == "http" { ":80" } else { ":443" };
    let host = host.strip_suffix(default_port).unwrap_or(&host);
    match host {
        "index.docker.io" | "registry-1.docker.io" | "docker.io" => DEFAULT_REGISTRY.to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(server: Option<&str>) -> Auth {
        Auth {
            username: Some("u".into()),
            password: Some("p".into()),
            server_address: server.map(str::to_owned),
            ..Auth::default()
        }
    }

    #[test]
    fn without_an_address_only_the_origin_gets_them() {
        assert!(basic(None).for_host("r.io", "r.io", true).is_some());
        assert!(
            basic(Some(""))
                .for_host("r.io", "inner:5000", true)
                .is_some()
        );
        assert!(basic(None).for_host("r.io", "mirror.io", false).is_none());
    }

    #[test]
    fn with_an_address_only_that_host_gets_them() {
        for address in ["r.io", "https://r.io", "https://r.io/v1/", "R.io:443"] {
            assert!(
                basic(Some(address))
                    .for_host("r.io", "r.io", true)
                    .is_some(),
                "{address}"
            );
            assert!(
                basic(Some(address))
                    .for_host("x.io", "x.io", true)
                    .is_none(),
                "{address}"
            );
        }
        assert!(
            basic(Some("r.io:5000"))
                .for_host("r.io", "r.io", true)
                .is_none()
        );
        let mirror = basic(Some("https://mirror.io"));
        assert!(mirror.for_host("r.io", "mirror.io", false).is_some());
        assert!(mirror.for_host("r.io", "r.io", true).is_none());
        let hub = basic(Some("https://index.docker.io/v1/"));
        assert!(
            hub.for_host("docker.io", "registry-1.docker.io", true)
                .is_some()
        );
        assert!(
            hub.for_host("docker.io.evil.io", "docker.io.evil.io", true)
                .is_none()
        );
    }

    #[test]
    fn every_form_is_read_and_the_strongest_wins() {
        let auth = Auth {
            auth: Some("dTpwOng=".into()),
            ..Auth::default()
        };
        let want = Credentials::Basic {
            username: "u".into(),
            password: "p:x".into(),
        };
        assert_eq!(auth.credentials(), Some(want.clone()));
        let unpadded = Auth {
            auth: Some("dTpwOng".into()),
            ..Auth::default()
        };
        assert_eq!(unpadded.credentials(), Some(want));
        let auth = Auth {
            identity_token: Some("i".into()),
            ..basic(None)
        };
        assert_eq!(
            auth.credentials(),
            Some(Credentials::Refresh { token: "i".into() })
        );
        let auth = Auth {
            registry_token: Some("r".into()),
            ..auth
        };
        assert_eq!(
            auth.credentials(),
            Some(Credentials::Bearer { token: "r".into() })
        );
        assert_eq!(Auth::default().credentials(), None);
        assert_eq!(
            Auth {
                auth: Some("%%".into()),
                ..Auth::default()
            }
            .credentials(),
            None
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?} {:?}", basic(None), basic(None).credentials());
        assert!(!text.contains('"'), "{text}");
    }
}
