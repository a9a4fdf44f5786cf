//! What clients send as `:authority`, in frames made here: no HTTP/2 library
//! sends what some clients do.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::rig::{deadline, with_engine, with_own_engine};

/// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
/// Flags of frames.
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
/// The stream of the only request.
const STREAM: u32 = 1;
const PROTOCOL_ERROR: u32 = 1;

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The body of the answer.
    Answered(Vec<u8>),
    /// The stream was reset, with this code.
    Reset(u32),
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    async fn read(socket: &mut UnixStream) -> std::io::Result<Self> {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let mut payload = vec![0; length.try_into().expect("it fits")];
        socket.read_exact(&mut payload).await?;
        Ok(Self {
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff,
            payload,
        })
    }

    fn bytes(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }
}

/// A string without Huffman coding.
fn string(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("short");
    assert!(length < 0x7f, "longer strings have a longer length");
    [&[length], text.as_bytes()].concat()
}

/// The header block of a call to Version. Names stand in HPACK's static table;
/// values that do not are literals that nobody is to remember.
fn header_block(authority: Option<&str>) -> Vec<u8> {
    const METHOD_POST: u8 = 0x80 | 3;
    const SCHEME_HTTP: u8 = 0x80 | 6;
    const PATH: u8 = 4;
    const AUTHORITY: u8 = 1;
    /// 31, of which 15 fit into the first byte.
    const CONTENT_TYPE: [u8; 2] = [15, 16];
    const NEW_NAME: u8 = 0;
    let mut block = vec![METHOD_POST, SCHEME_HTTP, PATH];
    block.extend(string("/runtime.v1.RuntimeService/Version"));
    if let Some(authority) = authority {
        block.push(AUTHORITY);
        block.extend(string(authority));
    }
    block.extend(CONTENT_TYPE);
    block.extend(string("application/grpc"));
    block.push(NEW_NAME);
    block.extend(string("te"));
    block.extend(string("trailers"));
    block
}

/// Calls Version and waits for the end of the answer.
async fn call(socket: &Path, authority: Option<&str>) -> std::io::Result<Outcome> {
    const EMPTY_MESSAGE: [u8; 5] = [0; 5];
    let mut socket = UnixStream::connect(socket).await?;
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(Frame::bytes(SETTINGS, 0, 0, &[]));
    let headers = header_block(authority);
    request.extend(Frame::bytes(HEADERS, END_HEADERS, STREAM, &headers));
    request.extend(Frame::bytes(DATA, END_STREAM, STREAM, &EMPTY_MESSAGE));
    socket.write_all(&request).await?;
    let mut body = Vec::new();
    loop {
        let frame = Frame::read(&mut socket).await?;
        match (frame.kind, frame.stream) {
            (SETTINGS, 0) if frame.flags & ACK == 0 => {
                let ack = Frame::bytes(SETTINGS, ACK, 0, &[]);
                socket.write_all(&ack).await?;
            }
            (RST_STREAM, STREAM) => {
                let code = frame.payload.try_into().expect("four bytes");
                return Ok(Outcome::Reset(u32::from_be_bytes(code)));
            }
            (DATA, STREAM) => body.extend(frame.payload),
            (HEADERS, STREAM) if frame.flags & END_STREAM != 0 => {
                return Ok(Outcome::Answered(body));
            }
            _ => {}
        }
    }
}

async fn outcome(socket: &Path, authority: Option<&str>) -> Outcome {
    tokio::time::timeout(deadline(), call(socket, authority))
        .await
        .unwrap_or_else(|_| panic!("no answer to {authority:?}"))
        .unwrap_or_else(|error| panic!("{authority:?}: {error}"))
}

#[test]
fn every_valid_authority_is_accepted_and_so_is_none() {
    with_engine(async |rig| {
        for authority in [Some("localhost"), Some("localhost:0"), Some("x.sock"), None] {
            let Outcome::Answered(body) = outcome(&rig.engine.socket(), authority).await else {
                panic!("{authority:?} is refused");
            };
            // An error has no message, only trailers.
            assert!(body.len() > 5 && body[0] == 0, "{authority:?}: {body:?}");
        }
    });
}

#[test]
fn a_path_as_authority_resets_the_stream_and_harms_no_other_client() {
    with_own_engine(async |rig| {
        for authority in ["%2Frun%2Fslipway%2Fslipway.sock", "run%2Fslipway.sock"] {
            let outcome = outcome(&rig.engine.socket(), Some(authority)).await;
            assert_eq!(outcome, Outcome::Reset(PROTOCOL_ERROR), "{authority}");
        }
        rig.client.version().await.expect("version");
    });
}
