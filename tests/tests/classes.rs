//! Every message is in one class, whatever the connections do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::netns::{Bed, Family};
use bed::origin::Origin;
use bed::process::Child;
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
    std::io::Read::read_to_string(&mut stdout, &mut said)?;
    let status = child.wait_for(LONGEST)?;
    ensure!(status.success(), "the agent failed ({status}): {said}");
    let answered = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk did not say how many requests: {said}"))?;
    let mut document: Value = serde_json::from_slice(&fs::read(dir.join("overhead.json"))?)?;
    let Value::Array(hops) = document["hops"].take() else { anyhow::bail!("no hops") };
    Ok(Measured { matching: document["matching"].take(), hops, answered })
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
    assert_eq!((measured.class("seen"), measured.class("in_flight")), (0, 0), "{}", measured.matching);
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
    let left = measured.class("unmatched") + measured.lost();
    // 8 + 8 connections there before, each with its first message unseen or half seen on either side.
    assert!(left <= 64, "{}", measured.matching);
    assert!(measured.class("exact") + measured.class("ambiguous") > 2 * measured.answered);
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("classes").join(name);
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
