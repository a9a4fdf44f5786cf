//! ImageFsInfo: clients use it as their connection check, so it only reads counters.

use std::sync::Arc;

use proto::v1;
use tonic::Status;

use crate::clock::now;
use crate::context::Engine;

/// Use of the filesystem of images; writable layers are on the same one.
pub(crate) async fn handle(
    engine: &Arc<Engine>,
    request: v1::ImageFsInfoRequest,
) -> Result<v1::ImageFsInfoResponse, Status> {
    let v1::ImageFsInfoRequest {} = request;
    let info = engine.images.fs_info();
    let mountpoint = info.mountpoint.to_string_lossy().into_owned();
    let usage = v1::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
        used_bytes: Some(v1::UInt64Value {
            value: info.used_bytes,
        }),
        inodes_used: Some(v1::UInt64Value {
            value: info.inodes_used,
        }),
    };
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![usage.clone()],
        container_filesystems: vec![usage],
    })
}
