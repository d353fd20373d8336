//! nginx's configuration, as a proxy and as a server.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{IDLE_SECONDS, Layer, Spec, write};
use crate::http::{self, ID_HEADER};
use crate::netns::Netns;
use crate::protocol::{Protocol, SMALL_BODY_BYTES};
use crate::tools;

/// Where the body of a request is kept if nothing is said, bytes.
const BODY_BUFFER_BYTES: usize = 16 * 1024;
/// HTTP/2 streams at a time on a connection if nothing is said.
const STREAMS: u32 = 128;

/// The command for an nginx between client and server, without TLS.
pub(super) fn proxy(spec: &Spec<'_>, layer: Layer) -> Result<Command> {
    let block = match layer {
        Layer::Tcp => stream(&tcp_server(spec)),
        Layer::Http1 => http(&http_server(spec), spec.dir),
        Layer::Http2 | Layer::Grpc => http(&grpc_server(spec), spec.dir),
    };
    command(spec.workers, spec.netns, &block, spec.dir)
}

/// The command for nginx with this [`http`] or [`stream`] block; configuration and state are in `dir`.
///
/// # Errors
/// When the configuration cannot be written, or nginx is not there.
pub fn command(workers: u32, netns: &Netns, block: &str, dir: &Path) -> Result<Command> {
    let state = dir.display();
    let config = format!(
        "daemon off;
# The workers keep root: another user may not be allowed into this folder.
user root;
worker_processes {workers};
pid \"{state}/nginx.pid\";
error_log stderr warn;
{block}
events {{
    worker_connections 65536;
}}
"
    );
    let path = dir.join("nginx.conf");
    write(&path, &config)?;
    let mut command = netns.command(tools::nginx()?);
    command.args(["-e", "stderr", "-p"]).arg(dir).arg("-c").arg(path);
    Ok(command)
}

/// The block of all that is HTTP; state is in `dir`.
pub fn http(directives: &str, dir: &Path) -> String {
    let state = dir.display();
    format!(
        "http {{
    access_log off;
    client_body_temp_path \"{state}/client_body\";
    proxy_temp_path \"{state}/proxy\";
    fastcgi_temp_path \"{state}/fastcgi\";
    uwsgi_temp_path \"{state}/uwsgi\";
    scgi_temp_path \"{state}/scgi\";
    keepalive_requests 1000000000;
    keepalive_timeout {IDLE_SECONDS}s;
    {directives}
}}"
    )
}

/// The block of all that is TCP.
fn stream(directives: &str) -> String {
    // Before every other block: later is too late.
    format!("load_module {};\nstream {{\n    {directives}\n}}", tools::NGINX_STREAM_MODULE)
}

fn tcp_server(spec: &Spec<'_>) -> String {
    let Spec { listen, upstream, .. } = spec;
    format!(
        "server {{
        listen {listen};
        proxy_pass {upstream};
        proxy_connect_timeout 5s;
        proxy_timeout {IDLE_SECONDS}s;
    }}"
    )
}

fn http_server(spec: &Spec<'_>) -> String {
    // Requests and responses are buffered, as they are where nobody says otherwise: a request is passed on when it is
    // there whole, a response as the client takes it. Only files are kept out of it: the buffer of a request holds its
    // largest body, and its chunks' framing too, and a response waits for a slow client in the server's socket.
    let body = match spec.protocol {
        Protocol::H1Body(bytes) | Protocol::H1Chunked(bytes) => (2 * bytes).max(BODY_BUFFER_BYTES),
        _ => BODY_BUFFER_BYTES,
    };
    let local = http::LOCAL_PATH;
    let id_variable = ID_HEADER.replace('-', "_");
    let own_body = http::filler(SMALL_BODY_BYTES);
    format!(
        "{}
    server {{
        listen {};
        client_max_body_size 0;
        client_body_buffer_size {body};
        location = {local} {{
            add_header {ID_HEADER} $http_{id_variable};
            return 200 \"{own_body}\";
        }}
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_max_temp_file_size 0;
        }}
    }}",
        pool(spec),
        spec.listen
    )
}

fn grpc_server(spec: &Spec<'_>) -> String {
    let streams = match spec.protocol {
        Protocol::Grpc(streams) => streams.max(STREAMS),
        _ => STREAMS,
    };
    format!(
        "{}
    server {{
        listen {} http2;
        http2_max_concurrent_streams {streams};
        location / {{
            grpc_pass grpc://backend;
        }}
    }}",
        pool(spec),
        spec.listen
    )
}

/// The server, with more kept connections than a test has requests under way.
fn pool(spec: &Spec<'_>) -> String {
    let servers: Vec<_> = spec.upstreams().iter().map(|host| format!("server {host};")).collect();
    format!(
        "upstream backend {{
        {}
        keepalive 32768;
        keepalive_requests 1000000000;
        keepalive_timeout {IDLE_SECONDS}s;
    }}",
        servers.join("\n        ")
    )
}
