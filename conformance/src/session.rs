//! A client of exec, attach and port-forward over WebSocket, as CRI servers have them.

use anyhow::Context;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

/// Channel of the input.
pub const STDIN: u8 = 0;
/// Channel of the output.
pub const STDOUT: u8 = 1;
/// Channel of errors that a command writes.
pub const STDERR: u8 = 2;
/// Channel of what became of a command.
pub const OUTCOME: u8 = 3;
/// Channel of the terminal's sizes.
pub const SIZE: u8 = 4;

/// A session that a server has granted.
#[derive(Debug)]
pub struct Session(WebSocketStream<TcpStream>);

impl Session {
    /// Begins the session at a URL that an engine answered.
    ///
    /// # Errors
    /// Nobody listens there, or the server does not grant it.
    pub async fn begin(url: &str, protocol: &'static str) -> Result<Self, Error> {
        let url = url.replacen("http://", "ws://", 1);
        let mut request = url.as_str().into_client_request()?;
        let protocol = protocol
            .parse()
            .map_err(|_| Error::Utf8(protocol.to_owned()))?;
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        let authority = url.split('/').nth(2).unwrap_or_default();
        let stream = TcpStream::connect(authority).await?;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        Ok(Self(socket))
    }

    /// Sends on a channel.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), Error> {
        let message = [&[channel], bytes].concat();
        self.0.send(Message::binary(message)).await
    }

    /// The next piece of a channel; `None` at the end, in order or not.
    ///
    /// # Errors
    /// The piece has no channel.
    pub async fn next(&mut self) -> anyhow::Result<Option<(u8, Bytes)>> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(mut bytes))) => {
                    let channel = *bytes.first().context("a piece without a channel")?;
                    return Ok(Some((channel, bytes.split_off(1))));
                }
                None | Some(Ok(Message::Close(_)) | Err(_)) => return Ok(None),
                Some(Ok(_)) => {}
            }
        }
    }
}
