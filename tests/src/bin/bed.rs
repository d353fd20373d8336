//! The bed's own programs, one process each: what sends, what answers, and what delays.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use bed::protocol::Protocol;
use bed::{backend, burn, delay, load};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Send messages with unique ids and check what comes back; prints one line of JSON at the end.
    Load {
        /// Where to send them.
        #[arg(long, value_name = "IP:PORT")]
        target: SocketAddr,
        /// What to speak.
        #[arg(long, default_value_t = Protocol::H1)]
        protocol: Protocol,
        /// Connections to keep busy.
        #[arg(long, value_name = "N", default_value_t = 16)]
        connections: usize,
        /// Start no request after this long.
        #[arg(long, value_name = "S", value_parser = seconds, default_value = "10")]
        seconds: Duration,
        /// Requests per second over all connections; without it, as fast as the responses come.
        #[arg(long, value_name = "R")]
        rate: Option<f64>,
        /// End after this many requests, if that is sooner.
        #[arg(long, value_name = "N")]
        requests: Option<u64>,
    },
    /// Answer requests with their id; prints `listening IP:PORT` when it does.
    Backend {
        /// Where to listen; port 0 takes a free one.
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// What to speak.
        #[arg(long, default_value_t = Protocol::H1)]
        protocol: Protocol,
    },
    /// Forward TCP and hold each burst for a known time; prints `listening IP:PORT`, then for each connection that
    /// ends one line of JSON with how long its bursts were really held.
    Delayproxy {
        /// Where to listen; port 0 takes a free one.
        #[arg(long, value_name = "IP:PORT")]
        listen: SocketAddr,
        /// Take connections to other hosts' addresses; needs the capability to administer the network.
        #[arg(long)]
        transparent: bool,
        /// Where to forward to.
        #[arg(long, value_name = "IP:PORT")]
        upstream: SocketAddr,
        /// How long to hold each burst towards the server, microseconds.
        #[arg(long, value_name = "US", default_value_t = 0)]
        request_us: u64,
        /// How long to hold each burst towards the client, microseconds.
        #[arg(long, value_name = "US", default_value_t = 0)]
        response_us: u64,
    },
    /// Hold memory, and use CPU time from when a file appears; prints one line of JSON with what the kernel counted, then waits to be stopped.
    Burn {
        /// The file.
        #[arg(long, value_name = "FILE")]
        go: PathBuf,
        /// CPU time to compute, ms.
        #[arg(long, value_name = "MS", default_value_t = 0)]
        user_ms: u64,
        /// CPU time to spend in the kernel, ms.
        #[arg(long, value_name = "MS", default_value_t = 0)]
        system_ms: u64,
        /// CPU time to send to itself over loopback, ms.
        #[arg(long, value_name = "MS", default_value_t = 0)]
        loopback_ms: u64,
        /// Memory to hold, MiB.
        #[arg(long, value_name = "MIB", default_value_t = 0)]
        memory_mib: usize,
        /// Connections to itself to hold.
        #[arg(long, value_name = "N", default_value_t = 0)]
        connections: usize,
        /// Bytes to leave unread on each of them.
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        unread_bytes: usize,
        /// End when it is done.
        #[arg(long)]
        end: bool,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().program {
        Program::Load { target, protocol, connections, seconds, rate, requests } => {
            let plan = load::Plan { target, protocol, connections, duration: seconds, rate, requests };
            let tally = load::run(plan)?;
            say(&serde_json::to_string(&tally)?)
        }
        Program::Backend { listen, protocol } => backend::run(listen, protocol, listening),
        Program::Delayproxy { listen, transparent, upstream, request_us, response_us } => {
            let delays = delay::Delays {
                request: Duration::from_micros(request_us),
                response: Duration::from_micros(response_us),
            };
            delay::run(listen, transparent, upstream, delays, listening, |log| {
                say(&serde_json::to_string(log)?)
            })
        }
        Program::Burn { go, user_ms, system_ms, loopback_ms, memory_mib, connections, unread_bytes, end } => {
            let _holding = burn::Holding::take(memory_mib << 20, connections, unread_bytes)?;
            let [user, system, loopback] = [user_ms, system_ms, loopback_ms].map(Duration::from_millis);
            let spent = burn::run(&go, burn::Plan { user, system, loopback })?;
            say(&serde_json::to_string(&spent)?)?;
            if end {
                return Ok(());
            }
            loop {
                std::thread::park();
            }
        }
    }
}

fn listening(address: SocketAddr) -> Result<()> {
    say(&format!("listening {address}"))
}

/// One line, at once: whoever started the program waits for it.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

fn seconds(text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}
