//! SPDY/3.1 as moby/spdystream speaks it.
//!
//! Owns the bytes of frames both ways. Never decides what a stream is for.
//!
//! The Go client keeps no windows: it sends no WINDOW_UPDATE and ignores ours,
//! so neither side is held by one, and a stream that is not read holds the
//! whole connection's incoming frames.

mod dictionary;
mod frame;
mod headers;
#[cfg(test)]
pub(crate) mod testing;
mod wire;

pub(crate) use headers::Headers;
pub(crate) use wire::{SpdySink, SpdySource};
