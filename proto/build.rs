//! Generates the CRI messages, client and server without protoc: protox
//! parses the file, tonic-prost-build writes the Rust.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cri-v1.proto");
    let descriptors = protox::compile(["cri-v1.proto"], ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("cri-v1.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        // The largest messages are boxed by hand nowhere: handlers destructure them.
        .bytes(".runtime.v1.ExecSyncResponse")
        .compile_fds(descriptors)?;
    Ok(())
}
