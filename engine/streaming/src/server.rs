//! The server.

use std::io;

use tokio::net::TcpListener;

use crate::{Handler, Options};

/// Serves until dropped; dropping ends all connections.
///
/// # Errors
///
/// What makes the listener unusable; a failed connection is none.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    handler: H,
    options: Options,
) -> io::Result<()> {
    let _ = (handler, options);
    loop {
        let (socket, _) = listener.accept().await?;
        drop(socket);
    }
}
