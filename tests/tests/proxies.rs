//! Every proxy of the bed in every protocol it speaks: what comes out is what went in, on connections that are used
//! again, by as many workers as asked for.

mod echo;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::iter;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bed::netns::{Bed, Family};
use bed::protocol::Protocol;
use bed::proxy::{Proxy, ProxyKind, Spec};
use echo::{Server, Talk};
use procfs::process::Process;
use tokio::task::JoinSet;
use tokio::time::timeout;

const LONGEST: Duration = Duration::from_secs(30);
/// How often a condition is looked at while it is awaited.
const POLL: Duration = Duration::from_millis(5);
/// At the same time, so that every worker has some.
const CLIENTS: usize = 8;
/// Requests of each client, one after the other.
const ROUNDS: usize = 5;
const SIZES: [usize; 4] = [1, 1 << 10, 64 << 10, 1 << 20];
const GREETING: &[u8] = b"220 bed\r\n";

#[test]
fn http1_is_forwarded_on_kept_connections() {
    each_speaker(Protocol::H1, converse);
}

#[test]
fn clients_that_close_leave_the_connections_to_the_server_open() {
    each_speaker(Protocol::H1Close, converse);
}

#[test]
fn bodies_with_a_length_come_through_whole() {
    for bytes in SIZES {
        each_speaker(Protocol::H1Body(bytes), converse);
    }
}

#[test]
fn bodies_in_chunks_come_through_whole() {
    for bytes in SIZES {
        each_speaker(Protocol::H1Chunked(bytes), converse);
    }
}

#[test]
fn http2_is_forwarded_as_http2() {
    for streams in [1, 100] {
        each_speaker(Protocol::H2(streams), converse);
    }
}

#[test]
fn calls_come_through_with_their_trailers() {
    for streams in [1, 100] {
        each_speaker(Protocol::Grpc(streams), converse);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    each_speaker(Protocol::H1Pipelined, |bed, spec| {
        let _server = Server::start(&bed.server, spec.upstream)?;
        let _proxy = Proxy::start(spec)?;
        at_once(&connections(bed, spec, CLIENTS)?, pipeline)
    });
}

#[test]
fn bytes_come_through_whichever_end_speaks_first() {
    for (protocol, greeting) in [(Protocol::Tcp, b"".as_slice()), (Protocol::TcpServerFirst, GREETING)] {
        each_speaker(protocol, |bed, spec| {
            send_back(bed, spec, greeting)?;
            let _proxy = Proxy::start(spec)?;
            at_once(&connections(bed, spec, CLIENTS)?, |stream, number| exchange(stream, number, greeting))
        });
    }
}

#[test]
fn a_proxy_has_as_many_workers_as_asked_for() {
    for kind in ProxyKind::ALL {
        for &workers in kind.worker_counts() {
            let bed = Bed::new().unwrap();
            let dir = folder(&format!("{kind}-{workers}-workers"));
            let protocol = if kind.speaks(Protocol::H1) { Protocol::H1 } else { Protocol::Tcp };
            let spec = Spec { workers, protocol, ..Spec::in_bed(&bed, Family::V4, kind, &dir) };
            let proxy = Proxy::start(&spec).unwrap();
            // A proxy may listen before all of them are there.
            let asked = Instant::now();
            while at_work(kind, proxy.pid()).unwrap() != workers as usize {
                assert!(asked.elapsed() < LONGEST, "{kind}: not {workers}");
                thread::sleep(POLL);
            }
        }
    }
}

#[test]
fn the_proxy_of_rings_makes_no_call_on_a_socket() {
    const ROUNDS: usize = 100;
    let bed = Bed::new().unwrap();
    let dir = folder("rings");
    let spec = Spec { protocol: Protocol::Tcp, ..Spec::in_bed(&bed, Family::V4, ProxyKind::IoUring, &dir) };
    send_back(&bed, &spec, b"").unwrap();
    let proxy = Proxy::start(&spec).unwrap();
    let mut connections = connections(&bed, &spec, CLIENTS).unwrap();
    let mut echo = |rounds: usize| {
        for connection in &mut connections {
            for _ in 0..rounds {
                connection.write_all(b"ping").unwrap();
                connection.read_exact(&mut [0; 4]).unwrap();
            }
        }
    };

    echo(1);
    let before = entries_when_idle(proxy.pid());
    echo(ROUNDS);
    let after = entries_when_idle(proxy.pid());

    // Two receives and two sends bring four bytes there and back.
    assert_eq!(after - before, (4 * ROUNDS * CLIENTS) as u64);
}

/// The entries that the kernel has taken from the rings of a proxy with two workers and `CLIENTS` clients, once
/// nothing is on its way any more.
fn entries_when_idle(pid: u32) -> u64 {
    // Operation codes of `io_uring`: a receive for either end of each connection, an accept for each worker, and an
    // eventfd by which a worker is woken; it is the only thing that is polled.
    let idle = [(6, 2), (13, 2), (27, 2 * CLIENTS)];
    let idle: Vec<u32> =
        idle.into_iter().flat_map(|(operation, count)| iter::repeat_n(operation, count)).collect();
    let asked = Instant::now();
    loop {
        let rings = rings(pid).expect("the kernel tells of rings");
        let mut waits: Vec<u32> = rings.iter().flat_map(|ring| ring.waits.iter().copied()).collect();
        waits.sort_unstable();
        if waits == idle {
            assert_eq!(rings.len(), 2);
            return rings.iter().map(|ring| ring.entries).sum();
        }
        assert!(asked.elapsed() < LONGEST, "{rings:?}");
        thread::sleep(POLL);
    }
}

/// What `/proc` says of an `io_uring`.
#[derive(Debug)]
struct Ring {
    /// Taken by the kernel since the start.
    entries: u64,
    /// Operation codes of the entries that wait for their file.
    waits: Vec<u32>,
}

fn rings(pid: u32) -> Result<Vec<Ring>> {
    let mut rings = Vec::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let descriptor = descriptor?;
        if fs::read_link(descriptor.path())? != Path::new("anon_inode:[io_uring]") {
            continue;
        }
        let told = format!("/proc/{pid}/fdinfo/{}", descriptor.file_name().display());
        let told = fs::read_to_string(told)?;
        let entries = told.lines().find_map(|line| line.strip_prefix("SqHead:")?.trim().parse().ok());
        // `  op=27, task_works=0`
        let operation = |line: &str| line.trim().strip_prefix("op=")?.split(',').next()?.parse().ok();
        let waits = told.lines().filter_map(operation).collect();
        rings.push(Ring { entries: entries.context("no SqHead")?, waits });
    }
    Ok(rings)
}

/// How many workers a proxy has.
fn at_work(kind: ProxyKind, pid: u32) -> Result<usize> {
    let proxy = Process::new(pid.cast_signed())?;
    let named = |process: &Process, prefix: &str| -> Result<usize> {
        let mut count = 0;
        for task in process.tasks()? {
            count += usize::from(task?.stat()?.comm.starts_with(prefix));
        }
        Ok(count)
    };
    let children = || -> Result<Vec<Process>> {
        let children = proxy.task_main_thread()?.children()?;
        Ok(children.into_iter().map(|child| Process::new(child.cast_signed())).collect::<Result<_, _>>()?)
    };
    match kind {
        ProxyKind::Envoy => named(&proxy, "wrk:worker_"),
        ProxyKind::Nginx => Ok(children()?.len()),
        ProxyKind::Haproxy => children()?.first().map_or(Ok(0), |worker| named(worker, "haproxy")),
        // What Go runs at a time cannot be seen from outside; it is told.
        ProxyKind::Go => {
            let told = proxy.environ()?.remove(OsStr::new("GOMAXPROCS")).context("not told")?;
            Ok(told.to_string_lossy().parse()?)
        }
        ProxyKind::Hyper | ProxyKind::TokioTcp | ProxyKind::Splice => named(&proxy, "tokio-rt-worker"),
        ProxyKind::Blocking => named(&proxy, "bedproxy"),
        ProxyKind::IoUring => named(&proxy, "ring-"),
        _ => bail!("{kind} is not one of the matrix"),
    }
}

fn each_speaker(protocol: Protocol, test: impl Fn(&Bed, &Spec<'_>) -> Result<()>) {
    for kind in ProxyKind::ALL.into_iter().filter(|kind| kind.speaks(protocol)) {
        let bed = Bed::new().expect("a bed");
        let dir = folder(&format!("{kind}-{protocol}"));
        let spec = Spec { protocol, ..Spec::in_bed(&bed, Family::V4, kind, &dir) };
        test(&bed, &spec).unwrap_or_else(|error| panic!("{kind}, {protocol}: {error:#}"));
    }
}

fn connections(bed: &Bed, spec: &Spec<'_>, count: usize) -> Result<Vec<TcpStream>> {
    let connect = || -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&spec.listen, LONGEST)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LONGEST))?;
        Ok(stream)
    };
    bed.client.within(|| (0..count).map(|_| connect()).collect())
}

/// HTTP, by `CLIENTS` at the same time.
fn converse(bed: &Bed, spec: &Spec<'_>) -> Result<()> {
    let (kind, protocol) = (spec.kind, spec.protocol);
    let server = Server::start(&bed.server, spec.upstream)?;
    let _proxy = Proxy::start(spec)?;
    let (each, rounds) = if protocol == Protocol::H1Close { (ROUNDS, 1) } else { (1, ROUNDS) };
    let mut connections = connections(bed, spec, CLIENTS * each)?;
    let talking = async {
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let connections = connections.split_off(connections.len() - each);
            clients.spawn(async move {
                for connection in connections {
                    Talk::new(protocol, number).on(connection, rounds).await?;
                }
                Ok(())
            });
        }
        clients.join_all().await.into_iter().collect::<Result<()>>()
    };
    echo::runtime()?.block_on(async { timeout(LONGEST, talking).await })??;

    // A connection may be opened while another is about to be free, so there may be more than were busy at a time.
    let busy = match protocol {
        // nginx has one call at a time on a connection.
        Protocol::Grpc(streams) if kind == ProxyKind::Nginx => CLIENTS * streams as usize,
        _ => CLIENTS,
    };
    ensure!(server.accepted() <= 2 * busy, "{} connections to the server", server.accepted());
    let log = fs::read_to_string(spec.dir.join(format!("{kind}.log")))?;
    ensure!(!log.contains("temporary file"), "bodies went through files: {log}");
    Ok(())
}

/// Runs a client for each connection, at the same time.
fn at_once(connections: &[TcpStream], client: impl Fn(&TcpStream, usize) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = connections
            .iter()
            .enumerate()
            .map(|(number, stream)| scope.spawn(move || client(stream, number)))
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no panic"))
    })
}

/// Sends all requests in one write; the answers must come in their order.
fn pipeline(mut stream: &TcpStream, number: usize) -> Result<()> {
    let bodies: Vec<_> = (0..10).map(|place| format!("<request {place} of client {number}>")).collect();
    let mut requests = String::new();
    for (place, body) in bodies.iter().enumerate() {
        let connection = if place + 1 == bodies.len() { "close" } else { "keep-alive" };
        let length = body.len();
        write!(
            requests,
            "POST / HTTP/1.1\r\nHost: bed\r\nConnection: {connection}\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
    }
    stream.write_all(requests.as_bytes())?;
    let mut answers = String::new();
    stream.read_to_string(&mut answers)?;
    ensure!(answers.matches("HTTP/1.1 200").count() == bodies.len(), "{answers}");
    let places: Option<Vec<_>> = bodies.iter().map(|body| answers.find(body)).collect();
    ensure!(places.is_some_and(|places| places.is_sorted()), "{answers}");
    Ok(())
}

/// Greets whoever connects and sends back what comes, on threads of its own.
fn send_back(bed: &Bed, spec: &Spec<'_>, greeting: &'static [u8]) -> Result<()> {
    let listener = bed.server.within(|| Ok(TcpListener::bind(spec.upstream)?))?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || -> io::Result<()> {
                stream.set_nodelay(true)?;
                (&stream).write_all(greeting)?;
                io::copy(&mut &stream, &mut &stream)?;
                Ok(())
            });
        }
    });
    Ok(())
}

/// Every size there and back, then the end of the stream.
fn exchange(mut stream: &TcpStream, number: usize, greeting: &[u8]) -> Result<()> {
    let mut greeted = vec![0; greeting.len()];
    stream.read_exact(&mut greeted).context("no greeting")?;
    ensure!(greeted == greeting, "greeted with {greeted:?}");
    for size in SIZES {
        let sent: Vec<u8> = (0..size).map(|place| (place / 7 + number) as u8).collect();
        let mut received = vec![0; size];
        thread::scope(|scope| -> Result<()> {
            // Beside the reading: more is sent than the way holds.
            let mut writer = stream;
            let sent = &sent;
            let sending = scope.spawn(move || writer.write_all(sent));
            stream.read_exact(&mut received).with_context(|| format!("{size} bytes"))?;
            Ok(sending.join().expect("no panic")?)
        })?;
        ensure!(received == sent, "other bytes came back");
    }
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).context("no end of the stream")?;
    ensure!(rest.is_empty(), "more came back than was sent");
    Ok(())
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("proxies").join(name);
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
