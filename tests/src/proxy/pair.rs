//! Two proxies as sidecars are: plain HTTP/1.1 towards client and server, mutual TLS 1.3 between the two.
//!
//! The proxy of the server logs the secrets of its TLS connections, which are those of the client's proxy too. Envoy
//! has an option for that. `HAProxy` keeps them for its log format, and its log is theirs: one line with the first
//! request of each connection, nothing for the others. It goes two ways, since a thread that finds the other one writing
//! leaves its line out: one in some thousand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{Layer, Proxy, ProxyKind, Spec, envoy, haproxy};
use crate::certificates::{Certificates, Identity};
use crate::netns::{Family, PairBed};
use crate::protocol::Protocol;
use crate::wire::KeyLog;

/// Who shows a certificate to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Both, as in a mesh.
    Both,
    /// The proxy of the server alone.
    Server,
}

/// Both proxies of a pair, running; stopped on drop.
#[derive(Debug)]
pub struct Pair {
    /// The one that the client speaks to.
    pub client: Proxy,
    /// The one that speaks to the server.
    pub server: Proxy,
    key_log: PathBuf,
}

impl Pair {
    /// Starts two proxies of a kind inside their namespaces, that of the server first, and waits until they listen.
    /// Configurations, certificates and logs are in folders of their own in `dir`, which must exist.
    ///
    /// # Errors
    /// When such a pair does not speak the protocol, or as [`Proxy::start`].
    pub fn start(
        kind: ProxyKind,
        workers: u32,
        protocol: Protocol,
        bed: &PairBed,
        family: Family,
        dir: &Path,
    ) -> Result<Self> {
        Self::start_showing(Shown::Both, kind, workers, protocol, (bed, family), dir)
    }

    /// As [`Pair::start`], with certificates of whom it says.
    ///
    /// # Errors
    /// As there.
    pub fn start_showing(
        shown: Shown,
        kind: ProxyKind,
        workers: u32,
        protocol: Protocol,
        (bed, family): (&PairBed, Family),
        dir: &Path,
    ) -> Result<Self> {
        let between = match protocol {
            Protocol::MtlsH1 | Protocol::MtlsH1Close => Layer::Http1,
            Protocol::MtlsH2 => Layer::Http2,
            _ => bail!("{protocol} takes one proxy, not a pair"),
        };
        let folder = |name: &str| {
            let folder = dir.join(name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
            anyhow::Ok(folder)
        };
        let certificates = Certificates::make(&folder("certificates")?)?;
        let (client_dir, server_dir) = (folder("client-proxy")?, folder("server-proxy")?);
        let client = Spec {
            kind,
            workers,
            protocol,
            netns: &bed.client_proxy,
            listen: PairBed::client_proxy_address(family),
            upstream: PairBed::server_proxy_address(family),
            dir: &client_dir,
        };
        let server = Spec {
            netns: &bed.server_proxy,
            listen: PairBed::server_proxy_address(family),
            upstream: PairBed::server_address(family),
            dir: &server_dir,
            ..client
        };
        let (commands, key_log) = match kind {
            ProxyKind::Envoy => {
                let key_log = server_dir.join("keys.log");
                (envoy_commands(&client, &server, (between, shown), &certificates, &key_log)?, key_log)
            }
            ProxyKind::Haproxy => (
                haproxy_commands(&client, &server, (between, shown), &certificates)?,
                server_dir.join(format!("{kind}.log")),
            ),
            _ => bail!("there is no pair of {kind}"),
        };
        let [client_command, server_command] = commands;
        let server = Proxy::start_as(&server, &server_command)?;
        let client = Proxy::start_as(&client, &client_command)?;
        Ok(Self { client, server, key_log })
    }

    /// The file in which the server's proxy logs the secrets of its connections.
    pub fn key_log(&self) -> &Path {
        &self.key_log
    }

    /// Stops both and returns the secrets of the connections between them.
    ///
    /// # Errors
    /// When a process is still there after SIGKILL, or the log cannot be read.
    pub fn stop(self) -> Result<KeyLog> {
        self.client.stop()?;
        self.server.stop()?;
        // Whole only now: Envoy writes the last of it when it ends.
        let log = fs::read_to_string(&self.key_log)
            .with_context(|| format!("cannot read {}", self.key_log.display()))?;
        KeyLog::read(&log).with_context(|| format!("{} is no key log", self.key_log.display()))
    }
}

/// What the two ends agree to speak inside TLS (ALPN).
fn inside(between: Layer) -> &'static str {
    if between == Layer::Http1 { "http/1.1" } else { "h2" }
}

fn envoy_commands(
    client: &Spec<'_>,
    server: &Spec<'_>,
    (between, shown): (Layer, Shown),
    certificates: &Certificates,
    key_log: &Path,
) -> Result<[Command; 2]> {
    let socket = |kind: &str, mut context: Value| {
        context["@type"] = envoy::typed(&format!("transport_sockets.tls.v3.{kind}")).into();
        Some(json!({"name": "envoy.transport_sockets.tls", "typed_config": context}))
    };
    let mut client_context = envoy_context(between, &certificates.client, &certificates.server, certificates);
    let mut server_context = envoy_context(between, &certificates.server, &certificates.client, certificates);
    server_context["key_log"] = json!({"path": key_log});
    if shown == Shown::Server {
        client_context["tls_certificates"] = json!([]);
        server_context["validation_context"] = Value::Null;
    }
    let upstream = socket("UpstreamTlsContext", json!({"common_tls_context": client_context}));
    let downstream = socket(
        "DownstreamTlsContext",
        json!({"require_client_certificate": shown == Shown::Both, "common_tls_context": server_context}),
    );
    let mut between_cluster = envoy::cluster(client.upstream, between, upstream);
    if client.protocol == Protocol::MtlsH1Close {
        between_cluster["typed_extension_protocol_options"] = envoy::one_request_a_connection();
    }
    let command = |spec: &Spec<'_>, listener: &Value, cluster: &Value| {
        envoy::command(spec.workers, spec.netns, listener, cluster, spec.dir)
    };
    Ok([
        command(client, &envoy::listener(client.listen, Layer::Http1, None), &between_cluster)?,
        command(
            server,
            &envoy::listener(server.listen, between, downstream),
            &envoy::cluster(server.upstream, Layer::Http1, None),
        )?,
    ])
}

/// Who this end is, and who the other must be.
fn envoy_context(between: Layer, own: &Identity, other: &Identity, certificates: &Certificates) -> Value {
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": [inside(between)],
        "tls_certificates": [{
            "certificate_chain": {"filename": own.certificate},
            "private_key": {"filename": own.key},
        }],
        "validation_context": {
            "trusted_ca": {"filename": certificates.authority},
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": other.name}}],
        },
    })
}

fn haproxy_commands(
    client: &Spec<'_>,
    server: &Spec<'_>,
    (between, shown): (Layer, Shown),
    certificates: &Certificates,
) -> Result<[Command; 2]> {
    let words = |shows: Option<&Identity>, verifies: bool| {
        let certificate = shows.map(|own| format!("crt {}", own.bundle.display())).unwrap_or_default();
        let authority = certificates.authority.display();
        let verify = if verifies { format!("verify required ca-file {authority}") } else { String::new() };
        format!("ssl alpn {} ssl-min-ver TLSv1.3 {certificate} {verify}", inside(between))
    };
    let both = shown == Shown::Both;
    let client_words = words(both.then_some(&certificates.client), true);
    let server_words = format!("{client_words} verifyhost {}", certificates.server.name);
    let secrets: Vec<_> = [
        ("CLIENT_HANDSHAKE_TRAFFIC_SECRET", "ssl_fc_client_handshake_traffic_secret"),
        ("SERVER_HANDSHAKE_TRAFFIC_SECRET", "ssl_fc_server_handshake_traffic_secret"),
        ("CLIENT_TRAFFIC_SECRET_0", "ssl_fc_client_traffic_secret_0"),
        ("SERVER_TRAFFIC_SECRET_0", "ssl_fc_server_traffic_secret_0"),
    ]
    .map(|(label, secret)| format!("{label} %[ssl_fc_client_random,hex] %[{secret}]"))
    .into();
    // After each response the connection to the server is closed, that to the client kept.
    let closing = if client.protocol == Protocol::MtlsH1Close { "option http-server-close" } else { "" };
    let plain = haproxy::Config {
        mode: "http",
        bind: "",
        server: "",
        streams: haproxy::STREAMS,
        global: "",
        frontend: "",
        backend: "",
    };
    Ok([
        haproxy::command(client, &haproxy::Config { server: &server_words, frontend: closing, ..plain })?,
        haproxy::command(
            server,
            &haproxy::Config {
                bind: &words(Some(&certificates.server), both),
                global: "tune.ssl.keylog on\n    log stdout len 4096 format raw local0\n    log stderr len 4096 format raw local0",
                frontend: &format!(
                    "log global
    log-format \"{}\"
    http-request set-log-level silent if {{ var(sess.logged) -m found }}
    http-request set-var(sess.logged) bool(true)",
                    secrets.join(" ")
                ),
                ..plain
            },
        )?,
    ])
}
