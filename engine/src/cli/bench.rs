//! `slipway bench`: becomes the `slipway-bench` that lies beside this executable.
//! The benchmark sees engines from outside and is no part of one.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, anyhow};

/// Answers only where it could not become the other program.
pub(super) fn run(args: &[OsString]) -> anyhow::Error {
    let own = match std::env::current_exe().context("find the own executable") {
        Ok(own) => own,
        Err(error) => return error,
    };
    become_the_other(&own.with_file_name("slipway-bench"), args)
}

fn become_the_other(program: &Path, args: &[OsString]) -> anyhow::Error {
    let error = Command::new(program).args(args).exec();
    let path = program.display();
    if error.kind() == io::ErrorKind::NotFound {
        anyhow!("{path} is not installed; `make build` makes it, and it belongs beside slipway")
    } else {
        anyhow::Error::from(error).context(format!("run {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_benchmark_is_named_with_its_path() {
        let error = become_the_other(Path::new("/nowhere/slipway-bench"), &[]).to_string();
        assert!(
            error.starts_with("/nowhere/slipway-bench is not installed"),
            "{error}"
        );
    }
}
