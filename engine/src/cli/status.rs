//! `slipway status`: whether a running engine and its pods are as they should be.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use proto::v1;
use serde::{Deserialize, Serialize};

use super::client::{self, SocketArgs};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What the engine says of itself.
#[derive(Debug, Serialize)]
struct Report {
    conditions: Vec<Condition>,
    troubles: Vec<Trouble>,
}

#[derive(Debug, Serialize)]
struct Condition {
    name: String,
    ready: bool,
    message: String,
}

/// How the engine answers it.
#[derive(Debug, Deserialize)]
struct Troubles {
    pods: Vec<Trouble>,
}

/// A pod that is not as it should be.
#[derive(Debug, Serialize, Deserialize)]
struct Trouble {
    /// The id of the sandbox.
    pod: String,
    namespace: String,
    name: String,
    reason: String,
}

impl Report {
    fn is_well(&self) -> bool {
        self.troubles.is_empty() && self.conditions.iter().all(|one| one.ready)
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        for condition in &self.conditions {
            let word = if condition.ready { "yes" } else { "no" };
            let space = if condition.message.is_empty() {
                ""
            } else {
                ": "
            };
            lines.push(format!(
                "{} {word}{space}{}",
                condition.name, condition.message
            ));
        }
        for trouble in &self.troubles {
            let Trouble {
                pod,
                namespace,
                name,
                reason,
            } = trouble;
            let short = pod.get(..13).unwrap_or(pod);
            lines.push(format!("pod {namespace}/{name} ({short}): {reason}"));
        }
        if self.troubles.is_empty() {
            lines.push("every pod is as it should be".to_owned());
        }
        lines.join("\n")
    }
}

/// Asks and prints; the exit code is 1 where something is not as it should be.
pub(super) fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let StatusArgs { socket, json } = args;
    let report = client::block_on(ask(&socket.path()))?;
    let text = match json {
        true => serde_json::to_string_pretty(&report)?,
        false => report.text(),
    };
    super::print(&text)?;
    Ok(match report.is_well() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn ask(socket: &Path) -> anyhow::Result<Report> {
    let mut client = client::connect(socket).await?;
    let request = v1::StatusRequest { verbose: true };
    let answer = client.status(request).await.context("Status")?.into_inner();
    let Some(troubles) = answer.info.get("troubles") else {
        bail!("the engine at {} tells no troubles", socket.display());
    };
    let Troubles { pods } = serde_json::from_str(troubles).context("the engine's troubles")?;
    let conditions = answer.status.unwrap_or_default().conditions.into_iter();
    Ok(Report {
        troubles: pods,
        conditions: conditions
            .map(|condition| Condition {
                name: condition.r#type,
                ready: condition.status,
                message: condition.message,
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_is_not_as_it_should_be() {
        let condition = |ready| Condition {
            name: "NetworkReady".to_owned(),
            ready,
            message: if ready { "" } else { "no plugin" }.to_owned(),
        };
        let mut report = Report {
            conditions: vec![condition(true)],
            troubles: Vec::new(),
        };
        assert!(report.is_well());
        assert_eq!(
            report.text(),
            "NetworkReady yes\nevery pod is as it should be"
        );
        report.troubles.push(Trouble {
            pod: "0123456789abcdef".to_owned(),
            namespace: "n".to_owned(),
            name: "p".to_owned(),
            reason: "it is not stopped yet".to_owned(),
        });
        assert!(!report.is_well());
        assert!(
            report
                .text()
                .ends_with("pod n/p (0123456789abc): it is not stopped yet")
        );
        report.troubles.clear();
        report.conditions.push(condition(false));
        assert!(!report.is_well());
        assert!(report.text().contains("NetworkReady no: no plugin"));
    }
}
