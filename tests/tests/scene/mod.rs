//! What a scene of this test has: a client and a server that speak HTTP/1.1, a proxy, and the agent's daemon.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bed::capture::{Capture, Vantage};
use bed::load::Tally;
use bed::netns::{Bed, Family, Netns};
use bed::process::Child;
use bed::protocol::Protocol;
use bed::tools;
use bed::wire::{Direction, Wire};

pub const LONGEST: Duration = Duration::from_secs(20);
const PROGRAMS: &str = env!("CARGO_BIN_EXE_bed");
/// How far a mean may be from the packets' in the short run afterwards, ns and as a share.
const MEAN_NS: f64 = 3_000.0;
const MEAN_SHARE: f64 = 0.02;

/// Namespaces with a server for plain load (port 9090) and one with manners (port 9091); the proxy and the daemon are
/// the test's.
pub struct Scene {
    pub bed: Bed,
    pub dir: PathBuf,
    pub server: Manners,
    _backend: Child,
}

/// What the server with manners was asked, by path.
#[derive(Clone, Default)]
pub struct Manners {
    asked: Arc<Mutex<HashMap<String, u64>>>,
}

/// The agent at work.
pub struct Daemon {
    child: Child,
    address: SocketAddr,
    /// `pid="..."` of the proxy.
    label: String,
    /// Messages that may stay in flight.
    pub left: f64,
}

/// Counters of the proxy since the agent began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub seen: f64,
    pub exact: f64,
    pub ambiguous: f64,
    pub unmatched: f64,
    pub lost: f64,
    pub local: f64,
    pub in_flight: f64,
    /// Count and sum (s) of the hop, by direction.
    pub hops: [(f64, f64); 2],
    pub connects: (f64, f64),
}

impl Scene {
    pub fn new(name: &str) -> Result<Self> {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("detours").join(name);
        fs::create_dir_all(&dir)?;
        let bed = Bed::new()?;
        let plain = Bed::server_address(Family::V4);
        let mut backend = bed.server.command(PROGRAMS);
        backend.args(["backend", "--listen", &plain.to_string()]);
        let mut backend = Child::start("backend", &backend, &dir)?;
        backend.wait_for_port(plain, LONGEST)?;
        let server = Manners::default();
        server.serve(&bed.server, Self::mannered())?;
        Ok(Self { bed, dir, server, _backend: backend })
    }

    /// Where the server with manners listens.
    pub fn mannered() -> SocketAddr {
        SocketAddr::new(Bed::server_ip(Family::V4), 9091)
    }

    /// Starts a proxy with this configuration, in the arguments' place of `CONFIG`, and waits until it listens.
    pub fn proxy(&self, program: PathBuf, arguments: &[&str], config: &str) -> Result<Child> {
        let path = self.dir.join("proxy.conf");
        fs::write(&path, config)?;
        let mut command = self.bed.proxy.command(program);
        for argument in arguments {
            match *argument {
                "CONFIG" => command.arg(&path),
                other => command.arg(other),
            };
        }
        self.start(&command)
    }

    /// Starts a proxy by this command, and waits until it listens.
    pub fn start(&self, command: &Command) -> Result<Child> {
        let mut child = Child::start("proxy", command, &self.dir)?;
        child.wait_for_port(Bed::proxy_address(Family::V4), LONGEST)?;
        Ok(child)
    }

    /// Sends `count` requests for this path on each of so many connections at the same time, and asserts their status.
    pub fn ask(&self, connections: usize, count: usize, path: &str, status: &str) -> Result<()> {
        self.bed.client.within(|| {
            thread::scope(|scope| {
                let clients: Vec<_> = (0..connections)
                    .map(|client| {
                        scope.spawn(move || -> Result<()> {
                            let mut connection = Connection::open()?;
                            for place in 0..count {
                                let got = connection.ask(path, &format!("{client}-{place}"))?;
                                ensure!(got == status, "{path}: {got} instead of {status}");
                            }
                            Ok(())
                        })
                    })
                    .collect();
                clients.into_iter().try_for_each(|client| client.join().expect("no panic"))
            })
        })
    }

    /// Opens so many connections, which come to all of a proxy's workers, and asks on one after the other, so often.
    pub fn wake(&self, connections: usize, count: usize) -> Result<()> {
        self.bed.client.within(|| {
            let mut open = (0..connections).map(|_| Connection::open()).collect::<Result<Vec<_>>>()?;
            for place in 0..count * connections {
                let got = open[place % connections].ask("/plain", &format!("wake-{place}"))?;
                ensure!(got == "200", "{got} instead of 200");
            }
            Ok(())
        })
    }

    /// Asks so many times for what takes the server 200 ms, and leaves after 50 ms.
    pub fn leave(&self, count: usize) -> Result<()> {
        self.bed.client.within(|| {
            for place in 0..count {
                let mut connection = Connection::open()?;
                connection.stream.set_read_timeout(Some(Duration::from_millis(50)))?;
                let answer = connection.ask("/slow", &format!("left-{place}"));
                ensure!(answer.is_err(), "the server was not slow");
            }
            Ok(())
        })
    }

    /// Plain load of so many connections for 2 s, judged by the packets: every message crosses, and both means are
    /// right.
    pub fn assert_measures_well(&self, daemon: &mut Daemon, connections: usize) -> Result<()> {
        let before = daemon.quiet()?;
        let capture = Capture::start(Vantage::of(&self.bed), false, &self.dir)?;
        let mut load = self.bed.client.command(PROGRAMS);
        load.args(["load", "--target", &Bed::proxy_address(Family::V4).to_string(), "--seconds=2"]);
        load.arg(format!("--connections={connections}"));
        let said = bed::process::output(&mut load)?;
        let tally: Tally = serde_json::from_str(said.trim())?;
        let wire = capture.stop()?.read(Wire::new(Protocol::H1))?;
        let after = daemon.quiet()?;
        ensure!(tally.errors == 0 && tally.requests > 0, "{tally:?}");
        let messages = 2.0 * tally.requests as f64;
        let crossed = after.crossings() - before.crossings();
        ensure!(crossed >= 0.999 * messages, "{crossed} of {messages} crossed: {before:?}, {after:?}");
        for (place, direction) in Direction::ALL.into_iter().enumerate() {
            let latencies = wire.latencies(direction);
            ensure!(latencies.count() == tally.requests, "the wire has {} messages", latencies.count());
            let truth_ns = latencies.mean_ns().context("messages")?;
            let [(count, sum), (count_before, sum_before)] = [after.hops[place], before.hops[place]];
            let mean_ns = (sum - sum_before) * 1e9 / (count - count_before);
            ensure!(
                (mean_ns - truth_ns).abs() <= MEAN_NS.max(MEAN_SHARE * truth_ns),
                "{direction:?}: {mean_ns} ns in the mean, {truth_ns} on the wire"
            );
            eprintln!(
                "{direction:?}: {mean_ns:.0} ns in the mean, {truth_ns:.0} on the wire, {count} so far"
            );
        }
        Ok(())
    }
}

/// A client's connection to the proxy.
struct Connection {
    stream: TcpStream,
}

impl Connection {
    fn open() -> Result<Self> {
        let stream = TcpStream::connect(Bed::proxy_address(Family::V4))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LONGEST))?;
        Ok(Self { stream })
    }

    /// The status of the answer, whose body is read.
    fn ask(&mut self, path: &str, name: &str) -> Result<String> {
        send(&mut self.stream, path, &format!("GET {path} HTTP/1.1\r\nHost: bed\r\nx-name: {name}\r\n\r\n"))?;
        let head = message(&mut self.stream)?.context("the proxy has closed")?;
        Ok(head.split(' ').nth(1).context("no status")?.to_owned())
    }
}

/// Sends a message: at once, or in two segments where the path ends with `/pieces`.
fn send(stream: &mut TcpStream, path: &str, message: &str) -> std::io::Result<()> {
    let (first, rest) =
        message.split_at(if path.ends_with("/pieces") { message.len() / 2 } else { message.len() });
    stream.write_all(first.as_bytes())?;
    stream.write_all(rest.as_bytes())
}

/// The head of the next message, whose body is read too; nothing at the end of the stream.
fn message(stream: &mut TcpStream) -> Result<Option<String>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => head.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    let head = String::from_utf8(head)?.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    stream.read_exact(&mut vec![0; length.unwrap_or(0)])?;
    Ok(Some(head))
}

impl Manners {
    /// How often something was asked for.
    pub fn asked(&self, path: &str) -> u64 {
        self.asked.lock().expect("no panic").get(path).copied().unwrap_or(0)
    }

    /// Answers on threads of its own: `/retry` with 503 when a name comes for the first time, `/slow` after 200 ms,
    /// else at once with 200.
    fn serve(&self, netns: &Netns, listen: SocketAddr) -> Result<()> {
        let listener = netns.within(|| Ok(TcpListener::bind(listen)?))?;
        let manners = self.clone();
        let known = Arc::new(Mutex::new(HashSet::new()));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (manners, known) = (manners.clone(), Arc::clone(&known));
                // A client that goes away in the middle ends its connection only.
                thread::spawn(move || manners.converse(stream, &known));
            }
        });
        Ok(())
    }

    fn converse(&self, mut stream: TcpStream, known: &Mutex<HashSet<String>>) -> Result<()> {
        stream.set_nodelay(true)?;
        while let Some(head) = message(&mut stream)? {
            let path = head.split(' ').nth(1).context("no path")?.to_owned();
            *self.asked.lock().expect("no panic").entry(path.clone()).or_default() += 1;
            let name = head.lines().find_map(|line| line.strip_prefix("x-name: ")).unwrap_or_default();
            let status = if path == "/retry" && known.lock().expect("no panic").insert(name.to_owned()) {
                "503 Not Yet"
            } else {
                "200 OK"
            };
            if path == "/slow" {
                thread::sleep(Duration::from_millis(200));
            }
            send(&mut stream, &path, &format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nbody"))?;
        }
        Ok(())
    }
}

impl Daemon {
    /// Follows the proxies of `target` (a process or a name); counts are those of process `pid`.
    pub fn start(scene: &Scene, target: &str, pid: u32) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut agent = Command::new(tools::agent()?);
        agent.args(["daemon", "--proxy", target, "--metrics", &address.to_string()]);
        let mut child = Child::start("daemon", &agent, &scene.dir)?;
        child.until(LONGEST, "be ready", |_| {
            Ok(get(address, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")).then_some(()))
        })?;
        Ok(Self { child, address, label: format!("pid=\"{pid}\""), left: 0.0 })
    }

    /// The same agent, with the counts of another process.
    pub fn of(self, pid: u32) -> Self {
        Self { label: format!("pid=\"{pid}\""), ..self }
    }

    /// The counters once they stand still with nothing in flight but what may be left; the classes add up then.
    pub fn quiet(&mut self) -> Result<Counts> {
        let (address, label, left) = (self.address, self.label.clone(), self.left);
        let mut last = None;
        let counts = self.child.until(LONGEST, "be quiet", |_| {
            let text = get(address, "/metrics")?;
            let time =
                text.lines().find(|line| line.starts_with("smp_agent_snapshot_timestamp")).map(str::to_owned);
            let counts = Counts::read(&text, &label);
            // Of two snapshots in a row: in the first one messages may have been under way.
            let same = last.as_ref().is_some_and(|(_, earlier)| *earlier == counts);
            let newer = last.as_ref().is_some_and(|(earlier, _)| *earlier != time);
            if last.is_none() || newer {
                last = Some((time, counts));
            }
            Ok((same && newer && counts.in_flight <= left).then_some(counts))
        });
        let counts = counts.with_context(|| format!("{last:?}"))?;
        ensure!(
            counts.seen
                == counts.exact + counts.ambiguous + counts.unmatched + counts.lost + counts.in_flight,
            "the classes do not add up: {counts:?}"
        );
        Ok(counts)
    }
}

impl Counts {
    fn read(text: &str, label: &str) -> Self {
        let sum = |name: &str, labels: &[&str]| -> f64 {
            let start = format!("{name}{{");
            let lines = text.lines().filter(|line| line.starts_with(&start) && line.contains(label));
            let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let class = |class: &str| sum("smp_messages_total", &[&format!("class=\"{class}\"")]);
        let series = |direction: &str, segment: &str| {
            let labels = [format!("direction=\"{direction}\""), format!("segment=\"{segment}\"")];
            let labels: Vec<_> = labels.iter().map(String::as_str).collect();
            (sum("smp_hop_latency_seconds_count", &labels), sum("smp_hop_latency_seconds_sum", &labels))
        };
        Self {
            seen: sum("smp_messages_seen_total", &[]),
            exact: class("exact"),
            ambiguous: class("ambiguous"),
            unmatched: class("unmatched"),
            lost: class("lost"),
            local: sum("smp_messages_local_total", &[]),
            in_flight: sum("smp_messages_in_flight", &[]),
            hops: [series("request", "hop"), series("response", "hop")],
            connects: series("request", "connect"),
        }
    }

    pub fn crossings(&self) -> f64 {
        self.exact + self.ambiguous
    }

    /// What came since an earlier look: requests that crossed, responses that did, unmatched, local, connections.
    pub fn since(&self, earlier: &Self) -> [f64; 5] {
        [
            self.hops[0].0 - earlier.hops[0].0,
            self.hops[1].0 - earlier.hops[1].0,
            self.unmatched + self.lost - earlier.unmatched - earlier.lost,
            self.local - earlier.local,
            self.connects.0 - earlier.connects.0,
        ]
    }
}

/// Head and body of the answer.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LONGEST)?;
    stream.set_read_timeout(Some(LONGEST))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
