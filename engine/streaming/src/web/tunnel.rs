//! Bytes through binary messages, for SPDY inside WebSocket.
//!
//! Owns the message that is read in part. Where messages begin and end means
//! nothing. A close frame is the end of the bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::Message;

use super::channels::{failed, farewell};
use super::{Reader, Writer};

/// What one message carries.
const MESSAGE: usize = 32 * 1024;

/// The bytes of a client's messages.
#[derive(Debug)]
pub(crate) struct TunnelReader {
    reader: Reader,
    message: Bytes,
}

impl TunnelReader {
    pub(crate) fn new(reader: Reader) -> Self {
        Self {
            reader,
            message: Bytes::new(),
        }
    }
}

impl AsyncRead for TunnelReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.message.is_empty() {
            match ready!(Pin::new(&mut this.reader).poll_next(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => this.message = bytes,
                Some(Ok(Message::Text(_))) => {
                    let text = io::Error::new(io::ErrorKind::InvalidData, "text in a tunnel");
                    return Poll::Ready(Err(text));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
            }
        }
        let length = this.message.len().min(buffer.remaining());
        buffer.put_slice(this.message.get(..length).unwrap_or_default());
        this.message.advance(length);
        Poll::Ready(Ok(()))
    }
}

/// Messages of the server's bytes.
#[derive(Debug)]
pub(crate) struct TunnelWriter {
    writer: Writer,
    closed: bool,
}

impl TunnelWriter {
    pub(crate) fn new(writer: Writer) -> Self {
        Self {
            writer,
            closed: false,
        }
    }
}

impl AsyncWrite for TunnelWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut writer = Pin::new(&mut self.get_mut().writer);
        ready!(writer.as_mut().poll_ready(context)).map_err(failed)?;
        let bytes = bytes.get(..MESSAGE).unwrap_or(bytes);
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        writer.start_send(message).map_err(failed)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().writer)
            .poll_flush(context)
            .map_err(failed)
    }

    /// Sends a close frame of the code that Go takes for the end of the bytes;
    /// it takes one without a code for an error.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut writer = Pin::new(&mut this.writer);
        if !this.closed {
            ready!(writer.as_mut().poll_ready(context)).map_err(failed)?;
            writer.as_mut().start_send(farewell()).map_err(failed)?;
            this.closed = true;
        }
        writer.poll_flush(context).map_err(failed)
    }
}
