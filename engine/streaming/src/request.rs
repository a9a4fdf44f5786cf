//! What a request asks for.
//!
//! Owns the choice of a protocol. Decides before a token is spent, so that a
//! client may ask again with another protocol, as kubectl does.
//!
//! An `Origin` is not looked at: Python's client sends one with every
//! WebSocket, and API server and kubelet pass headers on as they are. What
//! keeps browsers' pages out is that a token cannot be guessed and is good
//! once.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::Expected;
use crate::status::Spelling;
use crate::web::Coding;

/// The protocols of SPDY's streams that a client offers, and the one chosen.
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What the server would have taken.
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// How many ports the old WebSocket protocol has channels for.
const PORTS: usize = 127;

/// The body of every answer: a line for people, or nothing.
pub(crate) type Body = http_body_util::Full<bytes::Bytes>;

/// What is spoken on a connection from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// A command over SPDY; since version 3 with sizes.
    Spdy { spelling: Spelling, resizes: bool },
    /// A command over WebSocket; since version 5 with ends of channels.
    Web {
        coding: Coding,
        spelling: Spelling,
        closes: bool,
    },
    /// Ports over SPDY.
    PortsSpdy,
    /// Ports over SPDY in WebSocket.
    PortsTunnel,
    /// Ports over WebSocket, all named by the request.
    PortsWeb { coding: Coding, ports: Vec<u16> },
}

/// A request that can be granted.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) token: String,
    pub(crate) protocol: Protocol,
    /// The answer that begins the protocol.
    pub(crate) answer: Response<Body>,
}

impl Asked {
    /// Whether the path is one for what the token stands for.
    pub(crate) fn fits(&self, expected: Expected) -> bool {
        let command = matches!(self.protocol, Protocol::Spdy { .. } | Protocol::Web { .. });
        command == matches!(expected, Expected::Command(_))
    }
}

/// An answer that ends the connection.
pub(crate) fn refusal(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The answer to a token that is none, was used, or stands for something else.
pub(crate) fn unknown() -> Response<Body> {
    refusal(StatusCode::NOT_FOUND, "no such session\n")
}

/// Takes a request apart; what cannot be granted comes back as its answer.
pub(crate) fn ask<B>(request: &Request<B>) -> Result<Asked, Box<Response<Body>>> {
    let (ports, token) = place(request.uri().path()).ok_or_else(unknown)?;
    if request.method() != Method::GET && request.method() != Method::POST {
        return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "GET or POST\n").into());
    }
    let headers = request.headers();
    let upgrade = listed(headers, &header::CONNECTION)
        .any(|word| word.eq_ignore_ascii_case("upgrade"))
        && request.version() == Version::HTTP_11;
    let to = |protocol: &str| {
        upgrade && listed(headers, &header::UPGRADE).any(|word| word.eq_ignore_ascii_case(protocol))
    };
    let (protocol, answer) = if to("websocket") {
        web(request, ports)?
    } else if to("spdy/3.1") {
        spdy(headers, ports)?
    } else {
        let text = "only upgrades to SPDY/3.1 and websocket are served\n";
        return Err(refusal(StatusCode::BAD_REQUEST, text).into());
    };
    Ok(Asked {
        token: token.to_owned(),
        protocol,
        answer,
    })
}

/// Whether a path is for ports, and its token.
fn place(path: &str) -> Option<(bool, &str)> {
    let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
    let ports = match kind {
        "exec" | "attach" => false,
        "portforward" => true,
        _ => return None,
    };
    (!token.is_empty() && !token.contains('/')).then_some((ports, token))
}

/// The words of a header, which may come in several lines.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers
        .get_all(name)
        .into_iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

fn switching(to: &'static str) -> Response<Body> {
    let mut answer = refusal(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(to));
    answer
}

/// The first protocol of the client's that is one of the server's.
fn spdy(
    headers: &HeaderMap,
    ports: bool,
) -> Result<(Protocol, Response<Body>), Box<Response<Body>>> {
    let offered: Vec<&str> = listed(headers, &VERSION).collect();
    if offered.is_empty() {
        let text = "X-Stream-Protocol-Version is missing\n";
        return Err(refusal(StatusCode::BAD_REQUEST, text).into());
    }
    let served: &[&'static str] = if ports {
        &["portforward.k8s.io"]
    } else {
        &[
            "v4.channel.k8s.io",
            "v3.channel.k8s.io",
            "v2.channel.k8s.io",
            "channel.k8s.io",
        ]
    };
    let common = offered
        .iter()
        .find_map(|name| served.iter().find(|known| *known == name));
    let Some(&chosen) = common else {
        let mut answer = refusal(StatusCode::FORBIDDEN, "no protocol in common\n");
        for name in served {
            answer
                .headers_mut()
                .append(ACCEPTED, HeaderValue::from_static(name));
        }
        return Err(answer.into());
    };
    let protocol = match chosen {
        _ if ports => Protocol::PortsSpdy,
        "v4.channel.k8s.io" => Protocol::Spdy {
            spelling: Spelling::Status,
            resizes: true,
        },
        "v3.channel.k8s.io" => Protocol::Spdy {
            spelling: Spelling::Text,
            resizes: true,
        },
        _ => Protocol::Spdy {
            spelling: Spelling::Text,
            resizes: false,
        },
    };
    let mut answer = switching("SPDY/3.1");
    answer
        .headers_mut()
        .insert(VERSION, HeaderValue::from_static(chosen));
    Ok((protocol, answer))
}

/// The first subprotocol of the client's that is one of the server's; without
/// any, the oldest.
fn web<B>(
    request: &Request<B>,
    ports: bool,
) -> Result<(Protocol, Response<Body>), Box<Response<Body>>> {
    let headers = request.headers();
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let version = headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_some_and(|told| told == "13");
    let (Some(key), true, &Method::GET) = (key, version, request.method()) else {
        let text = "not the handshake of RFC 6455\n";
        return Err(refusal(StatusCode::BAD_REQUEST, text).into());
    };
    let offered: Vec<&str> = listed(headers, &header::SEC_WEBSOCKET_PROTOCOL).collect();
    let found = offered
        .iter()
        .find_map(|name| subprotocol(name, ports).map(|kind| (kind, *name)));
    let (kind, chosen) = match found {
        Some((kind, name)) => (kind, Some(name)),
        None if offered.is_empty() => (
            Kind::Channels {
                coding: Coding::Binary,
                version: 1,
            },
            None,
        ),
        None => {
            return Err(refusal(StatusCode::FORBIDDEN, "no protocol in common\n").into());
        }
    };
    let protocol = match kind {
        Kind::Tunnel => Protocol::PortsTunnel,
        Kind::Channels { coding, .. } if ports => Protocol::PortsWeb {
            coding,
            ports: named(request.uri().query().unwrap_or_default()).ok_or_else(|| {
                refusal(
                    StatusCode::BAD_REQUEST,
                    "query parameter port: 1 to 127 ports\n",
                )
            })?,
        },
        Kind::Channels { coding, version } => {
            let spelling = if version >= 4 {
                Spelling::Status
            } else {
                Spelling::Text
            };
            Protocol::Web {
                coding,
                spelling,
                closes: version >= 5,
            }
        }
    };
    let mut answer = switching("websocket");
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|_| refusal(StatusCode::BAD_REQUEST, "a broken key\n"))?;
    answer
        .headers_mut()
        .insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(name) = chosen.and_then(|name| HeaderValue::from_str(name).ok()) {
        answer
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    Ok((protocol, answer))
}

/// A subprotocol of WebSocket.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Tunnel,
    Channels { coding: Coding, version: u8 },
}

fn subprotocol(name: &str, ports: bool) -> Option<Kind> {
    let (coding, version) = match name {
        "SPDY/3.1+portforward.k8s.io" if ports => return Some(Kind::Tunnel),
        "v5.channel.k8s.io" if !ports => (Coding::Binary, 5),
        "v4.channel.k8s.io" => (Coding::Binary, 4),
        "v4.base64.channel.k8s.io" => (Coding::Base64, 4),
        "channel.k8s.io" if !ports => (Coding::Binary, 1),
        "base64.channel.k8s.io" if !ports => (Coding::Base64, 1),
        _ => return None,
    };
    Some(Kind::Channels { coding, version })
}

/// The ports of a query: `port=80,443&port=8080`.
fn named(query: &str) -> Option<Vec<u16>> {
    let lists = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("port="));
    // A comma may come as it is or escaped.
    let words = lists
        .flat_map(|list| list.split(','))
        .flat_map(|list| list.split("%2C"));
    let ports: Option<Vec<u16>> = words
        .map(|word| word.parse().ok().filter(|port| *port > 0))
        .collect();
    ports.filter(|ports| (1..=PORTS).contains(&ports.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, headers: &[(&str, &str)]) -> Result<Asked, Box<Response<Body>>> {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        ask(&request.body(()).unwrap())
    }

    fn spdy(path: &str, versions: &[&str]) -> Result<Asked, Box<Response<Body>>> {
        let mut headers = vec![("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        headers.extend(
            versions
                .iter()
                .map(|version| ("x-stream-protocol-version", *version)),
        );
        request(path, &headers)
    }

    fn web(path: &str, offered: &str) -> Result<Asked, Box<Response<Body>>> {
        let handshake = [
            ("connection", "keep-alive, upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("origin", "http://node:10250"),
            ("sec-websocket-protocol", offered),
        ];
        request(path, &handshake)
    }

    #[test]
    fn the_client_s_first_common_protocol_is_taken() {
        let asked = spdy(
            "/exec/abc",
            &["v9.channel.k8s.io", "v3.channel.k8s.io, channel.k8s.io"],
        );
        let asked = asked.unwrap();
        assert_eq!(asked.token, "abc");
        assert_eq!(
            asked.answer.headers()["x-stream-protocol-version"],
            "v3.channel.k8s.io"
        );
        assert_eq!(
            asked.protocol,
            Protocol::Spdy {
                spelling: Spelling::Text,
                resizes: true
            }
        );
        let refused = spdy("/exec/abc", &["v9.channel.k8s.io"]).unwrap_err();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert_eq!(refused.headers().get_all(ACCEPTED).iter().count(), 4);
        assert_eq!(
            spdy("/exec/abc", &[]).unwrap_err().status(),
            StatusCode::BAD_REQUEST
        );
    }

    #[test]
    fn subprotocols_belong_to_paths() {
        let asked = web("/attach/abc", "v5.channel.k8s.io, v4.channel.k8s.io").unwrap();
        assert!(matches!(asked.protocol, Protocol::Web { closes: true, .. }));
        // The sample of RFC 6455.
        assert_eq!(
            asked.answer.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        let tunnel = web("/portforward/abc", "SPDY/3.1+portforward.k8s.io").unwrap();
        assert_eq!(tunnel.protocol, Protocol::PortsTunnel);
        assert!(web("/exec/abc", "SPDY/3.1+portforward.k8s.io").is_err());
        assert!(web("/portforward/abc", "v5.channel.k8s.io").is_err());
        let ports = web(
            "/portforward/abc?port=80,443&port=8080",
            "v4.channel.k8s.io",
        )
        .unwrap();
        assert!(
            matches!(ports.protocol, Protocol::PortsWeb { ports, .. } if ports == [80, 443, 8080])
        );
        assert!(web("/portforward/abc?port=0", "v4.channel.k8s.io").is_err());
        assert!(web("/portforward/abc", "v4.channel.k8s.io").is_err());
    }

    #[test]
    fn other_paths_and_plain_requests_are_refused() {
        for path in ["/", "/exec", "/exec/", "/exec/a/b", "/run/abc", "/Exec/abc"] {
            let refused = spdy(path, &["v4.channel.k8s.io"]).unwrap_err();
            assert_eq!(refused.status(), StatusCode::NOT_FOUND, "{path}");
        }
        assert_eq!(
            request("/exec/abc", &[]).unwrap_err().status(),
            StatusCode::BAD_REQUEST
        );
    }
}
