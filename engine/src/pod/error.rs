//! What can go wrong with pods and containers, as callers need to tell it apart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::cdi::CdiError;
use crate::convert::BadRequest;
use crate::network::NetworkError;
use crate::pod::files::FilesError;
use crate::pod::record::RecordError;
use crate::spec::SpecError;

/// An error of a call; cloned for every caller that waits for the same work.
pub(crate) type SharedError = Arc<PodError>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    /// The request itself is wrong.
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// No such sandbox.
    #[error("pod sandbox {0} is not known")]
    NoPod(String),
    /// No such container.
    #[error("container {0} is not known")]
    NoContainer(String),
    /// No such handler.
    #[error("runtime handler {0:?} is not configured")]
    NoHandler(String),
    /// The image is not on the node.
    #[error("image {0:?} is not present")]
    NoImage(String),
    /// An image cannot be a volume.
    #[error(transparent)]
    ImageVolume(Box<ImageVolumeError>),
    /// Another sandbox or container has this identity.
    #[error("{what} exists already as {id}, which is {state}")]
    Exists {
        /// The identity.
        what: String,
        /// Who has it.
        id: String,
        /// In which state that one is.
        state: &'static str,
    },
    /// The object is in a state in which this is not possible.
    #[error("{what} is {state}")]
    State {
        /// The object.
        what: String,
        /// Its state.
        state: String,
    },
    /// The process could not be launched.
    #[error("{0}")]
    Start(String),
    /// A step of the runtime failed.
    #[error("{step}")]
    Runtime {
        /// What was tried.
        step: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The limits could not be set.
    #[error("set limits")]
    Limits(#[source] runtime::cgroup::CgroupError),
    /// The monitor of the pod does not answer, and has not been seen to be dead.
    #[error("the monitor of the pod does not answer")]
    MonitorSilent,
    /// A volume or device of the host does not answer.
    #[error("what the container needs of the host: {} has not answered within {} s", said(path.as_deref()), patience.as_secs())]
    HostPaths {
        /// The path that was looked at; none where it was the node's own files.
        path: Option<PathBuf>,
        /// How long was waited.
        patience: Duration,
    },
    /// The task of the pod failed; it starts again from its records.
    #[error("the task of the pod failed and starts again from its records")]
    TaskFailed,
    /// The engine ended while this was being done; what was made of it is given back.
    #[error("cut off by the end of the engine")]
    CutOff,
    /// The monitor of the pod is gone.
    #[error("the monitor of the pod is gone")]
    MonitorGone,
    /// The network could not be attached or given back.
    #[error("pod network")]
    Network(#[from] NetworkError),
    /// A record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The container's specification could not be made.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A device of a vendor's cannot be had.
    #[error("config.CDI_devices")]
    Cdi(#[from] Box<CdiError>),
    /// The files of the sandbox could not be made.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A snapshot could not be made or given back.
    #[error("snapshot")]
    Snapshot(#[from] image_store::SnapshotError),
    /// The image could not be leased.
    #[error("lease image")]
    Lease(#[from] image_store::LeaseError),
    /// What the image says could not be read.
    #[error(transparent)]
    Configuration(#[from] image_store::ConfigurationError),
    /// A command ran longer than its timeout.
    #[error("the command did not end within {0} s and was killed")]
    Timeout(i64),
    /// The work panicked or its task is gone; a defect.
    #[error("internal defect: {0}")]
    Defect(String),
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// An image cannot be a volume. The kubelet looks for the first word of the message.
#[derive(Debug, thiserror::Error)]
#[error("ImageVolumeMountFailed: {container_path}: image {image:?}")]
pub(crate) struct ImageVolumeError {
    /// In the container.
    pub(crate) container_path: String,
    /// As the request names it.
    pub(crate) image: String,
    /// Why not.
    pub(crate) source: NoImageVolume,
}

/// Why an image cannot be a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoImageVolume {
    /// It is not on the node.
    #[error("is not present")]
    NotPresent,
    /// It cannot be mounted.
    #[error("cannot be mounted")]
    Mount(#[source] image_store::SnapshotError),
}

fn said(path: Option<&Path>) -> String {
    path.map_or_else(
        || "the disk of its root".to_owned(),
        |path| path.display().to_string(),
    )
}

impl PodError {
    /// What is said of the things that work had made which panicked.
    pub(crate) fn unknown_rest() -> Self {
        Self::Defect("the work panicked, what it had made is not known".to_owned())
    }

    /// A failed step of the runtime.
    pub(crate) fn runtime(
        step: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Runtime {
            step: step.into(),
            source: Box::new(source),
        }
    }
}
