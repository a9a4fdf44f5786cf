//! Channels in messages: the first byte of each says which.
//!
//! Owns nothing but the two halves. A message that is none (empty, or broken
//! base64) ends the connection, but for the empty one, which says nothing.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Reader, Writer};
use crate::wire::{Event, Lost, Out, Sink, Source};

/// The channel on which version 5 names one that ended.
const CLOSE: u8 = 255;

/// How a channel and its bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// The channel's number and the bytes.
    Binary,
    /// The channel's digit and the bytes in base64.
    Base64,
}

/// Events out of messages.
#[derive(Debug)]
pub(crate) struct WebSource {
    reader: Reader,
    coding: Coding,
    /// Version 5: the client can end a channel.
    closes: bool,
}

impl WebSource {
    pub(crate) fn new(reader: Reader, coding: Coding, closes: bool) -> Self {
        Self {
            reader,
            coding,
            closes,
        }
    }

    fn hear(&self, message: Bytes) -> Result<Option<Event>, Lost> {
        hear(self.coding, self.closes, message)
    }
}

impl Source for WebSource {
    async fn next(&mut self) -> Result<Event, Lost> {
        loop {
            // Thousands of messages come with one read.
            tokio::task::coop::consume_budget().await;
            let message = match self.reader.next().await {
                None => return Err(Lost::Closed),
                Some(message) => message.map_err(lost)?,
            };
            let message = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                _ => continue,
            };
            if let Some(event) = self.hear(message)? {
                return Ok(event);
            }
        }
    }
}

fn hear(coding: Coding, closes: bool, mut message: Bytes) -> Result<Option<Event>, Lost> {
    let Some(&channel) = message.first() else {
        return Ok(None);
    };
    let bytes = message.split_off(1);
    let (channel, bytes) = match coding {
        Coding::Binary => (channel, bytes),
        Coding::Base64 => {
            let bytes = STANDARD
                .decode(&bytes)
                .map_err(|error| Lost::Protocol(Box::new(error)))?;
            (channel.wrapping_sub(b'0'), bytes.into())
        }
    };
    if closes && channel == CLOSE {
        return Ok(bytes.first().map(|ended| Event::End(u32::from(*ended))));
    }
    let id = u32::from(channel);
    Ok((!bytes.is_empty()).then_some(Event::Data { id, bytes }))
}

/// What an error of the WebSocket is to the session.
pub(super) fn lost(error: Error) -> Lost {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => Lost::Closed,
        Error::Io(error) => Lost::Read(error),
        error => Lost::Protocol(Box::new(error)),
    }
}

/// Messages of what the server says.
#[derive(Debug)]
pub(crate) struct WebSink {
    writer: Writer,
    coding: Coding,
}

impl WebSink {
    pub(crate) fn new(writer: Writer, coding: Coding) -> Self {
        Self { writer, coding }
    }

    fn message(&self, id: u32, bytes: &[u8]) -> Message {
        // Channels are a byte: five of a command, two for each of 127 ports.
        let channel = u8::try_from(id).unwrap_or(CLOSE);
        match self.coding {
            Coding::Binary => {
                let mut message = BytesMut::with_capacity(1 + bytes.len());
                message.put_u8(channel);
                message.put_slice(bytes);
                Message::Binary(message.freeze())
            }
            Coding::Base64 => {
                let mut message = String::from(char::from(b'0'.wrapping_add(channel)));
                STANDARD.encode_string(bytes, &mut message);
                Message::Text(message.into())
            }
        }
    }
}

impl Sink for WebSink {
    async fn put(&mut self, out: Out) -> io::Result<()> {
        match out {
            Out::Data(id, bytes) => {
                let message = self.message(id, &bytes);
                self.writer.feed(message).await.map_err(failed)
            }
            // Clients of all versions take the end of the connection for that
            // of the channels, and know no word for one of them.
            Out::End(_) | Out::Reply(_) | Out::Reset(..) | Out::Pong(_) => Ok(()),
            // RFC 6455 5.5.3: a pong may come unasked.
            Out::Alive => self
                .writer
                .feed(Message::Pong(Bytes::new()))
                .await
                .map_err(failed),
            Out::Close => self.writer.send(farewell()).await.map_err(failed),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.writer.flush().await.map_err(failed)
    }

    async fn close(&mut self) -> io::Result<()> {
        self.put(Out::Close).await
    }
}

/// The end, and that all went well.
pub(super) fn farewell() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

/// An error of the WebSocket as one of a writer.
pub(super) fn failed(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::BrokenPipe, error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_channel_ends_in_version_5_alone() {
        let message = || Bytes::from_static(&[255, 0]);
        assert!(matches!(
            hear(Coding::Binary, true, message()),
            Ok(Some(Event::End(0)))
        ));
        assert!(matches!(
            hear(Coding::Binary, false, message()),
            Ok(Some(Event::Data { id: 255, .. }))
        ));
        assert!(matches!(
            hear(Coding::Binary, true, Bytes::from_static(&[255])),
            Ok(None)
        ));
    }

    #[test]
    fn base64_is_read_behind_a_digit() {
        let heard = hear(Coding::Base64, false, Bytes::from_static(b"0aGVsbG8="));
        assert!(
            matches!(heard, Ok(Some(Event::Data { id: 0, bytes })) if bytes == "hello".as_bytes())
        );
        assert!(hear(Coding::Base64, false, Bytes::from_static(b"0!")).is_err());
    }

    proptest! {
        #[test]
        fn any_message_is_an_event_or_an_error(
            message in prop::collection::vec(any::<u8>(), 0..64), closes in any::<bool>(),
        ) {
            for coding in [Coding::Binary, Coding::Base64] {
                hear(coding, closes, message.clone().into()).ok();
            }
        }
    }
}
