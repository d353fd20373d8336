//! What was there before the agent: messages that are whole are measured, others counted or left alone.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::delay::{Hold, Log};
use bed::measuring::Measuring;
use bed::netns::{Bed, Family};
use bed::process::Child;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const PROGRAMS: &str = env!("CARGO_BIN_EXE_bed");
const LONGEST: Duration = Duration::from_secs(20);
/// Of a load that runs already.
const CONNECTIONS: u64 = 8;
/// How much longer than in the whole of a load a busy machine may take in a part of it.
const SLOW_NS: f64 = 1_000_000.0;
/// More than some ticks of the kernel's clock, by which it notes what came last.
const PAUSE: Duration = Duration::from_millis(50);

/// What a proxy's log has of one path.
type Holds = fn(&Log) -> &Vec<Hold>;

/// A proxy that forwards at once whatever it reads. This process has both of its connections in hand.
struct Between {
    proxy: Child,
    client: TcpStream,
    server: TcpStream,
    dir: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// This process is the proxy of one test; the sockets of the others are none of that proxy's.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Between {
    fn start(name: &str) -> Result<Self> {
        let alone = alone();
        let dir = folder(name);
        let server = TcpListener::bind("127.0.0.1:0")?;
        let mut proxy = Command::new(PROGRAMS);
        proxy.args([
            "delayproxy",
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            &server.local_addr()?.to_string(),
        ]);
        let mut proxy = Child::start("proxy", &proxy, &dir)?;
        let log = proxy.log().context("the proxy has no log")?.to_owned();
        let listen: SocketAddr = proxy.until(LONGEST, "say where it listens", |_| {
            let said = fs::read_to_string(&log)?;
            Ok(said.lines().find_map(|line| line.strip_prefix("listening ")?.parse().ok()))
        })?;
        let client = TcpStream::connect(listen)?;
        let (server, _proxy) = server.accept()?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LONGEST))?;
        }
        thread::sleep(PAUSE);
        Ok(Self { proxy, client, server, dir, _alone: alone })
    }

    fn request(&mut self) -> Result<()> {
        pass(&mut self.client, &mut self.server)
    }

    fn response(&mut self) -> Result<()> {
        pass(&mut self.server, &mut self.client)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.proxy.pid().cast_signed()).context("a process has an id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// What the agent makes of what `act` does.
    fn measured(mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<Seen> {
        let measuring = Measuring::start(self.proxy.pid(), &self.dir)?;
        act(&mut self)?;
        Ok(Seen::of(&measuring.finish()?))
    }
}

/// Some bytes through the proxy.
fn pass(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"part")?;
    to.read_exact(&mut [0; 4]).context("the bytes do not arrive")
}

/// What a document says of its one proxy.
#[derive(Debug, PartialEq)]
struct Seen {
    /// Crossings of requests, and of responses.
    crossings: (u64, u64),
    lost: Value,
    messages: Value,
}

impl Seen {
    fn of(document: &Value) -> Self {
        let crossings = |direction| {
            segment(document, direction, "hop").map_or(0, |hop| hop["count"].as_u64().expect("a count"))
        };
        let matching = &document["matching"];
        Self {
            crossings: (crossings("request"), crossings("response")),
            lost: matching["lost"].clone(),
            messages: matching["seen"].clone(),
        }
    }
}

fn segment<'a>(document: &'a Value, direction: &str, segment: &str) -> Option<&'a Value> {
    let mut hops = document["hops"].as_array().expect("hops").iter();
    hops.find(|hop| hop["direction"] == direction && hop["segment"] == segment)
}

#[test]
fn a_connection_that_rests_loses_nothing() {
    let mut between = Between::start("rests").unwrap();
    between.request().unwrap();
    between.response().unwrap();
    thread::sleep(PAUSE);
    let seen = between.measured(|between| {
        between.request()?;
        between.response()
    });
    assert_eq!(seen.unwrap(), Seen { crossings: (1, 1), lost: json!({}), messages: json!(2) });
}

#[test]
fn a_connection_that_was_not_used_yet_loses_nothing() {
    let seen = Between::start("unused").unwrap().measured(|between| {
        between.request()?;
        between.response()
    });
    assert_eq!(seen.unwrap(), Seen { crossings: (1, 1), lost: json!({}), messages: json!(2) });
}

#[test]
fn the_rest_of_a_request_is_no_message() {
    let mut between = Between::start("request").unwrap();
    between.request().unwrap();
    thread::sleep(PAUSE);
    let seen = between.measured(|between| {
        between.request()?;
        between.response()
    });
    assert_eq!(seen.unwrap(), Seen { crossings: (0, 1), lost: json!({}), messages: json!(1) });
}

#[test]
fn the_rest_of_a_response_is_no_message() {
    let mut between = Between::start("response").unwrap();
    between.request().unwrap();
    thread::sleep(PAUSE);
    between.response().unwrap();
    thread::sleep(PAUSE);
    let seen = between.measured(|between| {
        between.response()?;
        between.request()?;
        between.response()
    });
    assert_eq!(seen.unwrap(), Seen { crossings: (1, 1), lost: json!({}), messages: json!(2) });
}

#[test]
fn a_message_that_waits_to_be_read_has_no_arrival() {
    let mut between = Between::start("waits").unwrap();
    between.signal(Signal::STOP).unwrap();
    between.client.write_all(b"part").unwrap();
    thread::sleep(PAUSE);
    let seen = between.measured(|between| {
        // What comes behind it is seen to arrive, and is not what the message begins with.
        between.client.write_all(b"rest")?;
        between.signal(Signal::CONT)?;
        between.server.read_exact(&mut [0; 8])?;
        between.response()?;
        between.request()?;
        between.response()
    });
    assert_eq!(
        seen.unwrap(),
        Seen { crossings: (1, 2), lost: json!({ "no_arrival": 1 }), messages: json!(4) }
    );
}

#[test]
fn a_start_in_the_middle_of_traffic_makes_no_wrong_crossing() {
    let dir = folder("traffic");
    let bed = Bed::new().unwrap();
    let (listen, upstream) = (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4));
    let mut backend = bed.server.command(PROGRAMS);
    backend.args(["backend", "--listen", &upstream.to_string()]);
    let mut backend = Child::start("backend", &backend, &dir).unwrap();
    backend.wait_for_port(upstream, LONGEST).unwrap();
    let mut proxy = bed.proxy.command(PROGRAMS);
    proxy.args(["delayproxy", "--listen", &listen.to_string(), "--upstream", &upstream.to_string()]);
    proxy.args(["--request-us", "10000", "--response-us", "5000"]);
    let mut proxy = Child::start("proxy", &proxy, &dir).unwrap();
    proxy.wait_for_port(listen, LONGEST).unwrap();
    let mut load = bed.client.command(PROGRAMS);
    // Now and then there is nothing inside the proxy.
    load.args(["load", "--target", &listen.to_string(), "--seconds", "600", "--rate", "50"]);
    load.args(["--connections", &CONNECTIONS.to_string()]);
    let load = Child::start("load", &load, &dir).unwrap();
    thread::sleep(Duration::from_secs(1));

    let measuring = Measuring::start(proxy.pid(), &dir).unwrap();
    thread::sleep(Duration::from_secs(2));
    let document = measuring.finish().unwrap();
    drop(load);

    let matching = &document["matching"];
    // Of each of the two connections at most the message that was under way then.
    let lost = matching["lost"]["no_arrival"].as_u64().unwrap_or(0);
    assert!(lost <= 2 * CONNECTIONS, "{matching}");
    assert!(matching["exact"].as_u64().unwrap() + matching["ambiguous"].as_u64().unwrap() > 50, "{matching}");
    let log = proxy.log().unwrap().to_owned();
    let logs: Vec<Log> = proxy
        .until(LONGEST, "log its connections", |_| {
            let said = fs::read_to_string(&log)?;
            let logs: Vec<_> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            Ok((logs.len() as u64 == CONNECTIONS).then_some(logs))
        })
        .unwrap();
    let paths: [(&str, Holds); 2] = [("request", |log| &log.request), ("response", |log| &log.response)];
    for (direction, of) in paths {
        let mut holds: Vec<_> = logs.iter().flat_map(of).collect();
        holds.sort_unstable_by_key(|hold| hold.with_calls_ns);
        let median_ns = holds[holds.len() / 2].with_calls_ns as f64;
        let least_ns = holds.iter().map(|hold| hold.held_ns).min().expect("a log") as f64;
        let hop = segment(&document, direction, "proxy").expect("crossings");
        let [mean_ns, p50_ns] = ["mean", "p50"].map(|name| hop[name].as_f64().expect("a number"));
        // What was not held from its read to its write is off by as much as all of that. A message that was inside the
        // proxy at the start may have taken the place of another, once on each connection.
        assert!(mean_ns >= 0.95 * least_ns && p50_ns >= least_ns, "{hop}: held {least_ns} ns or longer");
        // The log is of the whole load, the document of a part of it.
        assert!(p50_ns <= 1.2 * median_ns + SLOW_NS, "{hop}: held {median_ns} ns in the median");
    }
}

#[test]
fn a_listener_in_another_network_namespace_than_its_process_is_found() {
    let bed = Bed::new().unwrap();
    let (listen, upstream) = (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4));
    let dir = folder("namespace");
    let mut backend = bed.server.command(PROGRAMS);
    backend.args(["backend", "--listen", &upstream.to_string()]);
    let mut backend = Child::start("backend", &backend, &dir).unwrap();
    backend.wait_for_port(upstream, LONGEST).unwrap();
    // This process is the proxy: its sockets are in the namespace, it is not.
    let _alone = alone();
    let listener = bed.proxy.within(|| Ok(TcpListener::bind(listen)?)).unwrap();
    let measuring = Measuring::start(std::process::id(), &dir).unwrap();
    let mut load = bed.client.command(PROGRAMS);
    load.args(["load", "--target", &listen.to_string(), "--connections", "1", "--requests", "100"]);
    let load = Child::start("load", &load, &dir).unwrap();
    let forwarded = bed.proxy.within(|| {
        let (client, _peer) = listener.accept()?;
        forward(&client, &TcpStream::connect(upstream)?)
    });
    forwarded.unwrap();
    drop(load);
    let seen = Seen::of(&measuring.finish().unwrap());
    assert_eq!(seen, Seen { crossings: (100, 100), lost: json!({}), messages: json!(200) });
}

/// Forwards small messages by turns until the client ends.
fn forward(client: &TcpStream, server: &TcpStream) -> Result<()> {
    let mut bytes = [0; 4096];
    loop {
        for (mut from, mut to) in [(client, server), (server, client)] {
            let count = from.read(&mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            ensure!(count < bytes.len(), "a message is larger than the buffer");
            to.write_all(&bytes[..count])?;
        }
    }
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("before").join(name);
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
