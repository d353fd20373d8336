//! Real proxies with a generated configuration: HTTP/1.1 kept alive on both sides, no log of requests.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::netns::Netns;
use crate::process::Child;
use crate::tools;

/// How long a proxy may take to listen.
const START_LONGEST: Duration = Duration::from_secs(20);
/// No connection is closed for age in a test.
const IDLE_SECONDS: u32 = 3600;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// Envoy: one process, a thread for each worker.
    Envoy,
    /// nginx: a master, a process for each worker.
    Nginx,
    /// `HAProxy`: a master and one process with a thread for each worker, as its service and its images run it.
    Haproxy,
}

impl ProxyKind {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::Envoy, Self::Nginx, Self::Haproxy];

    /// The name of its executable.
    pub fn name(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
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
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            format!("unknown proxy {name:?}, known are {}", Self::ALL.map(Self::name).join(", "))
        })
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
    /// Starts a proxy inside a namespace and waits until it listens.
    ///
    /// Its configuration and log (`<name>.log`) are written to `dir`, which must exist and be its own.
    ///
    /// # Errors
    /// When it is not installed, or ends or hangs before it listens; the message has the end of its log.
    pub fn start(
        kind: ProxyKind,
        workers: u32,
        netns: &Netns,
        listen: SocketAddr,
        upstream: SocketAddr,
        dir: &Path,
    ) -> Result<Self> {
        let command = match kind {
            ProxyKind::Envoy => envoy(workers, netns, listen, upstream, dir),
            ProxyKind::Nginx => nginx(workers, netns, listen, upstream, dir),
            ProxyKind::Haproxy => haproxy(workers, netns, listen, upstream, dir),
        }?;
        let mut child = Child::start(kind.name(), &command, dir)?;
        child.wait_for_port(listen, START_LONGEST)?;
        Ok(Self { kind, listen, child })
    }

    /// The process a user would name: the master of nginx and `HAProxy`, the only one of Envoy.
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

fn envoy(
    workers: u32,
    netns: &Netns,
    listen: SocketAddr,
    upstream: SocketAddr,
    dir: &Path,
) -> Result<Command> {
    let socket_address = |address: SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let idle = format!("{IDLE_SECONDS}s");
    let http = json!({
        "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "downstream",
        "common_http_protocol_options": {"idle_timeout": idle},
        "stream_idle_timeout": idle,
        "route_config": {"virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": idle}}],
        }]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": typed("filters.http.router.v3.Router")},
        }],
    });
    let config = json!({"static_resources": {
        "listeners": [{
            "name": "downstream",
            "address": socket_address(listen),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": http,
            }]}],
        }],
        "clusters": [{
            "name": "upstream",
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{
                "max_connections": 65536, "max_pending_requests": 65536, "max_requests": 65536,
            }]},
            "load_assignment": {
                "cluster_name": "upstream",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(upstream)}}]}],
            },
        }],
    }});
    let path = dir.join("envoy.json");
    write(&path, &serde_json::to_string_pretty(&config)?)?;
    let mut command = netns.command(tools::envoy()?);
    command.arg("--config-path").arg(path).arg("--concurrency").arg(workers.to_string());
    // Two Envoys of one machine would meet in the shared memory of hot restart.
    command.args(["--disable-hot-restart", "--log-level", "warning"]);
    Ok(command)
}

fn nginx(
    workers: u32,
    netns: &Netns,
    listen: SocketAddr,
    upstream: SocketAddr,
    dir: &Path,
) -> Result<Command> {
    let http = format!(
        "upstream backend {{
        server {upstream};
        keepalive 128;
        keepalive_requests 1000000000;
        keepalive_timeout {IDLE_SECONDS}s;
    }}
    server {{
        listen {listen};
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}"
    );
    nginx_command(workers, netns, &http, dir)
}

/// The command for nginx with these directives inside its `http` block; configuration and state are in `dir`.
pub(crate) fn nginx_command(workers: u32, netns: &Netns, http: &str, dir: &Path) -> Result<Command> {
    let state = dir.display();
    let config = format!(
        "daemon off;
# The workers keep root: another user may not be allowed into this folder.
user root;
worker_processes {workers};
pid \"{state}/nginx.pid\";
error_log stderr warn;
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
    client_body_temp_path \"{state}/client_body\";
    proxy_temp_path \"{state}/proxy\";
    fastcgi_temp_path \"{state}/fastcgi\";
    uwsgi_temp_path \"{state}/uwsgi\";
    scgi_temp_path \"{state}/scgi\";
    keepalive_requests 1000000000;
    keepalive_timeout {IDLE_SECONDS}s;
    {http}
}}
"
    );
    let path = dir.join("nginx.conf");
    write(&path, &config)?;
    let mut command = netns.command(tools::nginx()?);
    command.args(["-e", "stderr", "-p"]).arg(dir).arg("-c").arg(path);
    Ok(command)
}

fn haproxy(
    workers: u32,
    netns: &Netns,
    listen: SocketAddr,
    upstream: SocketAddr,
    dir: &Path,
) -> Result<Command> {
    let config = format!(
        "global
    nbthread {workers}
    maxconn 4096
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client {IDLE_SECONDS}s
    timeout server {IDLE_SECONDS}s
    timeout http-keep-alive {IDLE_SECONDS}s
frontend downstream
    bind {listen}
    default_backend upstream
backend upstream
    server upstream {upstream}
"
    );
    let path = dir.join("haproxy.cfg");
    write(&path, &config)?;
    let mut command = netns.command(tools::haproxy()?);
    command.args(["-W", "-db", "-f"]).arg(path);
    Ok(command)
}

fn write(path: &Path, contents: &str) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}
