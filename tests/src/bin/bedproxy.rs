//! The bed's own proxies, one for each way to do I/O that the known ones do not have.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use bed::{listener, toy};
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    proxy: Proxy,
}

#[derive(Subcommand)]
enum Proxy {
    /// HTTP/1.1 and HTTP/2 without TLS, on tokio with hyper.
    Hyper {
        #[command(flatten)]
        place: Place,
        /// Speak HTTP/2 to the server.
        #[arg(long)]
        http2: bool,
    },
    /// TCP, on tokio.
    TokioTcp(Place),
    /// TCP, two blocking threads for each connection whatever the number of workers.
    Blocking(Place),
    /// TCP, all of it through `io_uring`.
    IoUring(Place),
    /// TCP, by splice(2).
    Splice(Place),
}

#[derive(Args)]
struct Place {
    /// Where to listen; port 0 takes a free one. A line `listening IP:PORT` says that it does.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Where to forward to.
    #[arg(long, value_name = "IP:PORT")]
    upstream: SocketAddr,
    /// Worker threads.
    #[arg(long, value_name = "N", default_value = "2")]
    workers: NonZero<usize>,
}

impl Place {
    fn listen(&self) -> Result<TcpListener> {
        let listener =
            listener::listen(self.listen).with_context(|| format!("cannot listen on {}", self.listen))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "listening {}", listener.local_addr()?)?;
        out.flush()?;
        Ok(listener)
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().proxy) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(proxy: Proxy) -> Result<()> {
    match proxy {
        Proxy::Hyper { place, http2 } => {
            toy::http::run(place.listen()?, place.upstream, place.workers.get(), http2)
        }
        Proxy::TokioTcp(place) => toy::tcp::run(place.listen()?, place.upstream, place.workers.get()),
        Proxy::Blocking(place) => toy::blocking::run(&place.listen()?, place.upstream),
        Proxy::IoUring(place) => toy::io_uring::run(&place.listen()?, place.upstream, place.workers.get()),
        Proxy::Splice(place) => toy::splice::run(place.listen()?, place.upstream, place.workers.get()),
    }
}
