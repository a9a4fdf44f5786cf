//! Exec, attach and port-forward: how soon a terminal says something, how much passes
//! by the second, and what a session costs that is silent.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use proto::v1;

use super::Progress;
use super::contestant::{Contestant, Pod};
use super::figures::{Row, Samples, Section, Unit};
use super::machine::proportional;
use crate::session::{STDOUT, Session};

/// What every engine speaks.
const PROTOCOL: &str = "v4.channel.k8s.io";
/// Terminals whose first byte is timed.
const TERMINALS: usize = 20;
/// Sessions that are silent.
const SILENT: i32 = 50;
/// The port at which a pod pours bytes out.
const PORT: i32 = 9999;

struct Figures {
    first: Vec<Duration>,
    exec: f64,
    attach: f64,
    forward: f64,
    silent: f64,
}

/// Measures one contestant after the other, each way of bytes for so long.
///
/// # Errors
/// A call failed, or a session ended early.
pub async fn measure(
    contestants: &[Contestant],
    time: Duration,
    progress: &Progress,
) -> anyhow::Result<Section> {
    let mut all = Vec::new();
    for one in contestants {
        progress.say(format!("streams: {}", one.name));
        all.push(of(one, time).await.with_context(|| one.name.clone())?);
    }
    let rate = |name: &str, of: fn(&Figures) -> f64| {
        let samples = all.iter().map(|figures| Samples::one(of(figures)));
        Row::new(name, Unit::MebibytesPerSecond, samples.collect())
    };
    let first = all.iter().map(|one| Samples::milliseconds(&one.first));
    let silent = all.iter().map(|one| Samples::one(one.silent));
    Ok(Section {
        mode: "streams",
        what: format!(
            "Over WebSocket: {TERMINALS} times Exec of /bin/echo in a terminal, from the call to \
             the first byte; then what passes in {} s of yes, by Exec, by Attach to a container \
             that runs it, and by PortForward; then {SILENT} commands with input that say \
             nothing, and what the engine's process has of memory for each.",
            time.as_secs()
        ),
        rows: vec![
            Row::new("terminal: first byte", Unit::Milliseconds, first.collect()),
            rate("exec", |one| one.exec),
            rate("attach", |one| one.attach),
            rate("port-forward", |one| one.forward),
            Row::new(
                "engine, per silent session",
                Unit::Kibibytes,
                silent.collect(),
            ),
        ],
    })
}

async fn of(one: &Contestant, time: Duration) -> anyhow::Result<Figures> {
    let pours = format!("nc -ll -p {PORT} -e /bin/yes & exec sleep 100000");
    let quiet = pod(one, &["/bin/sh", "-c", &pours]).await?;
    let mut first = Vec::new();
    for _ in 0..TERMINALS {
        first.push(first_byte(one, &quiet).await?);
    }
    let exec = {
        let url = exec_url(one, command(&quiet, &["/bin/yes"], false)).await?;
        pass(&url, time).await.context("exec")?
    };
    let forward = {
        let url = forward_url(one, &quiet).await?;
        pass(&url, time).await.context("port-forward")?
    };
    let silent = silent(one, &quiet).await?;
    one.remove(&quiet.id).await?;
    let loud = pod(one, &["/bin/yes"]).await?;
    let attach = {
        let url = attach_url(one, &loud).await?;
        pass(&url, time).await.context("attach")?
    };
    one.remove(&loud.id).await?;
    Ok(Figures {
        first,
        exec,
        attach,
        forward,
        silent,
    })
}

/// A pod whose container may use as much of the processors as there is.
async fn pod(one: &Contestant, words: &[&str]) -> anyhow::Result<Pod> {
    let mut client = one.client.clone();
    let sandbox = one.sandbox(false);
    let mut config = one.container("main", words, &sandbox);
    let linux = config.linux.as_mut();
    if let Some(resources) = linux.and_then(|linux| linux.resources.as_mut()) {
        resources.cpu_quota = 0;
        resources.cpu_period = 0;
    }
    let id = one.run_pod(&sandbox).await.context("RunPodSandbox")?;
    let container = client.create(&id, &config, &sandbox).await?;
    client.start(&container).await?;
    Ok(Pod {
        id,
        container,
        sandbox,
    })
}

fn command(pod: &Pod, words: &[&str], terminal: bool) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: pod.container.clone(),
        cmd: words.iter().map(|&word| word.to_owned()).collect(),
        tty: terminal,
        stdin: true,
        stdout: true,
        stderr: !terminal,
    }
}

async fn exec_url(one: &Contestant, request: v1::ExecRequest) -> anyhow::Result<String> {
    let mut runtime = one.client.runtime.clone();
    let answer = runtime.exec(request).await.context("Exec")?;
    Ok(answer.into_inner().url)
}

async fn attach_url(one: &Contestant, pod: &Pod) -> anyhow::Result<String> {
    let request = v1::AttachRequest {
        container_id: pod.container.clone(),
        stdin: false,
        tty: false,
        stdout: true,
        stderr: true,
    };
    let mut runtime = one.client.runtime.clone();
    let answer = runtime.attach(request).await.context("Attach")?;
    Ok(answer.into_inner().url)
}

async fn forward_url(one: &Contestant, pod: &Pod) -> anyhow::Result<String> {
    let request = v1::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![PORT],
    };
    let mut runtime = one.client.runtime.clone();
    let answer = runtime.port_forward(request).await.context("PortForward")?;
    // Without SPDY inside it, WebSocket has the ports in the query.
    Ok(format!("{}?port={PORT}", answer.into_inner().url))
}

async fn first_byte(one: &Contestant, pod: &Pod) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let url = exec_url(one, command(pod, &["/bin/echo", "x"], true)).await?;
    let mut session = Session::begin(&url, PROTOCOL).await?;
    while let Some((channel, bytes)) = session.next().await? {
        if channel == STDOUT && !bytes.is_empty() {
            return Ok(began.elapsed());
        }
    }
    anyhow::bail!("a terminal ended and said nothing")
}

/// What comes in so long, in MiB by the second. Of a port the data has another number
/// than a command's output.
async fn pass(url: &str, time: Duration) -> anyhow::Result<f64> {
    let mut session = Session::begin(url, PROTOCOL).await?;
    let mut began = None;
    let mut bytes = 0;
    loop {
        let piece = tokio::time::timeout(time + Duration::from_secs(10), session.next());
        let (_, piece) = piece.await??.context("the session ended")?;
        let began = *began.get_or_insert_with(Instant::now);
        bytes += piece.len();
        let took = began.elapsed();
        if took >= time {
            ensure!(bytes > 1000, "{bytes} bytes have come");
            let mebibytes = f64::from(u32::try_from(bytes / 1024)?) / 1024.0;
            return Ok(mebibytes / took.as_secs_f64());
        }
    }
}

/// KiB of the engine's process for each session that says nothing.
async fn silent(one: &Contestant, pod: &Pod) -> anyhow::Result<f64> {
    let memory = || one.daemon.and_then(proportional).unwrap_or(0);
    let before = memory();
    let mut sessions = Vec::new();
    for _ in 0..SILENT {
        let words = ["/bin/sh", "-c", "echo there; exec cat"];
        let url = exec_url(one, command(pod, &words, false)).await?;
        let mut session = Session::begin(&url, PROTOCOL).await?;
        while let Some((channel, bytes)) = session.next().await? {
            if channel == STDOUT && !bytes.is_empty() {
                break;
            }
        }
        sessions.push(session);
    }
    let more = i32::try_from(memory() - before)?;
    Ok(f64::from(more) / f64::from(SILENT))
}
