//! Real proxies with a generated configuration: what they forward is kept alive on both sides, no log of requests.
//!
//! Beside the three that meshes run there are six more ways to make a proxy: Go's standard library, hyper, and the
//! bed's own of [`crate::toy`]. Which protocol each speaks: [`ProxyKind::speaks`].

pub(crate) mod envoy;
mod further;
pub(crate) mod haproxy;
pub mod nginx;
mod own;
mod pair;

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::netns::{self, Bed, Family, Netns, SERVERS};
use crate::process::Child;
use crate::protocol::Protocol;
pub use pair::{Pair, Shown};

/// How long a proxy may take to listen.
const START_LONGEST: Duration = Duration::from_secs(20);
/// No connection is closed for age in a test.
const IDLE_SECONDS: u32 = 3600;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyKind {
    /// Envoy: one process, a thread for each worker.
    Envoy,
    /// nginx: a master, a process for each worker.
    Nginx,
    /// `HAProxy`: a master and one process with a thread for each worker, as its service and its images run it.
    Haproxy,
    /// Go's `net/http/httputil.ReverseProxy`: a goroutine for each connection, so many threads at a time as workers.
    Go,
    /// hyper on tokio's multi-threaded runtime.
    Hyper,
    /// TCP: `copy_bidirectional` on tokio's multi-threaded runtime.
    TokioTcp,
    /// TCP: two threads for each connection, in calls that block; workers do not matter.
    Blocking,
    /// TCP: all I/O through `io_uring`, a ring and a thread for each worker.
    IoUring,
    /// TCP: bytes moved by `splice` on tokio's multi-threaded runtime.
    Splice,
    /// Apache's httpd: a process for each worker, a thread that blocks for each request.
    Apache,
    /// Caddy: a goroutine for each request, so many threads at a time as workers.
    Caddy,
    /// lighttpd: a process for each worker, a connection to the server for each request.
    Lighttpd,
    /// nghttpx: an event loop for each worker.
    Nghttpx,
    /// TCP: a process for each connection.
    Socat,
    /// Varnish, caching nothing: a thread for each request and another one for what is fetched for it.
    Varnish,
}

impl ProxyKind {
    /// All that the truth matrix has.
    pub const ALL: [Self; 9] = [
        Self::Envoy,
        Self::Nginx,
        Self::Haproxy,
        Self::Go,
        Self::Hyper,
        Self::TokioTcp,
        Self::Blocking,
        Self::IoUring,
        Self::Splice,
    ];
    /// The others, which are measured where they are asked for: [`ProxyKind::package`].
    pub const FURTHER: [Self; 6] =
        [Self::Apache, Self::Caddy, Self::Lighttpd, Self::Nghttpx, Self::Socat, Self::Varnish];
    /// Those that meshes run.
    pub const OF_MESHES: [Self; 3] = [Self::Envoy, Self::Nginx, Self::Haproxy];

    /// How it is called here.
    pub fn name(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Go => "go",
            Self::Hyper => "hyper",
            Self::TokioTcp => "tokio-tcp",
            Self::Blocking => "blocking",
            Self::IoUring => "io-uring",
            Self::Splice => "splice",
            Self::Apache => "apache",
            Self::Caddy => "caddy",
            Self::Lighttpd => "lighttpd",
            Self::Nghttpx => "nghttpx",
            Self::Socat => "socat",
            Self::Varnish => "varnish",
        }
    }

    /// The name of its executable.
    pub fn executable(self) -> &'static str {
        match self {
            Self::Apache => "apache2",
            Self::Varnish => "varnishd",
            Self::Go => "goproxy",
            Self::Envoy
            | Self::Nginx
            | Self::Haproxy
            | Self::Caddy
            | Self::Lighttpd
            | Self::Nghttpx
            | Self::Socat => self.name(),
            Self::Hyper | Self::TokioTcp | Self::Blocking | Self::IoUring | Self::Splice => "bedproxy",
        }
    }

    /// Whether its threads hand requests to each other as they come.
    pub fn hands_over(self) -> bool {
        matches!(self, Self::Go | Self::Hyper | Self::Caddy | Self::Varnish)
    }

    /// Debian's package of it, where setup does not bring it.
    pub fn package(self) -> Option<&'static str> {
        further::package(self)
    }

    /// How many connections to its server it opens for so many busy ones of clients, at most: nginx one for each stream.
    pub fn servers_connections(self, protocol: Protocol, connections: u32) -> u32 {
        match (self, protocol) {
            (Self::Nginx, Protocol::Grpc(streams)) => connections * streams,
            _ => connections,
        }
    }

    /// The numbers of workers that differ in how it works.
    pub fn worker_counts(self) -> &'static [u32] {
        match self {
            Self::Envoy => &[1, 2, 4],
            Self::Nginx | Self::Haproxy => &[1, 2],
            Self::Blocking | Self::Socat | Self::Varnish => &[1],
            _ => &[2],
        }
    }

    /// Whether such a proxy can be started for this protocol, or a pair of them where it takes two. A proxy for [`Protocol::Tcp`] carries whatever the
    /// two ends say.
    pub fn speaks(self, protocol: Protocol) -> bool {
        let Some(layer) = Layer::of(protocol) else {
            return matches!(self, Self::Envoy | Self::Haproxy);
        };
        match self {
            Self::Envoy | Self::Haproxy => true,
            // It asks no server whether it is there.
            Self::Nginx if protocol == Protocol::H1Checked => false,
            // It speaks HTTP/2 to servers only for gRPC.
            Self::Nginx => layer != Layer::Http2,
            // None of the others answers or asks for itself, or has several servers.
            _ if matches!(protocol, Protocol::H1Local | Protocol::H1Checked | Protocol::H1Hosts) => false,
            // Debian's Go has HTTP/2 without TLS outside its standard library only.
            Self::Go => layer == Layer::Http1,
            Self::Hyper => layer != Layer::Tcp,
            Self::TokioTcp | Self::Blocking | Self::IoUring | Self::Splice | Self::Socat => {
                layer == Layer::Tcp
            }
            // As they are configured here.
            Self::Apache | Self::Caddy | Self::Lighttpd | Self::Nghttpx | Self::Varnish => {
                layer == Layer::Http1
            }
        }
    }
}

impl fmt::Display for ProxyKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for ProxyKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.into_iter().chain(Self::FURTHER);
        known().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<_> = known().map(Self::name).collect();
            format!("unknown proxy {name:?}, known are {}", names.join(", "))
        })
    }
}

/// What a proxy understands of what it forwards, the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    Tcp,
    Http1,
    Http2,
    /// HTTP/2 with trailers.
    Grpc,
}

impl Layer {
    /// Nothing for what takes more than one proxy.
    fn of(protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::H1
            | Protocol::H1Close
            | Protocol::H1Body(_)
            | Protocol::H1Chunked(_)
            | Protocol::H1Pipelined
            | Protocol::H1Local
            | Protocol::H1Checked
            | Protocol::H1Hosts => Some(Self::Http1),
            Protocol::Tcp | Protocol::TcpServerFirst => Some(Self::Tcp),
            Protocol::H2(_) => Some(Self::Http2),
            Protocol::Grpc(_) => Some(Self::Grpc),
            Protocol::MtlsH1 | Protocol::MtlsH1Close | Protocol::MtlsH2 => None,
        }
    }
}

/// Which proxy is to run, and where.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// Which proxy.
    pub kind: ProxyKind,
    /// Threads or processes that forward; at least 1.
    pub workers: u32,
    /// What client and server speak.
    pub protocol: Protocol,
    /// Where it runs.
    pub netns: &'a Netns,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the server listens.
    pub upstream: SocketAddr,
    /// Where its configuration and log are written; must exist and be its own.
    pub dir: &'a Path,
}

impl<'a> Spec<'a> {
    /// By custom of the bed: two workers and kept HTTP/1.1 between the bed's two addresses.
    pub fn in_bed(bed: &'a Bed, family: Family, kind: ProxyKind, dir: &'a Path) -> Self {
        Self {
            kind,
            workers: 2,
            protocol: Protocol::H1,
            netns: &bed.proxy,
            listen: Bed::proxy_address(family),
            upstream: Bed::server_address(family),
            dir,
        }
    }

    /// The addresses of its servers.
    fn upstreams(&self) -> Vec<SocketAddr> {
        let count = if self.protocol == Protocol::H1Hosts { SERVERS } else { 1 };
        netns::in_a_row(self.upstream, count).collect()
    }

    fn command(&self) -> Result<Command> {
        let Some(layer) = Layer::of(self.protocol).filter(|_| self.kind.speaks(self.protocol)) else {
            bail!("{} does not speak {}", self.kind, self.protocol);
        };
        match self.kind {
            ProxyKind::Envoy => envoy::proxy(self, layer),
            ProxyKind::Nginx => nginx::proxy(self, layer),
            ProxyKind::Haproxy => haproxy::proxy(self, layer),
            ProxyKind::Go => own::go(self),
            ProxyKind::Hyper if layer == Layer::Http1 => own::toy(self, &[]),
            ProxyKind::Hyper => own::toy(self, &["--http2"]),
            ProxyKind::TokioTcp | ProxyKind::Blocking | ProxyKind::IoUring | ProxyKind::Splice => {
                own::toy(self, &[])
            }
            _ => further::proxy(self),
        }
    }
}

/// A running proxy; stopped on drop.
#[derive(Debug)]
pub struct Proxy {
    kind: ProxyKind,
    listen: SocketAddr,
    child: Child,
}

impl Proxy {
    /// Starts a proxy inside a namespace and waits until it listens. Its log is `<name>.log`.
    ///
    /// # Errors
    /// When it does not speak the protocol, is not installed, or ends or hangs before it listens; the message has
    /// the end of its log.
    pub fn start(spec: &Spec<'_>) -> Result<Self> {
        Self::start_as(spec, &spec.command()?)
    }

    fn start_as(spec: &Spec<'_>, command: &Command) -> Result<Self> {
        let mut child = Child::start(spec.kind.name(), command, spec.dir)?;
        child.wait_for_port(spec.listen, START_LONGEST)?;
        Ok(Self { kind: spec.kind, listen: spec.listen, child })
    }

    /// The process a user would name: the master of nginx and `HAProxy`, the only one of the others.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Which proxy it is.
    pub fn kind(&self) -> ProxyKind {
        self.kind
    }

    /// Where it listens.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Stops it and waits until all its processes are gone.
    ///
    /// # Errors
    /// When one of them is still there after SIGKILL.
    pub fn stop(self) -> Result<()> {
        self.child.stop()
    }
}

fn write(path: &Path, contents: &str) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}
