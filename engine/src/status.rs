//! The one place that picks gRPC codes. No arm catches all: a new failure does
//! not compile until somebody decided what a client should think of it.

use image_store::{ConfigurationError, PullError, RemoveError, SnapshotError};
use runtime::cgroup::CgroupError;
use tonic::{Code, Status};

use crate::causes::with_causes;
use crate::cdi::CdiError;
use crate::convert::BadRequest;
use crate::network::NetworkError;
use crate::pod::error::{NoImageVolume, PodError};
use crate::spec::SpecError;
use crate::stream::TooManySessions;

/// What the kubelet looks for at the beginning of a message, under code Unknown.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

/// Bytes of a message.
const MAX_MESSAGE: usize = 4096;

/// An RPC that is not there yet.
pub(crate) fn unimplemented(rpc: &str, what: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not implemented yet: {what}"))
}

/// A wrong request.
pub(crate) fn bad_request(error: &BadRequest) -> Status {
    let code = match error {
        BadRequest::Missing { .. } | BadRequest::Value { .. } => Code::InvalidArgument,
        BadRequest::Unsupported { .. } => Code::Unimplemented,
    };
    Status::new(code, error.to_string())
}

/// A failure of pods and containers.
pub(crate) fn pod(error: &PodError) -> Status {
    let code = match error {
        PodError::Request(bad) => return bad_request(bad),
        PodError::NoPod(_) | PodError::NoContainer(_) | PodError::NoImage(_) => Code::NotFound,
        PodError::ImageVolume(error) => image_volume_code(&error.source),
        PodError::NoHandler(_) => Code::InvalidArgument,
        PodError::Exists { .. } => Code::AlreadyExists,
        PodError::State { .. } => Code::FailedPrecondition,
        PodError::Timeout(_) | PodError::HostPaths { .. } => Code::DeadlineExceeded,
        PodError::Spec(spec) => spec_code(spec),
        PodError::Cdi(error) => cdi_code(error),
        PodError::Limits(limits) => limits_code(limits),
        PodError::Network(network) => network_code(network),
        PodError::ShuttingDown
        | PodError::MonitorGone
        | PodError::MonitorSilent
        | PodError::TaskFailed
        | PodError::CutOff => Code::Unavailable,
        PodError::Snapshot(_) | PodError::Runtime { .. } | PodError::Record(_) => disk_code(error),
        PodError::Start(_) => Code::Unknown,
        PodError::Files(_) => disk_code(error),
        PodError::Lease(_) => Code::NotFound,
        PodError::Configuration(error) => configuration_code(error),
        PodError::Defect(_) => Code::Internal,
    };
    Status::new(code, cut(with_causes(error)))
}

/// What an image or a container says may be in a message, which goes into a header that
/// clients take some kilobytes of.
fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push_str(" [cut]");
    }
    message
}

fn spec_code(error: &SpecError) -> Code {
    match error {
        SpecError::NoSuchName { .. }
        | SpecError::NoId { .. }
        | SpecError::OutsideUserNamespace { .. }
        | SpecError::TooManyGroups { .. }
        | SpecError::NoSuchCapability { .. }
        | SpecError::RelativeWorkingDir(_)
        | SpecError::ImageVolume { .. }
        | SpecError::NoCommand
        | SpecError::NoRecursiveReadOnly { .. }
        | SpecError::Mount { .. }
        | SpecError::Device { .. }
        | SpecError::Seccomp { .. }
        | SpecError::PidMode(_) => Code::InvalidArgument,
        SpecError::Stuck { .. } => Code::DeadlineExceeded,
        SpecError::UserDatabase { .. } => Code::Internal,
    }
}

fn image_volume_code(error: &NoImageVolume) -> Code {
    match error {
        NoImageVolume::NotPresent => Code::NotFound,
        NoImageVolume::Mount(SnapshotError::ImagePath { .. }) => Code::InvalidArgument,
        NoImageVolume::Mount(other) => disk_code(other),
    }
}

fn cdi_code(error: &CdiError) -> Code {
    match error {
        CdiError::Unknown { .. } | CdiError::Twice { .. } | CdiError::Edit { .. } => {
            Code::FailedPrecondition
        }
        CdiError::Unsupported { .. } => Code::Unimplemented,
        CdiError::Stuck { .. } => Code::DeadlineExceeded,
    }
}

fn network_code(error: &NetworkError) -> Code {
    match error {
        NetworkError::Conf { .. } | NetworkError::NotConfigured { .. } => Code::FailedPrecondition,
        NetworkError::NothingAttached { .. }
        | NetworkError::Plugin { .. }
        | NetworkError::Result { .. } => Code::Unknown,
        NetworkError::Survivor { .. } => Code::DeadlineExceeded,
        NetworkError::Processes(_) => Code::Internal,
        NetworkError::Cache { .. } => disk_code(error),
    }
}

fn limits_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::Invalid { .. } => Code::InvalidArgument,
        CgroupError::NoController { .. } => Code::FailedPrecondition,
        CgroupError::Write { source, .. } => match source.kind() {
            std::io::ErrorKind::InvalidInput => Code::InvalidArgument,
            // A v1 hierarchy whose processes need more memory than that.
            std::io::ErrorKind::ResourceBusy => Code::FailedPrecondition,
            // A processor, or a node of memory, with a number beyond the kernel's.
            _ if source.raw_os_error() == Some(rustix::io::Errno::RANGE.raw_os_error()) => {
                Code::InvalidArgument
            }
            _ => disk_code(error),
        },
        CgroupError::NotRestored { source, .. } => limits_code(source),
        CgroupError::NotFound { .. } => Code::FailedPrecondition,
        CgroupError::MountTable { .. }
        | CgroupError::NotMounted
        | CgroupError::NoUnified
        | CgroupError::Path { .. }
        | CgroupError::Make { .. }
        | CgroupError::Read { .. }
        | CgroupError::Content { .. }
        | CgroupError::Signal { .. }
        | CgroupError::StillAlive { .. }
        | CgroupError::Remove { .. } => disk_code(error),
    }
}

/// A full disk is told apart wherever it shows in the causes.
fn disk_code(error: &(dyn std::error::Error + 'static)) -> Code {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let full = error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull);
        if full {
            return Code::ResourceExhausted;
        }
        cause = error.source();
    }
    Code::Internal
}

fn configuration_code(error: &ConfigurationError) -> Code {
    match error {
        ConfigurationError::NotFound { .. } => Code::NotFound,
        ConfigurationError::Io { .. } => disk_code(error),
    }
}

/// A configuration that cannot be read.
pub(crate) fn configuration(error: &ConfigurationError) -> Status {
    Status::new(configuration_code(error), cut(with_causes(error)))
}

/// Nobody begins the sessions that are asked for.
pub(crate) fn too_many_sessions(error: &TooManySessions) -> Status {
    Status::resource_exhausted(error.to_string())
}

/// A failed pull.
pub(crate) fn pull(error: &PullError) -> Status {
    let code = match error {
        PullError::BadReference { .. } => Code::InvalidArgument,
        PullError::RegistryUnavailable { .. } => {
            // Code and beginning of the message are what the kubelet matches.
            return Status::unknown(format!("{REGISTRY_UNAVAILABLE}: {}", with_causes(error)));
        }
        PullError::Unauthorized { .. } => Code::Unauthenticated,
        PullError::NotFound { .. } | PullError::NoMatchingPlatform { .. } => Code::NotFound,
        PullError::UnsupportedMediaType { .. } => Code::Unimplemented,
        PullError::Hosts { .. }
        | PullError::BadManifest { .. }
        | PullError::ForeignLayer { .. }
        | PullError::TooLarge { .. }
        | PullError::HostileEntry { .. } => Code::FailedPrecondition,
        PullError::DigestMismatch { .. }
        | PullError::SizeMismatch { .. }
        | PullError::DiffIdMismatch { .. }
        | PullError::BadLayer { .. } => Code::DataLoss,
        PullError::DiskFull { .. } => Code::ResourceExhausted,
        PullError::Cancelled => Code::Cancelled,
        PullError::Io { .. } | PullError::Database { .. } => disk_code(error),
    };
    Status::new(code, with_causes(error))
}

/// A failed removal of an image.
pub(crate) fn remove_image(error: &RemoveError) -> Status {
    Status::new(disk_code(error), with_causes(error))
}
