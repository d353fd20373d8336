//! Every message is in one class, whatever the connections do.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::measuring::Measuring;
use bed::netns::{Bed, Family};
use bed::origin::{BODY, Origin};
use bed::process::Child;
use bed::protocol::Protocol;
use bed::proxy::{Proxy, ProxyKind, Spec};
use bed::tools;
use serde_json::Value;

const LONGEST: Duration = Duration::from_mins(1);

/// What ran: the agent's document, and how many requests wrk saw answered.
struct Measured {
    matching: Value,
    hops: Vec<Value>,
    answered: u64,
}

impl Measured {
    fn of(mut document: Value, answered: u64) -> Result<Self> {
        let Value::Array(hops) = document["hops"].take() else { anyhow::bail!("no hops") };
        Ok(Self { matching: document["matching"].take(), hops, answered })
    }

    /// How many crossings went this way.
    fn crossings(&self, direction: &str) -> u64 {
        let mut fitting =
            self.hops.iter().filter(|hop| hop["direction"] == direction && hop["segment"] == "hop");
        fitting.next().map_or(0, |hop| hop["count"].as_u64().expect("a count"))
    }

    fn class(&self, name: &str) -> u64 {
        self.matching[name].as_u64().unwrap_or_else(|| panic!("no {name} in {}", self.matching))
    }

    fn lost(&self) -> u64 {
        self.matching["lost"].as_object().expect("lost").values().filter_map(Value::as_u64).sum()
    }

    /// The classes add up, and crossings and only crossings are in the histograms.
    fn assert_accounted(&self) {
        let classes = ["exact", "ambiguous", "unmatched", "in_flight"].map(|name| self.class(name));
        let sum = classes.iter().sum::<u64>() + self.lost();
        assert_eq!(self.class("seen"), sum, "{}", self.matching);
        let crossings = self.class("exact") + self.class("ambiguous");
        let of = |segment: &str| -> u64 {
            let fitting = self.hops.iter().filter(|hop| hop["segment"] == segment);
            fitting.map(|hop| hop["count"].as_u64().expect("a count")).sum()
        };
        for segment in ["hop", "queue", "proxy"] {
            assert_eq!(of(segment), crossings, "{segment}: {}", self.matching);
        }
    }

    fn assert_nearly_all_matched(&self) {
        let (seen, left) = (self.class("seen") as f64, (self.class("unmatched") + self.lost()) as f64);
        assert!(left <= 0.001 * seen, "more than 0.1 % without a crossing: {}", self.matching);
    }
}

/// Load by wrk through `proxy`, measured with these extra arguments for the agent.
fn measure(name: &str, bed: &Bed, pid: u32, target: &str, load: &[&str], extra: &[&str]) -> Result<Measured> {
    let dir = folder(name);
    let mut agent = Command::new(tools::agent()?);
    agent.args(["run", "--proxy", &pid.to_string()]).args(extra).arg("--out").arg(&dir).arg("--");
    agent.args(bed.client.wrap(tools::wrk()?)).args(["-t1", "-d3s"]).args(load).arg(target);
    let (mut child, mut stdout) = Child::piped("smp-agent", &agent)?;
    let mut said = String::new();
    stdout.read_to_string(&mut said)?;
    let status = child.wait_for(LONGEST)?;
    ensure!(status.success(), "the agent failed ({status}): {said}");
    let answered = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk did not say how many requests: {said}"))?;
    Measured::of(serde_json::from_slice(&fs::read(dir.join("overhead.json"))?)?, answered)
}

/// A proxy between wrk and a server.
fn through(kind: ProxyKind, family: Family, name: &str, load: &[&str], extra: &[&str]) -> Measured {
    let bed = Bed::new().expect("a bed");
    let (listen, server) = (Bed::proxy_address(family), Bed::server_address(family));
    let _origin =
        Origin::start(&bed.server, &[server], &folder(&format!("{name}-origin"))).expect("an origin");
    let dir = folder(&format!("{name}-proxy"));
    let proxy = Proxy::start(&Spec::in_bed(&bed, family, kind, &dir)).expect("a proxy");
    let target = format!("http://{listen}/");
    let measured = measure(name, &bed, proxy.pid(), &target, load, extra).expect("a measurement");
    measured.assert_accounted();
    measured
}

#[test]
fn ten_thousand_connections_that_carry_one_request_each() {
    for kind in ProxyKind::OF_MESHES {
        let name = format!("churn-{kind}");
        let measured = through(kind, Family::V4, &name, &["-c16", "-d6s", "-H", "Connection: close"], &[]);
        assert!(measured.answered >= 10_000, "{kind}: only {} connections", measured.answered);
        // wrk drops what is under way at its end: at most one request on each connection.
        let crossings = measured.class("exact") + measured.class("ambiguous");
        let wanted = 2 * measured.answered;
        assert!(crossings >= wanted - wanted / 1000, "{kind}: {crossings} crossings of {wanted}");
        measured.assert_nearly_all_matched();
    }
}

#[test]
fn many_connections_over_ipv6() {
    for kind in ProxyKind::OF_MESHES {
        let measured = through(kind, Family::V6, &format!("many-{kind}"), &["-c100"], &[]);
        measured.assert_nearly_all_matched();
        assert!(
            measured.class("exact") + measured.class("ambiguous") >= 2 * measured.answered - 200,
            "{kind}"
        );
    }
}

#[test]
fn the_fallback_hooks_measure_too() {
    let each: [&[&str]; 4] = [&["arrival"], &["read"], &["write", "write_entry"], &["departure"]];
    for programs in each {
        let name = format!("fallback-{}", programs.concat());
        let without: Vec<_> = programs.iter().flat_map(|program| ["--without", program]).collect();
        let measured = through(ProxyKind::Nginx, Family::V4, &name, &["-c16"], &without);
        measured.assert_nearly_all_matched();
        let egress = measured.hops.iter().filter(|hop| hop["segment"] == "egress").count();
        // Without the entry of the send there is no telling write from departure: absent, not zero.
        assert_eq!(egress, if programs[0] == "write" { 0 } else { 2 });
    }
}

#[test]
fn a_proxy_that_answers_itself_has_no_crossings() {
    let bed = Bed::new().expect("a bed");
    let address = Bed::proxy_address(Family::V4);
    let server = Origin::start(&bed.proxy, &[address], &folder("local-origin")).expect("a server");
    let target = format!("http://{address}/");
    let measured = measure("local", &bed, server.pid(), &target, &["-c16"], &[]).expect("a measurement");
    measured.assert_accounted();
    assert!(measured.class("local") >= measured.answered, "{}", measured.matching);
    // A client that ends in the middle leaves a request on each of its connections without an answer.
    assert_eq!(measured.class("seen"), measured.class("in_flight"), "{}", measured.matching);
    assert!(measured.class("in_flight") <= 16, "{}", measured.matching);
}

#[test]
fn a_start_in_the_middle_of_traffic_costs_at_most_a_message_a_connection() {
    let bed = Bed::new().expect("a bed");
    let (listen, server) = (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4));
    let _origin = Origin::start(&bed.server, &[server], &folder("middle-origin")).expect("an origin");
    let dir = folder("middle-proxy");
    let proxy = Proxy::start(&Spec::in_bed(&bed, Family::V4, ProxyKind::Envoy, &dir)).expect("a proxy");
    let target = format!("http://{listen}/");
    let mut other = bed.client.command(tools::wrk().unwrap());
    other.args(["-t1", "-c8", "-d10s", &target]);
    let mut other = Child::start("wrk", &other, &folder("middle-wrk")).expect("wrk");
    other
        .until(LONGEST, "connect", |_| {
            let sockets = procfs::process::Process::new(proxy.pid().cast_signed())?.tcp()?;
            let open = sockets.iter().filter(|socket| socket.state == procfs::net::TcpState::Established);
            Ok((open.count() >= 16).then_some(()))
        })
        .expect("traffic");
    let measured = measure("middle", &bed, proxy.pid(), &target, &["-c8"], &[]).expect("a measurement");
    measured.assert_accounted();
    // 8 + 8 connections were there before: each may have begun in the middle of a message, and a message on its way
    // through the proxy at that moment may have been seen on one side only.
    assert!(measured.lost() <= 16, "{}", measured.matching);
    assert!(measured.class("unmatched") <= 8, "{}", measured.matching);
    assert!(measured.class("exact") + measured.class("ambiguous") > 2 * measured.answered);
    // A connection on the wrong side would carry its messages the other way.
    let (requests, responses) = (measured.crossings("request"), measured.crossings("response"));
    assert!(requests.abs_diff(responses) <= 32, "{requests} requests, {responses} responses");
}

#[test]
fn a_connection_that_rests_when_measuring_begins_loses_nothing() {
    const CONNECTIONS: u64 = 8;
    for kind in ProxyKind::ALL {
        let bed = Bed::new().expect("a bed");
        let name = format!("rests-{kind}");
        let (listen, server) = (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4));
        let dir = folder(&format!("{name}-origin"));
        let _origin = Origin::start(&bed.server, &[server], &dir).expect("an origin");
        let dir = folder(&format!("{name}-proxy"));
        let protocol = if kind.speaks(Protocol::H1) { Protocol::H1 } else { Protocol::Tcp };
        let spec = Spec { protocol, ..Spec::in_bed(&bed, Family::V4, kind, &dir) };
        let proxy = Proxy::start(&spec).expect("a proxy");
        let mut clients = bed.client.within(|| connect(listen, CONNECTIONS)).expect("connections");
        ask_all(&mut clients).expect("answers");
        // They rest: nothing comes or goes for some ticks of the kernel's clock.
        thread::sleep(Duration::from_millis(100));
        let measuring = Measuring::start(proxy.pid(), &folder(&name)).expect("the agent");
        ask_all(&mut clients).expect("answers");
        let measured = Measured::of(measuring.finish().expect("a measurement"), CONNECTIONS).expect("hops");
        measured.assert_accounted();
        assert_eq!(measured.lost(), 0, "{kind}: {}", measured.matching);
        if ProxyKind::OF_MESHES.contains(&kind) {
            // Those that hand work from thread to thread are not known for it after so few messages.
            let crossings = (measured.crossings("request"), measured.crossings("response"));
            assert_eq!(crossings, (CONNECTIONS, CONNECTIONS), "{kind}: {}", measured.matching);
            assert_eq!(measured.class("seen"), 2 * CONNECTIONS, "{kind}: {}", measured.matching);
        }
    }
}

fn connect(listen: SocketAddr, count: u64) -> Result<Vec<TcpStream>> {
    let open = || {
        let stream = TcpStream::connect_timeout(&listen, LONGEST)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LONGEST))?;
        Ok(stream)
    };
    (0..count).map(|_| open()).collect()
}

/// A request on each connection, all at a time, and their answers.
fn ask_all(clients: &mut [TcpStream]) -> Result<()> {
    for client in &mut *clients {
        client.write_all(b"GET / HTTP/1.1\r\nHost: bed\r\n\r\n")?;
    }
    for client in &mut *clients {
        let mut answer = Vec::new();
        while !answer.ends_with(BODY.as_bytes()) {
            let mut part = [0; 4096];
            let count = client.read(&mut part)?;
            ensure!(count > 0, "the answer ends early: {}", String::from_utf8_lossy(&answer));
            answer.extend(&part[..count]);
        }
    }
    Ok(())
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("classes").join(name);
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
