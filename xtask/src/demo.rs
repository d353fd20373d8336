//! `cargo xtask demo`: the agent measures a real proxy in front of a real server under load.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bed::process::Child;
use bed::proxy::ProxyKind;
use bed::tools;

use crate::scene::{Scene, WORKERS};
use crate::{cargo, setup};

/// What the agent leaves.
const RESULTS: [&str; 3] = ["overhead.json", "result.yaml", "result.json"];
/// How much longer than the load the agent may take, to attach, drain and write.
const BEYOND_LOAD: Duration = Duration::from_mins(1);

/// What can be chosen.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which proxy: envoy, nginx, haproxy, go, hyper, tokio-tcp, blocking, io-uring or splice
    #[arg(long, default_value = "envoy")]
    proxy: ProxyKind,
    /// How many connections the load generator keeps open
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1000))]
    connections: u32,
    /// How long the load lasts, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

/// The verb.
///
/// # Errors
/// When something cannot be brought, built or started, or the agent fails or leaves no results.
pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure()?;
    let agent = cargo::agent()?;
    let results = tools::workspace().join("target/demo");
    // Results of an earlier demo must not pass for those of this one.
    for file in RESULTS {
        remove(&results.join(file))?;
    }
    let scene = Scene::start(options.proxy, &results.join("log"))?;
    let (proxy, listen, server) = (&scene.proxy, Scene::listen(), Scene::server());
    eprintln!(
        "{} (process {}, {WORKERS} workers) listens on {listen} in front of nginx on {server}; \
         measuring {} s of load over {} connections",
        proxy.kind(),
        proxy.pid(),
        options.seconds,
        options.connections,
    );

    let mut measure = Command::new(agent);
    measure.args(["run", "--proxy"]).arg(proxy.pid().to_string()).arg("--out").arg(&results).arg("--");
    measure.args(scene.bed.client.wrap(tools::wrk()?));
    measure.args([
        "-t2",
        &format!("-c{}", options.connections),
        &format!("-d{}s", options.seconds),
        "--latency",
    ]);
    measure.arg(format!("http://{listen}/"));
    let longest = Duration::from_secs(options.seconds.into()) + BEYOND_LOAD;
    let status = Child::attached("smp-agent", &measure)?.wait_for(longest)?;
    if !status.success() {
        bail!("the agent failed ({status}); see above");
    }
    scene.stop()?;

    println!("results:");
    for file in RESULTS {
        let path = results.join(file);
        let bytes =
            fs::metadata(&path).with_context(|| format!("the agent left no {}", path.display()))?.len();
        if bytes == 0 {
            bail!("{} is empty", path.display());
        }
        println!("  {} ({bytes} bytes)", path.strip_prefix(tools::workspace()).unwrap_or(&path).display());
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
