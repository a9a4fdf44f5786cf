//! Runs one CNI plugin: environment and standard input as the CNI
//! specification says, its result or its error from standard output.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What can go wrong with one run of a plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginError {
    /// No folder has it.
    #[error("{name} is in none of {dirs:?}")]
    NotInstalled {
        /// Type of the plugin.
        name: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// It is built in, and failed.
    #[error("code {}", .0.code)]
    Builtin(#[source] Box<cni::Error>),
    /// The engine itself failed.
    #[error("defect: {0}")]
    Defect(String),
    /// It could not be run.
    #[error("run {}", path.display())]
    Run {
        /// The executable.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It answered with an error.
    #[error("{message} (code {code})")]
    Answer {
        /// CNI's error code.
        code: u64,
        /// Its message with the details.
        message: String,
    },
    /// It failed without saying why.
    #[error("ended with {status}: {output}")]
    Status {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it printed.
        output: String,
    },
    /// Its answer is no JSON.
    #[error("answer is no JSON")]
    NoJson(#[source] serde_json::Error),
}

/// What is the same for all plugins of a chain.
pub(super) struct Call<'a> {
    pub(super) command: &'static str,
    pub(super) id: &'a str,
    pub(super) netns: &'a Path,
    pub(super) args: &'a str,
    pub(super) bin_dirs: &'a [PathBuf],
    /// For the whole chain.
    pub(super) deadline: Instant,
}

impl Call<'_> {
    /// Runs the plugin of a type with its input; the result is null where the
    /// command has none.
    pub(super) async fn run(&self, name: &str, input: Value) -> Result<Value, PluginError> {
        let path = installed(self.bin_dirs, name).ok_or_else(|| PluginError::NotInstalled {
            name: name.to_owned(),
            dirs: self.bin_dirs.to_vec(),
        })?;
        let run = self.execute(&path, input.to_string());
        let patience = self.deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(patience, run).await {
            Ok(output) => {
                let output = output.map_err(|source| PluginError::Run { path, source })?;
                understand(&output)
            }
            Err(_) => Err(PluginError::Timeout(patience)),
        }
    }

    async fn execute(&self, path: &Path, input: String) -> std::io::Result<std::process::Output> {
        let dirs = std::env::join_paths(self.bin_dirs).map_err(std::io::Error::other)?;
        let mut child = Command::new(path)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", self.id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", super::INTERFACE)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", dirs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Past the deadline nobody waits for it any more.
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.as_bytes()).await {
                // A plugin may end without reading; its status says what is wrong.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        child.wait_with_output().await
    }
}

/// Where the plugin of a type is installed.
pub(super) fn installed(dirs: &[PathBuf], name: &str) -> Option<PathBuf> {
    let mut candidates = dirs.iter().map(|dir| dir.join(name));
    candidates.find(|path| path.is_file())
}

fn understand(output: &std::process::Output) -> Result<Value, PluginError> {
    let text = output.stdout.trim_ascii();
    if output.status.success() {
        if text.is_empty() {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(text).map_err(PluginError::NoJson);
    }
    let said: Value = serde_json::from_slice(text).unwrap_or(Value::Null);
    match (said["code"].as_u64(), said["msg"].as_str()) {
        (Some(code), Some(message)) => {
            let details = said["details"].as_str().filter(|text| !text.is_empty());
            let details = details.map(|text| format!("; {text}")).unwrap_or_default();
            Err(PluginError::Answer {
                code,
                message: format!("{message}{details}"),
            })
        }
        _ => {
            let mut output_text = String::from_utf8_lossy(text).into_owned();
            output_text.push_str(&String::from_utf8_lossy(output.stderr.trim_ascii()));
            Err(PluginError::Status {
                status: output.status,
                output: output_text,
            })
        }
    }
}
