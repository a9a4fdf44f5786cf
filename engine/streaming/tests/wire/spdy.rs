//! A small SPDY client: each call sends its frames at once.

use std::collections::HashMap;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::site::soon;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    Reply(u32),
    Reset(u32),
    Data(u32, Vec<u8>, bool),
    Pong(u32),
    Leave,
    Eof,
}

#[derive(Debug)]
pub(crate) struct Spdy<S = TcpStream> {
    pub(crate) stream: S,
    last: u32,
    begun: bool,
}

/// Asks for an upgrade; the status line comes back with the stream.
pub(crate) async fn ask(address: SocketAddr, request: &str) -> (String, TcpStream) {
    let stream = TcpStream::connect(address).await.unwrap();
    greet(stream, request).await
}

pub(crate) async fn greet<S>(mut stream: S, request: &str) -> (String, S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = soon("the answer", stream.read_u8()).await;
        let Ok(byte) = read else { break };
        head.push(byte);
    }
    (String::from_utf8(head).unwrap(), stream)
}

pub(crate) fn upgrade(path: &str, versions: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {versions}\r\nContent-Length: 0\r\n\r\n"
    )
}

impl Spdy {
    pub(crate) async fn connect(address: SocketAddr, path: &str, versions: &str) -> Self {
        let (head, stream) = ask(address, &upgrade(path, versions)).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self::over(stream)
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Spdy<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self {
            stream,
            last: 0,
            begun: false,
        }
    }

    /// SYN_STREAM with these headers; its number.
    pub(crate) async fn begin(&mut self, headers: &[(&str, &str)]) -> u32 {
        let mut text = (headers.len() as u32).to_be_bytes().to_vec();
        for (name, value) in headers {
            for part in [name, value] {
                text.extend((part.len() as u32).to_be_bytes());
                text.extend(part.as_bytes());
            }
        }
        // Stored, as the dictionary is the unit tests' matter.
        let mut block = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            block.extend([0x78, 1]);
        }
        let length = text.len() as u16;
        block.push(0);
        block.extend(length.to_le_bytes());
        block.extend((!length).to_le_bytes());
        block.extend(text);
        self.last = if self.last == 0 { 1 } else { self.last + 2 };
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend((block.len() as u32 + 10).to_be_bytes());
        frame.extend(self.last.to_be_bytes());
        frame.extend([0; 6]);
        frame.extend(block);
        self.stream.write_all(&frame).await.unwrap();
        self.last
    }

    /// A stream of this kind, replied to.
    pub(crate) async fn open(&mut self, kind: &str) -> u32 {
        let id = self.begin(&[("streamtype", kind)]).await;
        assert_eq!(self.next().await, Got::Reply(id));
        id
    }

    pub(crate) async fn send(&mut self, id: u32, bytes: &[u8], fin: bool) {
        self.try_send(id, bytes, fin).await.unwrap();
    }

    pub(crate) async fn try_send(
        &mut self,
        id: u32,
        bytes: &[u8],
        fin: bool,
    ) -> std::io::Result<()> {
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend((bytes.len() as u32 | u32::from(fin) << 24).to_be_bytes());
        frame.extend(bytes);
        self.stream.write_all(&frame).await
    }

    pub(crate) async fn reset(&mut self, id: u32) {
        let mut frame = vec![0x80, 3, 0, 3, 0, 0, 0, 8];
        frame.extend(id.to_be_bytes());
        frame.extend(5_u32.to_be_bytes());
        self.stream.write_all(&frame).await.unwrap();
    }

    pub(crate) async fn ping(&mut self, id: u32) {
        let mut frame = vec![0x80, 3, 0, 6, 0, 0, 0, 4];
        frame.extend(id.to_be_bytes());
        self.stream.write_all(&frame).await.unwrap();
    }

    pub(crate) async fn leave(&mut self) {
        let frame = [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        self.stream.write_all(&frame).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Got {
        soon("a frame", self.read()).await
    }

    async fn read(&mut self) -> Got {
        let mut head = [0; 8];
        if self.stream.read_exact(&mut head).await.is_err() {
            return Got::Eof;
        }
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).await.unwrap();
        let number = |bytes: &[u8]| u32::from_be_bytes(*bytes.first_chunk().unwrap());
        match (head[0] >> 7, head[3]) {
            (0, _) => Got::Data(number(&head), body, head[4] & 1 == 1),
            (_, 2) => Got::Reply(number(&body)),
            (_, 3) => Got::Reset(number(&body)),
            (_, 6) => Got::Pong(number(&body)),
            (_, 7) => Got::Leave,
            other => panic!("frame {other:?}"),
        }
    }

    /// All data until the connection ends, and whether each stream did.
    pub(crate) async fn rest(&mut self) -> HashMap<u32, (Vec<u8>, bool)> {
        let mut streams: HashMap<u32, (Vec<u8>, bool)> = HashMap::new();
        loop {
            match self.next().await {
                Got::Data(id, bytes, fin) => {
                    let stream = streams.entry(id).or_default();
                    assert!(!stream.1, "data after the end of {id}");
                    stream.0.extend(bytes);
                    stream.1 |= fin;
                }
                Got::Eof => return streams,
                _ => {}
            }
        }
    }
}
