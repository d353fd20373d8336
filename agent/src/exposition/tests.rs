use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::document::tests::{pod, window};
use crate::identity::Mesh;
use crate::window::{Opened, SelfUse, UnixConnections, Window};

fn snapshot() -> Arc<Snapshot> {
    let Window { mut proxies, programs, beside, usage, .. } = window();
    proxies[0].proxy.pod = Some(pod());
    proxies[0].proxy.identity.mesh = Some(Mesh::Istio);
    proxies[0].cost.opened = Opened { plain: 3, tls: 2, mutual_tls: 16 };
    proxies[1].unix = UnixConnections { downstream: 1, upstream: 16 };
    let at = Timestamp::from_second(1_800_000_000).unwrap();
    Arc::new(Snapshot {
        at,
        proxies,
        programs,
        beside,
        usage,
        pods: None,
        processes: None,
        self_use: SelfUse { cpu_ns: 1_500_000_000, rss_bytes: 4_096, map_bytes: 8_192 },
    })
}

fn samples<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.starts_with(start)).collect()
}

#[test]
fn before_the_first_drain_only_the_build() {
    let (_sender, latest) = watch::channel(None);
    let text = render(&latest).unwrap();
    assert_eq!(
        samples(&text, "smp_"),
        [format!("smp_agent_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))]
    );
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn values_of_a_snapshot() {
    let (_sender, latest) = watch::channel(Some(snapshot()));
    let text = render(&latest).unwrap();
    assert_eq!(text, render(&latest).unwrap(), "a scrape resets nothing");
    for want in [
        r#"smp_proxy_info{proxy="envoy",pid="4242",namespace="shop",pod="cart-5d9f-abcde",container="istio-proxy",owner_kind="Deployment",owner="cart",container_id="",mesh="ISTIO",role=""} 1"#,
        r#"smp_proxy_info{proxy="nginx",pid="77",namespace="",pod="",container="",owner_kind="",owner="",container_id="",mesh="",role=""} 1"#,
        r#"smp_hop_latency_seconds_count{proxy="envoy",pid="4242",direction="request",segment="hop"} 1000"#,
        r#"smp_hop_latency_seconds_sum{proxy="envoy",pid="4242",direction="request",segment="hop"} 0.5005"#,
        r#"smp_messages_seen_total{proxy="envoy",pid="4242"} 1004"#,
        r#"smp_messages_total{proxy="envoy",pid="4242",class="lost"} 2"#,
        r#"smp_messages_lost_total{proxy="envoy",pid="4242",reason="set_full"} 2"#,
        r#"smp_messages_local_total{proxy="envoy",pid="4242"} 7"#,
        r#"smp_messages_in_flight{proxy="envoy",pid="4242"} 1"#,
        r#"smp_unix_connections{proxy="nginx",pid="77",side="upstream"} 16"#,
        r#"smp_proxy_opened_connections_total{proxy="envoy",pid="4242",kind="plain"} 3"#,
        r#"smp_proxy_opened_connections_total{proxy="envoy",pid="4242",kind="tls"} 2"#,
        r#"smp_proxy_opened_connections_total{proxy="envoy",pid="4242",kind="mutual_tls"} 16"#,
        r#"smp_proxy_opened_connections_total{proxy="nginx",pid="77",kind="plain"} 0"#,
        r#"smp_bpf_program_verdict{program="arrival",hook="sock_recv_length",verdict="unsupported"} 1"#,
        r#"smp_bpf_program_run_seconds_total{program="read",hook="sock_recv_length"} 0.0018"#,
        r#"smp_bpf_program_runs_total{program="read",hook="sock_recv_length"} 18000"#,
        r#"smp_bpf_program_missed_total{program="read",hook="sock_recv_length"} 0"#,
        "smp_agent_cpu_seconds_total 1.5",
        "smp_agent_resident_memory_bytes 4096",
        "smp_agent_snapshot_timestamp_seconds 1800000000.0",
    ] {
        assert!(text.lines().any(|line| line == want), "{want} in\n{text}");
    }
}

#[test]
fn buckets_are_cumulative_and_end_in_the_count() {
    let (_sender, latest) = watch::channel(Some(snapshot()));
    let text = render(&latest).unwrap();
    let buckets: Vec<u64> = text
        .lines()
        .filter(|line| line.starts_with("smp_hop_latency_seconds_bucket{") && line.contains("\"envoy\""))
        .filter(|line| line.contains("\"request\"") && line.contains("\"hop\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    // 1 to 1,000 us in steps of 1 us; the bucket of a bound reaches at most 0.79 % beyond it.
    for (got, want) in buckets.iter().zip([10, 20, 50, 100, 200, 500, 1_000, 1_000]) {
        assert!(*got >= want && *got <= want + want / 100, "{got} for {want}");
    }
    assert_eq!((buckets.len(), buckets.last()), (20, Some(&1_000)));
}

async fn answer(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn life_of_the_server() {
    let (sender, latest) = watch::channel(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, latest, async { stopped.await.unwrap_or_default() }));

    assert!(answer(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(answer(address, "/readyz").await.starts_with("HTTP/1.1 503"));
    sender.send_replace(Some(snapshot()));
    assert!(answer(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = answer(address, "/metrics").await;
    assert!(metrics.contains(&format!("content-type: {CONTENT_TYPE}\r\n")), "{metrics}");
    assert!(metrics.contains("smp_messages_seen_total"));
    assert!(answer(address, "/other").await.starts_with("HTTP/1.1 404"));
    drop(sender);
    assert!(answer(address, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(answer(address, "/metrics").await.contains("smp_messages_seen_total"));

    // A request that never ends does not hold the server up for longer than its grace.
    let mut stuck = TcpStream::connect(address).await.unwrap();
    stuck.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    drop(stop);
    tokio::time::timeout(STOP_GRACE * 5, server).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
