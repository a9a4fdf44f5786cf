//! The command line.

mod bench;
mod check;
mod client;
mod image;
mod log;
mod serve;
mod status;
mod trace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Places};

/// A CRI container engine for Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "slipway", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the engine in the foreground.
    Serve(ServeArgs),
    /// Prove that this node fits, or say what is missing.
    Check(CheckArgs),
    /// Work with images while the engine is stopped.
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Measure this and other CRI engines side by side; --help tells how.
    #[command(disable_help_flag = true)]
    Bench {
        /// What `slipway-bench` understands.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Say whether a running engine and its pods are as they should be.
    Status(status::StatusArgs),
    /// Show where the time of a pod's last calls went.
    Trace(trace::TraceArgs),
    /// Print or check configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// Where everything is.
#[derive(Debug, Args)]
struct PlaceArgs {
    /// Folder of images, records and writable layers.
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_ROOT)]
    root: PathBuf,
    /// Folder of sockets and of what ends with the boot.
    #[arg(long, value_name = "DIR", default_value = config::DEFAULT_STATE)]
    state: PathBuf,
    /// The CRI socket [default: STATE/slipway.sock].
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    /// Configuration file [default: /etc/slipway/slipway.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of drop-ins `*.toml`, merged in name order [default: /etc/slipway].
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
}

impl PlaceArgs {
    fn places(self) -> Places {
        let Self {
            root,
            state,
            listen,
            config,
            config_dir,
        } = self;
        Places {
            root,
            state,
            listen,
            file: config,
            dir: config_dir,
        }
    }
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value_t = log::Format::Text)]
    log_format: log::Format,
    /// What is logged: a level, or filters such as `info,engine::pod=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_level: String,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// Print a JSON list instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Bring in an OCI layout folder, an OCI archive or a `docker save` archive.
    Import {
        #[command(flatten)]
        places: PlaceArgs,
        /// The folder or archive.
        path: PathBuf,
        /// Name of the image, if the archive says none or another.
        #[arg(long, value_name = "REFERENCE")]
        name: Option<String>,
        /// Print a JSON list of ids.
        #[arg(long)]
        json: bool,
    },
    /// List the images of a root.
    List {
        #[command(flatten)]
        places: PlaceArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a file with all defaults.
    Default,
    /// Check the configuration without starting anything.
    Validate {
        #[command(flatten)]
        places: PlaceArgs,
        /// Print the settings in effect as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Reads the command line and runs the command.
pub(crate) fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let result = match command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => return check::run(args),
        Command::Image { command } => image::run(command),
        Command::Trace(args) => trace::run(args),
        Command::Status(args) => match status::run(args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Bench { args } => Err(bench::run(&args)),
        Command::Config { command } => run_config(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slipway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints; that nobody reads on is an error and no panic.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(out.flush()?)
}

fn run_config(command: ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Default => print!("{}", config::default_text()),
        ConfigCommand::Validate { places, json } => {
            let config = config::load(&places.places())?;
            if json {
                println!("{}", serde_json::to_string_pretty(&config)?);
            } else {
                println!("the configuration is valid");
            }
        }
    }
    Ok(())
}
