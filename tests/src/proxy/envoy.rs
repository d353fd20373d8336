//! Envoy's configuration. [`listener`] and [`cluster`] take a transport socket of the caller's where there is TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{IDLE_SECONDS, Layer, Spec, write};
use crate::http::{self, CHECK_ID, ID_HEADER, LOCAL_PATH};
use crate::netns::Netns;
use crate::protocol::{Protocol, SMALL_BODY_BYTES};
use crate::tools;

/// The name of the one cluster.
const CLUSTER: &str = "upstream";

/// The command for an Envoy between client and server, without TLS.
pub(super) fn proxy(spec: &Spec<'_>, layer: Layer) -> Result<Command> {
    let mut listener = listener(spec.listen, layer, None);
    let mut cluster = cluster(spec.upstream, layer, None);
    match spec.protocol {
        Protocol::H1Local => answer_locally(&mut listener)?,
        Protocol::H1Checked => cluster["health_checks"] = json!([health_check()]),
        Protocol::H1Hosts => {
            let endpoint = |host| json!({"endpoint": {"address": address(host)}});
            let endpoints: Vec<_> = spec.upstreams().into_iter().map(endpoint).collect();
            cluster["load_assignment"]["endpoints"] = json!([{"lb_endpoints": endpoints}]);
        }
        _ => {}
    }
    command(spec.workers, spec.netns, &listener, &cluster, spec.dir)
}

/// The command for Envoy with one listener and one cluster; its configuration is in `dir`.
pub(crate) fn command(
    workers: u32,
    netns: &Netns,
    listener: &Value,
    cluster: &Value,
    dir: &Path,
) -> Result<Command> {
    let config = json!({"static_resources": {"listeners": [listener], "clusters": [cluster]}});
    let path = dir.join("envoy.json");
    write(&path, &serde_json::to_string_pretty(&config)?)?;
    let mut command = netns.command(tools::envoy()?);
    command.arg("--config-path").arg(path).arg("--concurrency").arg(workers.to_string());
    // Two Envoys of one machine would meet in the shared memory of hot restart.
    command.args(["--disable-hot-restart", "--log-level", "warning"]);
    Ok(command)
}

/// A listener that forwards all it gets to the cluster.
pub(crate) fn listener(listen: SocketAddr, layer: Layer, transport_socket: Option<Value>) -> Value {
    let filter = match layer {
        Layer::Tcp => tcp_filter(),
        Layer::Http1 => http_filter("HTTP1"),
        Layer::Http2 | Layer::Grpc => http_filter("HTTP2"),
    };
    let mut chain = json!({"filters": [filter]});
    if let Some(transport_socket) = transport_socket {
        chain["transport_socket"] = transport_socket;
    }
    json!({"name": "downstream", "address": address(listen), "filter_chains": [chain]})
}

/// The cluster of one server.
pub(crate) fn cluster(upstream: SocketAddr, layer: Layer, transport_socket: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": CLUSTER,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{
            "max_connections": 65536, "max_pending_requests": 65536, "max_requests": 65536,
        }]},
        "load_assignment": {
            "cluster_name": CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}],
        },
    });
    if matches!(layer, Layer::Http2 | Layer::Grpc) {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": typed("upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
    }
    if let Some(transport_socket) = transport_socket {
        cluster["transport_socket"] = transport_socket;
    }
    cluster
}

/// A cluster's options for HTTP/1.1 on connections that are closed after a request each.
pub(crate) fn one_request_a_connection() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": typed("upstreams.http.v3.HttpProtocolOptions"),
            "common_http_protocol_options": {"max_requests_per_connection": 1},
            "explicit_http_config": {"http_protocol_options": {}},
        },
    })
}

/// Makes the proxy answer one path itself.
fn answer_locally(listener: &mut Value) -> Result<()> {
    let routes = "/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes";
    let routes = listener.pointer_mut(routes).and_then(Value::as_array_mut).context("no routes")?;
    let id = format!("%REQ({ID_HEADER})%");
    let route = json!({
        "match": {"path": LOCAL_PATH},
        "direct_response": {"status": 200, "body": {"inline_string": http::filler(SMALL_BODY_BYTES)}},
        "response_headers_to_add": [{"header": {"key": ID_HEADER, "value": id}}],
    });
    routes.insert(0, route);
    Ok(())
}

fn health_check() -> Value {
    json!({
        "timeout": "1s",
        "interval": "0.01s",
        "no_traffic_interval": "0.01s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 1,
        "http_health_check": {
            "path": "/",
            "request_headers_to_add": [
                {"header": {"key": ID_HEADER, "value": format!("{CHECK_ID:x}")}},
            ],
        },
    })
}

fn tcp_filter() -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": typed("filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": "downstream",
            "cluster": CLUSTER,
            "idle_timeout": idle(),
        },
    })
}

fn http_filter(codec: &str) -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "downstream",
            "codec_type": codec,
            "common_http_protocol_options": {"idle_timeout": idle()},
            "stream_idle_timeout": idle(),
            "route_config": {"virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": CLUSTER, "timeout": idle()}}],
            }]},
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": typed("filters.http.router.v3.Router")},
            }],
        },
    })
}

fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// The name of an extension's configuration.
pub(super) fn typed(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{name}")
}

fn idle() -> String {
    format!("{IDLE_SECONDS}s")
}
