//! Every way to take bytes from a socket is a read, and looking at them is none.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bed::process::Child;
use bed::tools;
use rustix::pipe::{SpliceFlags, pipe, splice};
use serde_json::Value;

const PROGRAMS: &str = env!("CARGO_BIN_EXE_bed");
const LONGEST: Duration = Duration::from_secs(20);
const REQUESTS: u64 = 300;
const LARGEST_BYTES: usize = 4096;
/// Between the look at a message and its read.
const PAUSE: Duration = Duration::from_millis(1);

/// Moves one message from a socket to the other; false at the end of the stream.
type Forward = fn(&mut TcpStream, &mut TcpStream) -> Result<bool>;

fn by_recv(from: &mut TcpStream, to: &mut TcpStream) -> Result<bool> {
    let mut bytes = [0; LARGEST_BYTES];
    let count = from.read(&mut bytes)?;
    to.write_all(&bytes[..count])?;
    Ok(count > 0)
}

fn by_splice(from: &mut TcpStream, to: &mut TcpStream) -> Result<bool> {
    let (reader, writer): (OwnedFd, OwnedFd) = pipe()?;
    let mut held = splice(&*from, None, &writer, None, LARGEST_BYTES, SpliceFlags::empty())?;
    let any = held > 0;
    while held > 0 {
        held -= splice(&reader, None, &*to, None, held, SpliceFlags::empty())?;
    }
    Ok(any)
}

/// Looks at the message, and reads it a while later.
fn by_peek_and_recv(from: &mut TcpStream, to: &mut TcpStream) -> Result<bool> {
    from.peek(&mut [0; LARGEST_BYTES])?;
    let looked = Instant::now();
    while looked.elapsed() < PAUSE {
        std::hint::spin_loop();
    }
    by_recv(from, to)
}

#[test]
fn recv_is_a_read() {
    assert_each_message_crosses(&measured("recv", by_recv).unwrap());
}

#[test]
fn splice_is_a_read() {
    assert_each_message_crosses(&measured("splice", by_splice).unwrap());
}

#[test]
fn a_look_is_no_read() {
    let document = measured("peek", by_peek_and_recv).unwrap();
    assert_each_message_crosses(&document);
    let pause_ns = PAUSE.as_nanos() as f64;
    for hop in document["hops"].as_array().unwrap() {
        let (segment, min_ns) = (hop["segment"].as_str().unwrap(), hop["min"].as_f64().unwrap());
        match segment {
            "queue" | "hop" => assert!(min_ns >= pause_ns, "{hop}"),
            // It ends with the first request's write, if that waited for the connection: with the pause then.
            "connect" => {}
            _ => assert!(min_ns < pause_ns, "{hop}"),
        }
    }
}

fn assert_each_message_crosses(document: &Value) {
    let matching = &document["matching"];
    assert_eq!((&matching["seen"], &matching["exact"]), (&(2 * REQUESTS).into(), &(2 * REQUESTS).into()));
}

/// This process is the proxy of all tests.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The agent's document about this process while it forwards one connection's requests.
fn measured(name: &str, forward: Forward) -> Result<Value> {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = folder(name);
    let mut backend = Command::new(PROGRAMS);
    backend.args(["backend", "--listen", "127.0.0.1:0"]);
    let mut backend = Child::start("backend", &backend, &dir)?;
    let log = backend.log().context("the backend has no log")?.to_owned();
    let upstream: SocketAddr = backend.until(LONGEST, "say where it listens", |_| {
        let said = std::fs::read_to_string(&log)?;
        Ok(said.lines().find_map(|line| line.strip_prefix("listening ")?.parse().ok()))
    })?;

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let target = listener.local_addr()?;
    let proxy = thread::spawn(move || serve(&listener, upstream, forward));
    let mut agent = Command::new(tools::agent()?);
    agent.args(["run", "--proxy", &std::process::id().to_string(), "--out"]).arg(&dir).args(["--", PROGRAMS]);
    agent.args(["load", "--target", &target.to_string(), "--connections", "1", "--seconds", "10"]);
    agent.args(["--requests", &REQUESTS.to_string()]);
    let mut agent = Child::start("smp-agent", &agent, &dir)?;
    let status = agent.wait_for(tools::longest())?;
    ensure!(status.success(), "the agent failed ({status}){}", agent.tail());
    proxy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(serde_json::from_slice(&std::fs::read(dir.join("overhead.json"))?)?)
}

/// Forwards the messages of one connection, one at a time, to its end.
fn serve(listener: &TcpListener, upstream: SocketAddr, forward: Forward) -> Result<()> {
    let (mut client, _peer) = listener.accept()?;
    let mut server = TcpStream::connect(upstream)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    while forward(&mut client, &mut server)? {
        ensure!(forward(&mut server, &mut client)?, "the server ended first");
    }
    Ok(())
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("receive").join(name);
    std::fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
