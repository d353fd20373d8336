//! Proxies of Debian's that no mesh runs, each with a way of its own to share out its work; their configurations.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{IDLE_SECONDS, ProxyKind, Spec, write};
use crate::tools;

/// Threads that can each have a request under way: what Apache allows if nothing is said.
const THREADS: u32 = 400;

/// The command for one of them.
pub(super) fn proxy(spec: &Spec<'_>) -> Result<Command> {
    match spec.kind {
        ProxyKind::Apache => apache(spec),
        ProxyKind::Caddy => caddy(spec),
        ProxyKind::Lighttpd => lighttpd(spec),
        ProxyKind::Nghttpx => nghttpx(spec),
        ProxyKind::Varnish => varnish(spec),
        _ => socat(spec),
    }
}

fn configured(spec: &Spec<'_>, program: &str, file: &str, config: &str) -> Result<(Command, PathBuf)> {
    let path = spec.dir.join(file);
    write(&path, config)?;
    Ok((spec.netns.command(tools::further(program)?), path))
}

/// A process for each worker, in it a thread for each request: it waits for the server in a call that blocks.
fn apache(spec: &Spec<'_>) -> Result<Command> {
    let Spec { workers, listen, upstream, dir, .. } = spec;
    let dir = dir.display();
    let modules: String = ["mpm_event", "authz_core", "proxy", "proxy_http"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let each = THREADS / workers;
    let config = format!(
        "ServerRoot {dir}
DefaultRuntimeDir {dir}
PidFile {dir}/apache.pid
ErrorLog /dev/stderr
LogLevel warn
ServerName bed
{modules}
User www-data
Group www-data
Listen {listen}
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout {IDLE_SECONDS}
StartServers {workers}
ServerLimit {workers}
ThreadLimit {each}
ThreadsPerChild {each}
MaxRequestWorkers {THREADS}
MinSpareThreads 1
MaxSpareThreads {THREADS}
ProxyPass / http://{upstream}/ keepalive=On
"
    );
    let (mut command, path) = configured(spec, "/usr/sbin/apache2", "apache.conf", &config)?;
    command.args(["-DFOREGROUND", "-f"]).arg(path);
    Ok(command)
}

/// Go's, with a proxy of its own rather than the library's.
fn caddy(spec: &Spec<'_>) -> Result<Command> {
    let Spec { workers, listen, upstream, dir, .. } = spec;
    let config = format!(
        "{{
    admin off
    auto_https off
}}
http://:{} {{
    bind {}
    reverse_proxy {upstream}
}}
",
        listen.port(),
        listen.ip()
    );
    let (mut command, path) = configured(spec, "/usr/bin/caddy", "Caddyfile", &config)?;
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(path);
    command.env("GOMAXPROCS", workers.to_string()).env("HOME", dir);
    Ok(command)
}

/// A connection to the server for each request, those of clients kept.
fn lighttpd(spec: &Spec<'_>) -> Result<Command> {
    let Spec { workers, listen, upstream, dir, .. } = spec;
    let config = format!(
        "server.modules = (\"mod_proxy\")
server.document-root = \"{}\"
server.bind = \"{}\"
server.port = {}
server.max-keep-alive-requests = 100000000
server.max-keep-alive-idle = {IDLE_SECONDS}
server.max-fds = 16384
server.max-worker = {workers}
proxy.server = (\"\" => ((\"host\" => \"{}\", \"port\" => {})))
",
        dir.display(),
        listen.ip(),
        listen.port(),
        upstream.ip(),
        upstream.port()
    );
    let (mut command, path) = configured(spec, "/usr/sbin/lighttpd", "lighttpd.conf", &config)?;
    command.arg("-D").arg("-f").arg(path);
    Ok(command)
}

/// An event loop to a worker's thread.
fn nghttpx(spec: &Spec<'_>) -> Result<Command> {
    let Spec { workers, listen, upstream, .. } = spec;
    let place = |address: &SocketAddr| format!("{},{}", address.ip(), address.port());
    let (mut command, path) = configured(spec, "/usr/sbin/nghttpx", "nghttpx.conf", "")?;
    command.arg(format!("--conf={}", path.display()));
    command.arg(format!("--frontend={};no-tls", place(listen))).arg(format!("--backend={}", place(upstream)));
    command.arg(format!("--workers={workers}")).args(["--no-ocsp", "--accesslog-file=/dev/null"]);
    Ok(command)
}

/// A thread for each request, and another for what is fetched for it.
fn varnish(spec: &Spec<'_>) -> Result<Command> {
    let Spec { listen, upstream, dir, .. } = spec;
    let config = format!(
        "vcl 4.1;
backend default {{ .host = \"{}\"; .port = \"{}\"; }}
sub vcl_recv {{ return (pass); }}
",
        upstream.ip(),
        upstream.port()
    );
    let (mut command, path) = configured(spec, "/usr/sbin/varnishd", "varnish.vcl", &config)?;
    command.args(["-F", "-j", "none", "-a", &listen.to_string(), "-f"]).arg(path);
    command.arg("-n").arg(dir.join("varnish")).args(["-s", "malloc,64m", "-p"]);
    command.arg(format!("thread_pool_max={}", 2 * THREADS)).args(["-p", "thread_pool_min=100"]);
    command.arg("-p").arg(format!("timeout_idle={IDLE_SECONDS}"));
    Ok(command)
}

/// A process for each connection.
fn socat(spec: &Spec<'_>) -> Result<Command> {
    let Spec { listen, upstream, .. } = spec;
    let mut command = spec.netns.command(tools::further("/usr/bin/socat")?);
    let bind =
        format!("TCP-LISTEN:{},bind={},fork,reuseaddr,nodelay,backlog=1024", listen.port(), listen.ip());
    command.arg(bind).arg(format!("TCP:{upstream},nodelay"));
    Ok(command)
}

/// Debian's package of one of them; `None` of those that setup brings.
pub(super) fn package(kind: ProxyKind) -> Option<&'static str> {
    match kind {
        ProxyKind::Apache => Some("apache2-bin"),
        ProxyKind::Caddy => Some("caddy"),
        ProxyKind::Lighttpd => Some("lighttpd"),
        ProxyKind::Nghttpx => Some("nghttp2-proxy"),
        ProxyKind::Socat => Some("socat"),
        ProxyKind::Varnish => Some("varnish"),
        _ => None,
    }
}
