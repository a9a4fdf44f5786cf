//! CRI v1 of Kubernetes 1.37 as Rust types, with the client and the server half.
//!
//! The `.proto` beside this crate is written by hand from a table of the API's
//! names, numbers and types; the code is made from it at build time without
//! protoc. Nothing here knows what a field means to Slipway: that is the task of
//! `engine/src/convert`, and `FIELDS.md` lists what is not honoured yet.

/// Messages, enums, clients and servers of the package `runtime.v1`.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    unused_qualifications,
    reason = "generated code; the comments of the .proto become its docs"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// The descriptor set of `cri-v1.proto`, for tests and for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri-v1.bin"));

/// The largest message that either side accepts: the kubelet's client takes no
/// more than 16 MiB, whatever the engine sends.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
