//! WebSocket, as RFC 6455 has it and as the kubelet's server uses it.
//!
//! Owns the channels in messages and the tunnel of SPDY through them. A
//! message of a client has at most [`MESSAGE`] bytes: clients send 32 KiB.
//! Pings are answered where messages are read.

mod channels;
mod tunnel;

use bytes::BytesMut;
use futures::StreamExt as _;
use futures::stream::{SplitSink, SplitStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

pub(crate) use channels::{Coding, WebSink, WebSource};
pub(crate) use tunnel::{TunnelReader, TunnelWriter};

use crate::socket::Socket;

/// What a client's message may have.
const MESSAGE: usize = 1024 * 1024;

type Reader = SplitStream<WebSocketStream<Socket>>;
type Writer = SplitSink<WebSocketStream<Socket>, Message>;

/// Speaks WebSocket on a connection that was upgraded, behind the bytes that
/// came with the request.
pub(crate) async fn upgraded(socket: Socket, begun: BytesMut) -> (Writer, Reader) {
    let config = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(256 * 1024)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE));
    let begun = begun.to_vec();
    let stream =
        WebSocketStream::from_partially_read(socket, begun, Role::Server, Some(config)).await;
    stream.split()
}
