//! `slipway trace`: asks a running engine for the steps of a pod's last calls and
//! draws them as a waterfall, in the terminal and as SVG.

mod draw;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use proto::v1;
use serde::Deserialize;

use super::client::{self, SocketArgs};

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// The sandbox, by its id or the beginning of it.
    pod: String,
    #[command(flatten)]
    socket: SocketArgs,
    /// Also write the waterfall as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print what the engine answers, as JSON.
    #[arg(long)]
    json: bool,
}

/// A call, as the engine tells it; times in nanoseconds.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    rpc: String,
    took: u64,
    code: i32,
    container: Option<String>,
    steps: Vec<Step>,
}

/// A step; times are since the call's beginning.
#[derive(Debug, Deserialize)]
struct Step {
    name: String,
    place: String,
    start: u64,
    end: u64,
    parent: Option<usize>,
}

impl Call {
    /// The call's name and how it ended.
    fn title(&self) -> String {
        let container = self.container.as_deref().unwrap_or_default();
        let container = container.get(..12).unwrap_or(container);
        let code = match self.code {
            0 => String::new(),
            code => format!(", failed with code {code}"),
        };
        let space = if container.is_empty() { "" } else { " " };
        format!(
            "{}{space}{container}: {}{code}",
            self.rpc,
            draw::milliseconds(self.took)
        )
    }

    /// The steps as they are shown: by their beginning, parts behind what they are
    /// a part of. The number says how deep a step is.
    fn lines(&self) -> Vec<(usize, &Step)> {
        let mut lines = Vec::new();
        self.add_lines(None, 0, &mut lines);
        lines
    }

    fn add_lines<'a>(
        &'a self,
        parent: Option<usize>,
        depth: usize,
        lines: &mut Vec<(usize, &'a Step)>,
    ) {
        let of = |(_, step): &(usize, &Step)| step.parent == parent;
        let mut parts: Vec<_> = self.steps.iter().enumerate().filter(of).collect();
        parts.sort_by_key(|(_, step)| (step.start, u64::MAX - step.end));
        for (index, step) in parts {
            lines.push((depth, step));
            // A part comes later in the list than its whole: this ends.
            if parent.is_none_or(|parent| index > parent) {
                self.add_lines(Some(index), depth + 1, lines);
            }
        }
    }
}

/// Asks and draws.
pub(super) fn run(args: TraceArgs) -> anyhow::Result<()> {
    let TraceArgs {
        pod,
        socket,
        svg,
        json,
    } = args;
    let told = client::block_on(ask(&socket.path(), pod))?;
    let calls = Vec::<Call>::deserialize(&told).context("the engine's steps")?;
    if let Some(path) = svg {
        std::fs::write(&path, draw::svg(&calls))
            .with_context(|| format!("write {}", path.display()))?;
    }
    let out = match json {
        true => told.to_string(),
        false => draw::terminal(&calls),
    };
    super::print(&out)
}

/// The steps of a pod's last calls, as the engine has them.
async fn ask(socket: &Path, pod: String) -> anyhow::Result<serde_json::Value> {
    let mut client = client::connect(socket).await?;
    let request = v1::PodSandboxStatusRequest {
        pod_sandbox_id: pod,
        verbose: true,
    };
    let answer = client.pod_sandbox_status(request).await;
    let mut info = answer.context("PodSandboxStatus")?.into_inner().info;
    let Some(steps) = info.remove("steps") else {
        bail!("the engine at {} tells no steps", socket.display());
    };
    let mut steps: serde_json::Value =
        serde_json::from_str(&steps).context("the engine's steps")?;
    Ok(steps["calls"].take())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn call() -> Call {
        let text = r#"{"rpc": "RunPodSandbox", "beganAt": 1, "took": 10000000, "code": 0, "container": null, "steps": [
            {"name": "late", "place": "engine", "start": 5000000, "end": 9000000, "parent": null},
            {"name": "monitor: setup", "place": "engine", "start": 1000000, "end": 4000000, "parent": null},
            {"name": "join cgroups", "place": "monitor", "start": 2000000, "end": 3000000, "parent": 1}]}"#;
        serde_json::from_str(text).expect("a call")
    }

    #[test]
    fn parts_follow_what_they_are_a_part_of_by_their_beginning() {
        let call = call();
        let lines: Vec<_> = call
            .lines()
            .into_iter()
            .map(|(depth, step)| (depth, step.name.as_str()))
            .collect();
        assert_eq!(
            lines,
            [(0, "monitor: setup"), (1, "join cgroups"), (0, "late")]
        );
    }

    #[test]
    fn a_failed_call_says_so_in_its_title() {
        let mut call = call();
        assert_eq!(call.title(), "RunPodSandbox: 10.00 ms");
        call.code = 5;
        call.container = Some("0123456789abcdef".to_owned());
        assert_eq!(
            call.title(),
            "RunPodSandbox 0123456789ab: 10.00 ms, failed with code 5"
        );
    }
}
