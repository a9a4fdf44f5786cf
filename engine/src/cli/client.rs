//! The way of the commands to an engine that runs: its CRI socket.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use hyper_util::rt::TokioIo;
use proto::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::config;

/// The name of the socket below `--state`.
const SOCKET: &str = "slipway.sock";

#[derive(Debug, Args)]
pub(super) struct SocketArgs {
    /// The engine's CRI socket [default: /run/slipway/slipway.sock].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl SocketArgs {
    /// The socket, by default that of an engine with default places.
    pub(super) fn path(self) -> PathBuf {
        self.socket
            .unwrap_or_else(|| Path::new(config::DEFAULT_STATE).join(SOCKET))
    }
}

/// Runs a command that asks an engine.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    runtime.block_on(work)
}

/// Connects to an engine.
pub(super) async fn connect(socket: &Path) -> anyhow::Result<RuntimeServiceClient<Channel>> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("connect to {}", socket.display()))?;
    Ok(RuntimeServiceClient::new(channel))
}
