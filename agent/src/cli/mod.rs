//! The command line: one file per subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use thiserror::Error;

use crate::discover::{DiscoverError, Target};
use crate::kubernetes::{KubernetesError, Mode, Names};
use crate::measure::MeasureError;
use crate::probe::{Options, ProbeError};
use crate::result_files::WriteError;

mod daemon;
mod doctor;
mod run;

/// Measures what a service mesh costs: per-hop proxy latency, taken in the kernel, as SMP results.
#[derive(Debug, Parser)]
#[command(name = "smp-agent", version, about)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measure while a command runs, or for a given time, then print and write the result.
    Run(run::Args),
    /// Measure all the time and let Prometheus scrape it.
    Daemon(daemon::Args),
    /// Say what this kernel can do and what became of each probe.
    Doctor(doctor::Args),
}

/// How a verb prints what it found.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// What all verbs that load probes take.
#[derive(Clone, Debug, clap::Args)]
struct ProbeArgs {
    /// How many proxies can be followed at the same time [each takes 1.3 MiB of kernel memory].
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_proxies: u32,
    /// Do not use this program although it works, so that its fallback is used; repeatable.
    #[arg(long, value_name = "PROGRAM", value_parser = program_name)]
    without: Vec<String>,
    /// Have all programs return at once, which shows what calling them costs; for `cargo xtask bench`.
    #[arg(long, hide = true)]
    empty: bool,
}

/// What all verbs that measure take.
#[derive(Clone, Debug, clap::Args)]
struct MeasureArgs {
    /// Measure only this proxy: a process id, or the name of an executable; repeatable. Without it all known
    /// proxies are measured: envoy, cilium-envoy, nginx, haproxy, linkerd2-proxy, ztunnel, traefik.
    #[arg(long, value_name = "PID|NAME")]
    proxy: Vec<String>,
    /// CPU time that measuring may cost, in percent of one CPU, programs and agent together. If it costs more for three
    /// seconds, what costs most is not measured any more: softirqs, CPU time or hops. The result says so.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_cpu: Option<f64>,
    /// Name pods, namespaces and owners by asking the API server: auto does so in a pod, on elsewhere too, as kubectl.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Mode::Auto)]
    kubernetes: Mode,
    /// This node's name in the cluster [without it: `NODE_NAME` of the environment, else the host's name].
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    probes: ProbeArgs,
}

/// Why a verb failed. Each kind has an exit code of its own, after sysexits.h.
#[derive(Debug, Error)]
enum CliError {
    #[error(transparent)]
    Measure(#[from] MeasureError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error("hops cannot be measured on this kernel: {0}")]
    Doctor(String),
    #[error("running {command}: {source}; give the command's path, or check its spelling")]
    Command { command: String, source: std::io::Error },
    #[error("listening on {address}: {source}; give another address with --metrics")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("waiting for signals: {0}")]
    Signal(std::io::Error),
    #[error("serving metrics: {0}")]
    Serve(std::io::Error),
    #[error("printing the result: {0}")]
    Print(std::io::Error),
}

impl Cli {
    /// Runs the verb; on an error one line goes to stderr. The exit code is the wrapped command's own where
    /// there is one.
    pub async fn run(self) -> ExitCode {
        let outcome = match self.verb {
            Verb::Run(args) => run::run(args).await,
            Verb::Daemon(args) => daemon::run(args).await,
            Verb::Doctor(args) => doctor::run(&args),
        };
        outcome.unwrap_or_else(|error| {
            eprintln!("smp-agent: {error}");
            ExitCode::from(error.exit_code())
        })
    }
}

impl ProbeArgs {
    fn options(&self) -> Options {
        Options {
            max_proxies: self.max_proxies,
            without: self.without.clone(),
            empty: self.empty,
            max_cores: None,
            load_all: false,
        }
    }
}

impl MeasureArgs {
    fn options(&self) -> Options {
        Options { max_cores: self.max_cpu.map(|percent| percent / 100.0), ..self.probes.options() }
    }

    fn targets(&self) -> Vec<Target> {
        self.proxy.iter().map(|text| Target::parse(text)).collect()
    }

    async fn names(&self) -> Result<Option<Names>, KubernetesError> {
        let given = self.node_name.clone().or_else(|| std::env::var("NODE_NAME").ok());
        // The kubelet calls its node as the host, in small letters, unless it is told another name.
        let host = || rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        Names::start(self.kubernetes, &given.filter(|name| !name.is_empty()).unwrap_or_else(host)).await
    }
}

/// Exit code of bad usage, `EX_USAGE`.
pub const EXIT_USAGE: u8 = 64;
const EX_NOINPUT: u8 = 66;
const EX_UNAVAILABLE: u8 = 69;
const EX_OSERR: u8 = 71;
const EX_CANTCREAT: u8 = 73;
const EX_IOERR: u8 = 74;
const EX_NOPERM: u8 = 77;
const EX_CONFIG: u8 = 78;
/// As shells do.
const COMMAND_NOT_EXECUTABLE: u8 = 126;
const COMMAND_NOT_FOUND: u8 = 127;

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Measure(MeasureError::Discover(DiscoverError::Proc(_)) | MeasureError::Events(_))
            | Self::Signal(_) => EX_OSERR,
            Self::Measure(MeasureError::Discover(_)) => EX_NOINPUT,
            Self::Measure(MeasureError::Probe(ProbeError::Capability { .. })) => EX_NOPERM,
            Self::Measure(MeasureError::Probe(_)) | Self::Doctor(_) => EX_UNAVAILABLE,
            Self::Write(_) => EX_CANTCREAT,
            Self::Kubernetes(_) => EX_CONFIG,
            Self::Command { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                COMMAND_NOT_FOUND
            }
            Self::Command { .. } => COMMAND_NOT_EXECUTABLE,
            Self::Listen { .. } | Self::Serve(_) | Self::Print(_) => EX_IOERR,
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if percent.is_finite() && percent > 0.0 { Ok(percent) } else { Err("must be above 0".to_owned()) }
}

fn program_name(text: &str) -> Result<String, String> {
    let known: Vec<_> = crate::probe::programs::PROGRAMS.iter().map(|program| program.name).collect();
    if known.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("programs are {}", known.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_program_that_is_none_is_refused_with_the_names() {
        let error = program_name("nothing").unwrap_err();
        assert!(error.contains("write_return"), "{error}");
    }
}
