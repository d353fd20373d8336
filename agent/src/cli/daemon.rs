//! `smp-agent daemon`: the same measurement all the time, for Prometheus.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use super::{CliError, MeasureArgs};
use crate::exposition;
use crate::measure::Measurement;
use crate::signal::Signals;

/// How often what is followed is looked after: new processes, memory, what measuring costs.
const TICK: Duration = Duration::from_secs(1);
/// How long open scrapes may take to end.
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    measure: MeasureArgs,
    /// Where to serve /metrics, /healthz and /readyz.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    metrics: SocketAddr,
    /// How often the kernel's counters are read, in seconds: what is scraped is up to this old.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    drain: u64,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let mut signals = Signals::new().map_err(CliError::Signal)?;
    let address = args.metrics;
    let listener = TcpListener::bind(address).await.map_err(|source| CliError::Listen { address, source })?;
    let address = listener.local_addr().map_err(|source| CliError::Listen { address, source })?;
    let (latest, scrapes) = watch::channel(None);
    let (stop, stopped) = oneshot::channel::<()>();
    // It serves "not ready" while the probes are being loaded.
    let mut server = tokio::spawn(exposition::serve(listener, scrapes, async {
        let _stop_or_gone = stopped.await;
    }));

    let names = args.measure.names().await?;
    let mut measurement = Measurement::start(&args.measure.options(), args.measure.targets(), names)?;
    let (count, plural) = match measurement.proxies().len() {
        1 => (1, "y"),
        count => (count, "ies"),
    };
    info!("measuring {count} prox{plural}; metrics on http://{address}/metrics");
    let [mut ticks, mut drains] = [TICK, Duration::from_secs(args.drain)].map(|period| {
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    });
    loop {
        tokio::select! {
            // In this order: what has begun is in the first drain after it.
            biased;
            _ = ticks.tick() => measurement.tick()?,
            _ = drains.tick() => {
                latest.send_replace(Some(Arc::new(measurement.snapshot()?)));
            }
            news = measurement.next_news() => news?,
            signal = signals.next() => {
                info!("{signal:?}: last drain, then detach");
                break;
            }
            ended = &mut server => {
                // A server that ends by itself ends the agent.
                ended.map_err(|error| CliError::Serve(error.into()))?.map_err(CliError::Serve)?;
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    let (closed, _names) = measurement.finish()?;
    latest.send_replace(Some(Arc::new(closed)));
    let _already_stopped = stop.send(());
    if let Ok(ended) = tokio::time::timeout(STOP_GRACE, server).await {
        ended.map_err(|error| CliError::Serve(error.into()))?.map_err(CliError::Serve)?;
    }
    Ok(ExitCode::SUCCESS)
}
