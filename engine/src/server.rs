//! The socket and what stands between it and the services.
//!
//! Owns the socket file: takes over one that nobody listens on, refuses one that
//! an engine lives behind, and removes its own at the end. Containers and their
//! monitors outlive it.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::v1::image_service_server::ImageServiceServer;
use proto::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::context::Engine;
use crate::layers::CallLayer;
use crate::rpc::Services;

/// Of the two seconds that SIGTERM allows, what running calls get to end.
const DRAIN: Duration = Duration::from_millis(1200);
/// Root and the socket's group may talk to the engine; that is the node's root.
const MODE: u32 = 0o660;

/// What can go wrong with the socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// Another engine answers there.
    #[error("another engine listens on {}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is in its place.
    #[error("{} exists and is no socket", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("{step} {}", path.display())]
    Socket {
        /// What was tried.
        step: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Serving ended with an error.
    #[error("serve")]
    Serve(#[source] tonic::transport::Error),
}

/// Listens, after a look at who may be listening there already.
pub(crate) async fn bind(path: &Path) -> Result<UnixListener, ServerError> {
    let named = |step: &'static str| {
        let path = path.to_owned();
        move |source| ServerError::Socket { step, path, source }
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(named("create the folder of"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServerError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {
            // A crashed engine leaves its socket; nobody answers on that one.
            // Any other answer than a refusal may come from one that is busy.
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => {
                    return Err(ServerError::InUse {
                        path: path.to_owned(),
                    });
                }
            }
            std::fs::remove_file(path).map_err(named("remove the stale socket"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(named("look at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(named("bind"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))
        .map_err(named("set the mode of"))?;
    Ok(listener)
}

/// Serves until `stop` says so; then gives running calls a moment and ends.
pub(crate) async fn serve(
    listener: UnixListener,
    path: &Path,
    engine: &Arc<Engine>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), ServerError> {
    let limit = proto::MAX_MESSAGE_BYTES;
    let services = Services::new(Arc::clone(engine));
    let runtime = RuntimeServiceServer::new(services.clone())
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let images = ImageServiceServer::new(services)
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let mut stopping = stop.clone();
    let serving = Server::builder()
        .layer(CallLayer::new(Arc::clone(engine)))
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            // The sender lives as long as the process; its end is a stop as well.
            drop(stop.wait_for(|stop| *stop).await);
        });
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result.map_err(ServerError::Serve),
        () = async {
            drop(stopping.wait_for(|stop| *stop).await);
            tokio::time::sleep(DRAIN).await;
        } => Ok(()),
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "the socket stays");
        }
        _ => {}
    }
    result
}
