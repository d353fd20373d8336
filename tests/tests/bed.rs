//! The bed itself: every proxy answers through it, and nothing of it is left behind.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::netns::{Bed, Family, Netns};
use bed::origin::{BODY, Origin};
use bed::process::{self, Child};
use bed::protocol::Protocol;
use bed::proxy::{Proxy, ProxyKind, Spec};
use procfs::net::TcpState;
use procfs::process::Process;

/// More than the 1000 requests after which nginx closes a connection by default.
const REQUESTS: u32 = 1100;
const LONGEST: Duration = Duration::from_secs(5);

#[test]
fn envoy_answers_and_leaves_nothing() {
    answers_and_leaves_nothing(ProxyKind::Envoy);
}

#[test]
fn nginx_answers_and_leaves_nothing() {
    answers_and_leaves_nothing(ProxyKind::Nginx);
}

#[test]
fn haproxy_answers_and_leaves_nothing() {
    answers_and_leaves_nothing(ProxyKind::Haproxy);
}

#[test]
fn go_answers_and_leaves_nothing() {
    answers_and_leaves_nothing(ProxyKind::Go);
}

#[test]
fn hyper_answers_and_leaves_nothing() {
    answers_and_leaves_nothing(ProxyKind::Hyper);
}

#[test]
fn proxies_for_tcp_answer_and_leave_nothing() {
    for kind in [ProxyKind::TokioTcp, ProxyKind::Blocking, ProxyKind::IoUring, ProxyKind::Splice] {
        answers_and_leaves_nothing(kind);
    }
}

fn answers_and_leaves_nothing(kind: ProxyKind) {
    for family in [Family::V4, Family::V6] {
        let bed = Bed::new().expect("a bed");
        let namespaces = [&bed.client, &bed.proxy, &bed.server].map(Netns::path);
        let server = Bed::server_address(family);
        let origin = Origin::start(&bed.server, &[server], &folder("origin")).expect("an origin");
        let dir = folder(kind.name());
        let spec = Spec { protocol: plain(kind), ..Spec::in_bed(&bed, family, kind, &dir) };
        let proxy = Proxy::start(&spec).expect("a proxy");
        let groups = [origin.pid(), proxy.pid()];
        assert!(groups.iter().all(|group| !members(*group).is_empty()));
        assert_eq!(program(proxy.pid()), kind.executable());

        // Open until the sockets are counted: a proxy for TCP keeps none that its client has closed.
        let client = bed.client.within(|| ask(proxy.listen())).expect("answers");

        let sockets = Process::new(proxy.pid().cast_signed())
            .and_then(|proxy| if family == Family::V4 { proxy.tcp() } else { proxy.tcp6() })
            .expect("the sockets of its namespace");
        let upstream: Vec<_> = sockets.iter().filter(|socket| socket.remote_address == server).collect();
        assert!(upstream.len() <= 2, "connections to the server are not kept alive: {upstream:?}");
        assert!(upstream.iter().any(|socket| socket.state == TcpState::Established), "{upstream:?}");

        drop((client, proxy, origin, bed));
        for group in groups {
            assert!(members(group).is_empty(), "{kind}: processes of group {group} are left");
        }
        for path in namespaces {
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

#[test]
fn a_proxy_that_cannot_start_says_why() {
    let bed = Bed::new().unwrap();
    let elsewhere: SocketAddr = "192.0.2.1:8080".parse().unwrap();
    for kind in ProxyKind::ALL {
        let dir = folder("broken");
        let spec = Spec { protocol: plain(kind), ..Spec::in_bed(&bed, Family::V4, kind, &dir) };
        let spec = Spec { listen: elsewhere, upstream: elsewhere, ..spec };
        let started = Proxy::start(&spec);
        let message = format!("{:#}", started.err().unwrap());
        assert!(message.contains("192.0.2.1"), "{message}");
        assert!(message.to_lowercase().contains("assign"), "no reason from the log in: {message}");
    }
}

#[test]
fn a_namespace_of_a_killed_run_goes_with_the_next_bed() {
    // No process can have this id: it is above the kernel's largest.
    let stale = "smp-bed-999999999-1-0-proxy";
    process::output(Command::new("ip").args(["netns", "add", stale])).unwrap();
    let mut left = Child::attached(
        "left",
        Command::new("nsenter").args([&format!("--net=/run/netns/{stale}"), "--", "sleep", "600"]),
    )
    .unwrap();
    left.until(LONGEST, "become sleep", |left| Ok((program(left.pid()) == "sleep").then_some(()))).unwrap();

    drop(Bed::new().unwrap());

    assert!(!left.wait_for(LONGEST).unwrap().success());
    assert!(!Path::new("/run/netns").join(stale).exists());
}

#[test]
fn what_ignores_sigterm_is_killed_with_its_children() {
    let script = "trap '' TERM; sleep 600 & sleep 600; sleep 600";
    let mut child = Child::attached("stubborn", Command::new("bash").args(["-c", script])).unwrap();
    let group = child.pid();
    child.until(LONGEST, "start two more", |_| Ok((members(group).len() == 3).then_some(()))).unwrap();
    drop(child);
    assert!(members(group).is_empty());
}

#[test]
fn what_ends_leaves_none_of_its_children() {
    let mut child =
        Child::attached("parent", Command::new("bash").args(["-c", "sleep 600 & exit 3"])).unwrap();
    let group = child.pid();
    assert_eq!(child.wait_for(LONGEST).unwrap().code(), Some(3));
    assert!(members(group).is_empty());
}

/// The protocol that carries plain requests: a proxy for TCP does not look into them.
fn plain(kind: ProxyKind) -> Protocol {
    if kind.speaks(Protocol::H1) { Protocol::H1 } else { Protocol::Tcp }
}

/// Asks over one connection, many times, and checks that every answer is the server's. Returns the connection.
fn ask(proxy: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&proxy, LONGEST)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LONGEST))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    for number in 0..REQUESTS {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bed\r\n\r\n")?;
        let mut status = String::new();
        answers.read_line(&mut status).with_context(|| format!("request {number}"))?;
        ensure!(status.starts_with("HTTP/1.1 200"), "request {number}: {status:?}");
        let mut header = String::new();
        while header != "\r\n" {
            header.clear();
            ensure!(answers.read_line(&mut header)? > 0, "request {number}: cut in the header");
        }
        let mut body = vec![0; BODY.len()];
        answers.read_exact(&mut body)?;
        ensure!(body == BODY.as_bytes(), "request {number}: another body");
    }
    Ok(stream)
}

/// Processes of a group that run; the dead are for the first process of the machine to fetch.
fn members(group: u32) -> Vec<i32> {
    let processes = procfs::process::all_processes().expect("/proc is readable");
    let stats = processes.filter_map(|process| process.ok()?.stat().ok());
    stats.filter(|stat| stat.pgrp == group.cast_signed() && stat.state != 'Z').map(|stat| stat.pid).collect()
}

fn program(pid: u32) -> String {
    let path = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bed").join(name);
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
