//! The truth of HTTP/2 and of TLS between two proxies: no message of the load is missing in the packets, and tshark,
//! which decrypts and dissects by itself, finds the same messages at the same times.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::capture::{Capture, Captured, Vantage};
use bed::load::Tally;
use bed::netns::{Bed, Family, Netns, PairBed};
use bed::process::{self, Child};
use bed::protocol::Protocol;
use bed::proxy::{Pair, Proxy, ProxyKind, Spec};
use bed::tools;
use bed::wire::{Carried, Direction, Sides, Wire};

const PROGRAMS: &str = env!("CARGO_BIN_EXE_bed");
const LONGEST: Duration = Duration::from_secs(10);
const REQUESTS: u64 = 2_000;
/// Few enough a second that no message shares a packet with the end of the one before it: tshark gives a message the
/// time of the packet with its end.
const PAIR_REQUESTS: u64 = 400;
const PAIR_RATE: f64 = 400.0;

#[test]
fn every_stream_of_http2_and_grpc_crosses_envoy_in_the_packets() {
    for protocol in [Protocol::H2(1), Protocol::H2(20), Protocol::Grpc(20)] {
        crosses(ProxyKind::Envoy, protocol);
    }
}

#[test]
fn every_stream_of_http2_crosses_haproxy_in_the_packets() {
    crosses(ProxyKind::Haproxy, Protocol::H2(20));
}

#[test]
fn tshark_sees_what_we_see_between_two_envoys() {
    agrees(ProxyKind::Envoy, Protocol::MtlsH1);
    agrees(ProxyKind::Envoy, Protocol::MtlsH2);
}

#[test]
fn tshark_sees_what_we_see_between_two_haproxies() {
    agrees(ProxyKind::Haproxy, Protocol::MtlsH1);
    agrees(ProxyKind::Haproxy, Protocol::MtlsH2);
}

fn crosses(kind: ProxyKind, protocol: Protocol) {
    let dir = folder(&format!("{kind}-{protocol}"));
    let bed = Bed::new().expect("a bed");
    let (listen, upstream) = (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4));
    let _backend = backend(&bed.server, upstream, protocol, &dir).expect("a backend");
    let spec = Spec { protocol, ..Spec::in_bed(&bed, Family::V4, kind, &dir) };
    let _proxy = Proxy::start(&spec).expect("a proxy");
    let capture = Capture::start(Vantage::of(&bed), true, &dir).expect("a capture");
    let arguments = [format!("--requests={REQUESTS}")];
    let tally = load(&bed.client, listen, protocol, &arguments, &dir).expect("a load");
    assert_eq!((tally.requests, tally.errors), (REQUESTS, 0), "{tally:?}");
    let wire = capture.stop().and_then(|captured| captured.read(Wire::new(protocol))).expect("packets");
    whole(&wire, REQUESTS, &format!("{kind}, {protocol}"));
}

/// Every message crossed once and in time.
fn whole(wire: &Wire, requests: u64, what: &str) {
    assert_eq!((wire.repeated, wire.nameless), (0, 0), "{what}");
    for direction in Direction::ALL {
        let latencies = wire.latencies(direction);
        assert_eq!(
            (latencies.count(), latencies.one_sided, latencies.backwards),
            (requests, 0, 0),
            "{what}, {direction:?}"
        );
    }
}

fn agrees(kind: ProxyKind, protocol: Protocol) {
    let dir = folder(&format!("{kind}-{protocol}"));
    let bed = PairBed::new().expect("a bed");
    let family = Family::V6;
    let [listen, between, upstream] =
        [PairBed::client_proxy_address, PairBed::server_proxy_address, PairBed::server_address]
            .map(|address| address(family));
    let _backend = backend(&bed.server, upstream, protocol, &dir).expect("a backend");
    let pair = Pair::start(kind, 2, protocol, &bed, family, &dir).expect("two proxies");
    let capture = |netns, listen_port, upstream_port| {
        Capture::start(Vantage { netns, listen_port, upstream_port }, true, &dir).expect("a capture")
    };
    let client = capture(&bed.client_proxy, listen.port(), between.port());
    let arguments = [format!("--requests={PAIR_REQUESTS}"), format!("--rate={PAIR_RATE}")];
    let tally = load(&bed.client, listen, protocol, &arguments, &dir).expect("a load");
    assert_eq!((tally.requests, tally.errors), (PAIR_REQUESTS, 0), "{tally:?}");
    let client = client.stop().expect("packets");
    let key_log = pair.key_log().to_owned();
    let keys = Rc::new(pair.stop().expect("keys"));

    let inside = if protocol == Protocol::MtlsH2 { Carried::Http2 } else { Carried::Http1 };
    let tls = Carried::Tls(keys, Box::new(inside));
    let wire =
        client.read(Wire::of_sides(Sides { downstream: Carried::Http1, upstream: tls })).expect("messages");
    let what = format!("{kind}, {protocol}");
    whole(&wire, PAIR_REQUESTS, &what);

    let judge = Judge::ask(&client, &key_log, [listen.port(), between.port()], &dir).expect("tshark");
    for direction in Direction::ALL {
        let ours = wire.latencies(direction);
        let theirs = judge.latencies_ns(direction);
        assert_eq!(theirs.len() as u64, PAIR_REQUESTS, "{what}, {direction:?}");
        for (per_mille, place) in [(1, 0), (500, PAIR_REQUESTS / 2 - 1), (1000, PAIR_REQUESTS - 1)] {
            assert_eq!(
                ours.quantile_ns(per_mille),
                Some(theirs[place as usize]),
                "{what}, {direction:?}, {per_mille} per mille"
            );
        }
        let mean_ns = theirs.iter().sum::<u64>() as f64 / theirs.len() as f64;
        assert_eq!(ours.mean_ns(), Some(mean_ns), "{what}, {direction:?}");
    }
}

/// What tshark finds: when each message passed the first port and the second, by direction and id.
#[derive(Default)]
struct Judge {
    times_ns: BTreeMap<(Direction, u64), [Option<u64>; 2]>,
}

impl Judge {
    fn ask(captured: &Captured, key_log: &Path, ports: [u16; 2], dir: &Path) -> Result<Self> {
        // Of the log only what TLS libraries write, one secret a line.
        let log = fs::read_to_string(key_log)?;
        let words: Vec<_> = log.split_whitespace().collect();
        let secrets = words.windows(3).filter(|words| words[0].contains("_TRAFFIC_SECRET"));
        let keys = dir.join("tshark-keys.log");
        fs::write(&keys, secrets.map(|words| words.join(" ") + "\n").collect::<String>())?;

        let mut tshark = Command::new(tools::tshark()?);
        tshark.arg("-n").arg("-r").arg(captured.path());
        tshark.args(["-o", &format!("tls.keylog_file:{}", keys.display())]);
        tshark.args(["-d", &format!("tcp.port=={},http", ports[0])]);
        tshark.args(["-d", &format!("tcp.port=={},tls", ports[1])]);
        tshark.args(["-Y", "http || http2.type == 1", "-T", "fields", "-E", "aggregator=|"]);
        for field in ["frame.time_epoch", "tcp.srcport", "tcp.dstport"] {
            tshark.args(["-e", field]);
        }
        for field in ["http.request.line", "http.response.line", "http2.header.name", "http2.header.value"] {
            tshark.args(["-e", field]);
        }
        let mut judge = Self::default();
        for line in process::output(&mut tshark)?.lines() {
            judge.take(line, ports).with_context(|| format!("tshark says {line:?}"))?;
        }
        Ok(judge)
    }

    fn take(&mut self, line: &str, ports: [u16; 2]) -> Result<()> {
        let fields: Vec<_> = line.split('\t').collect();
        let [time, source, destination, request, response, names, values] = fields[..] else {
            anyhow::bail!("{} fields", fields.len());
        };
        let (seconds, fraction) = time.split_once('.').context("a time without a fraction")?;
        let time_ns = seconds.parse::<u64>()? * 1_000_000_000 + fraction.parse::<u64>()?;
        ensure!(fraction.len() == 9, "a time that is no nanoseconds");
        let (source, destination): (u16, u16) = (source.parse()?, destination.parse()?);
        let place = |port| ports.iter().position(|&known| known == port);
        let (direction, place) = match (place(destination), place(source)) {
            (Some(place), _) => (Direction::Request, place),
            (_, Some(place)) => (Direction::Response, place),
            _ => return Ok(()),
        };
        let plain = [request, response].into_iter().flat_map(|lines| lines.split('|'));
        let plain = plain.filter_map(|line| line.strip_prefix("x-bed-id: "));
        let packed = names.split('|').zip(values.split('|'));
        let packed = packed.filter(|(name, _)| *name == "x-bed-id").map(|(_, value)| value);
        for id in plain.chain(packed) {
            // HTTP/1.1's lines end with what tshark shows as an escape.
            let id = u64::from_str_radix(id.get(..16).context("a short id")?, 16)?;
            self.times_ns.entry((direction, id)).or_default()[place].get_or_insert(time_ns);
        }
        Ok(())
    }

    /// Of the messages that passed both ports, ascending.
    fn latencies_ns(&self, direction: Direction) -> Vec<u64> {
        let crossings = self.times_ns.iter().filter(|((of, _), _)| *of == direction);
        let mut latencies_ns: Vec<_> = crossings
            .filter_map(|(_, times_ns)| match (direction, *times_ns) {
                (Direction::Request, [Some(arrived), Some(left)])
                | (Direction::Response, [Some(left), Some(arrived)]) => left.checked_sub(arrived),
                _ => None,
            })
            .collect();
        latencies_ns.sort_unstable();
        latencies_ns
    }
}

fn backend(netns: &Netns, listen: std::net::SocketAddr, protocol: Protocol, dir: &Path) -> Result<Child> {
    let mut command = netns.command(PROGRAMS);
    command.args(["backend", "--listen", &listen.to_string(), "--protocol", &protocol.to_string()]);
    let mut backend = Child::start("backend", &command, dir)?;
    backend.wait_for_port(listen, LONGEST)?;
    Ok(backend)
}

fn load(
    netns: &Netns,
    target: std::net::SocketAddr,
    protocol: Protocol,
    arguments: &[String],
    dir: &Path,
) -> Result<Tally> {
    let mut command = netns.command(PROGRAMS);
    command.args(["load", "--target", &target.to_string(), "--protocol", &protocol.to_string()]);
    command.args(["--connections=4", "--seconds=8"]).args(arguments);
    let mut load = Child::start("load", &command, dir)?;
    let status = load.wait_for(LONGEST + LONGEST)?;
    ensure!(status.success(), "the load failed{}", load.tail());
    let said = fs::read_to_string(load.log().context("no log")?)?;
    Ok(serde_json::from_str(said.trim())?)
}

/// An empty folder.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("multiplexed").join(name);
    drop(fs::remove_dir_all(&path));
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
