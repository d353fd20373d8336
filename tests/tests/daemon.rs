//! The daemon measures all the time, is scraped while it does, and ends in good order.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bed::netns::{Bed, Family};
use bed::origin::Origin;
use bed::process::Child;
use bed::proxy::{Proxy, ProxyKind, Spec};
use bed::{python, tools};

const LONGEST: Duration = Duration::from_secs(20);

/// Status line and body.
fn get(address: SocketAddr, path: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&address, LONGEST)?;
    stream.set_read_timeout(Some(LONGEST))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the header")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

/// Sum of all samples of a series whose labels contain all of these.
fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let fits = |line: &&str| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    };
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    text.lines().filter(fits).filter_map(value).sum()
}

#[test]
fn a_live_daemon_is_scraped_and_counts_every_message() {
    let bed = Bed::new().expect("a bed");
    let (listen, server) = (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4));
    let _origin = Origin::start(&bed.server, &[server], &folder("origin")).expect("an origin");
    let dir = folder("proxy");
    let spec = Spec::in_bed(&bed, Family::V4, ProxyKind::Nginx, &dir);
    let proxy = Proxy::start(&spec).expect("a proxy");
    let address = free_address();
    let mut agent = Command::new(tools::agent().expect("the agent"));
    agent.args(["daemon", "--proxy", &proxy.pid().to_string(), "--metrics", &address.to_string()]);
    let mut agent = Child::start("daemon", &agent, &folder("daemon")).expect("the daemon");
    agent.wait_for_port(address, LONGEST).expect("it listens");
    agent
        .until(LONGEST, "be ready", |_| Ok(get(address, "/readyz")?.0.contains(" 200 ").then_some(())))
        .expect("ready");

    let mut load = bed.client.command(tools::wrk().expect("wrk"));
    load.args(["-t1", "-c8", "-d2s", &format!("http://{listen}/")]);
    let said = bed::process::output(&mut load).expect("load");
    let answered: f64 = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .expect("wrk says how many requests");
    // The next drain after the load has all of it.
    let text = agent
        .until(LONGEST, "drain", |_| {
            let text = get(address, "/metrics")?.1;
            let crossed = sum(&text, "smp_hop_latency_seconds_count", &["segment=\"hop\""]);
            Ok((crossed >= 2.0 * answered).then_some(text))
        })
        .expect("all messages in the metrics");

    let file = folder("scrape").join("metrics.txt");
    fs::write(&file, &text).expect("the folder of cargo is writable");
    let parsed = python::judge("parse_openmetrics.py", [file.as_os_str()]);
    assert!(parsed.is_ok(), "{parsed:?}");
    let seen = sum(&text, "smp_messages_seen_total", &[]);
    let classes = sum(&text, "smp_messages_total", &[]) + sum(&text, "smp_messages_in_flight", &[]);
    assert!((seen - classes).abs() < 0.5, "{seen} seen, {classes} in classes");
    assert!(sum(&text, "smp_bpf_program_runs_total", &["program=\"read\""]) > 2.0 * answered);
    assert_eq!(get(address, "/healthz").expect("an answer").0, "HTTP/1.1 200 OK");

    let pid = rustix::process::Pid::from_raw(agent.pid().cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
    let status = agent.wait_for(LONGEST).expect("it ends");
    assert!(status.success(), "{status}{}", agent.tail());
}

#[test]
fn a_proxy_that_begins_later_is_followed_with_its_workers() {
    let bed = Bed::new().expect("a bed");
    let (listen, server) = (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4));
    let address = free_address();
    let mut agent = Command::new(tools::agent().expect("the agent"));
    agent.args(["daemon", "--metrics", &address.to_string()]);
    let mut agent = Child::start("daemon", &agent, &folder("later-daemon")).expect("the daemon");
    agent.wait_for_port(address, LONGEST).expect("it listens");
    agent
        .until(LONGEST, "be ready", |_| Ok(get(address, "/readyz")?.0.contains(" 200 ").then_some(())))
        .expect("ready");

    let _origin = Origin::start(&bed.server, &[server], &folder("later-origin")).expect("an origin");
    let dir = folder("later-proxy");
    let spec = Spec::in_bed(&bed, Family::V4, ProxyKind::Nginx, &dir);
    let proxy = Proxy::start(&spec).expect("a proxy");
    let pid = format!("pid=\"{}\"", proxy.pid());
    agent
        .until(LONGEST, "follow the proxy", |_| Ok(get(address, "/metrics")?.1.contains(&pid).then_some(())))
        .expect("followed");
    let mut load = bed.client.command(tools::wrk().expect("wrk"));
    load.args(["-t1", "-c8", "-d2s", &format!("http://{listen}/")]);
    bed::process::output(&mut load).expect("load");
    agent
        .until(LONGEST, "measure its hops", |_| {
            let text = get(address, "/metrics")?.1;
            let crossed = sum(&text, "smp_hop_latency_seconds_count", &[&pid, "segment=\"hop\""]);
            Ok((crossed > 1000.0).then_some(()))
        })
        .expect("crossings");
}

/// A port that was free a moment ago.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("daemon").join(name);
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
