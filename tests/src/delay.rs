//! A toy proxy that holds what it forwards for a known time, so that what measures it can be judged.
//!
//! One thread, one epoll. Every read's bytes are held together and written in one call when they are due. A
//! burst held by another connection can make a write late, so what counts as the truth is the proxy's own log of
//! each burst, not the nominal delay.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{Timespec, epoll};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

/// The last part of a wait is spun, since a sleep ends late by the timer's slack and a wake-up.
const SPIN: Duration = Duration::from_micros(100);
/// Largest burst, bytes; longer ones are forwarded as several.
const LARGEST_BURST_BYTES: usize = 64 * 1024;
/// Connections that wait to be accepted: the standard library's number.
const BACKLOG: i32 = 128;
/// Epoll's name for the listening socket; sockets are named from 1 up.
const LISTENER: u64 = 0;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Request,
    Response,
}

/// How long the proxy holds the bytes of each path.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// From the return of the read of a burst of a request to its write.
    pub request: Duration,
    /// From the return of the read of a burst of a response to its write.
    pub response: Duration,
}

/// How long one burst was really held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// From the return of the read to the call of the write, ns: what the proxy itself took.
    pub held_ns: u64,
    /// From the call of the read to the return of the write, ns: the two system calls as well, so whatever stamps
    /// the bytes inside them sees something between the two numbers.
    pub with_calls_ns: u64,
}

/// The log of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Bursts from client to server, in order.
    pub request: Vec<Hold>,
    /// Bursts from server to client, in order.
    pub response: Vec<Hold>,
}

/// One client with the connection the proxy opened for it.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    log: Log,
}

/// Bytes on their way through.
struct Burst {
    pair: u64,
    way: Way,
    /// When the read was called.
    called_at: Instant,
    /// When it returned.
    read_at: Instant,
    due: Instant,
    bytes: Vec<u8>,
}

struct Toy {
    epoll: std::os::fd::OwnedFd,
    listener: TcpListener,
    upstream: SocketAddr,
    delays: Delays,
    /// By the number of the pair; its client socket's epoll name is twice that, its server socket's one more.
    pairs: BTreeMap<u64, Pair>,
    next_pair: u64,
    /// Each path's delay is the same for all its bursts, so each queue is in the order of `due`.
    requests: VecDeque<Burst>,
    responses: VecDeque<Burst>,
    /// What is being read.
    scratch: Vec<u8>,
}

/// Forwards until the process ends. `listening` is called once, with the address in use; `closed` with the log of
/// each connection when it ends. A `transparent` listener takes connections to other hosts' addresses, where the
/// kernel is told to hand them over.
///
/// # Errors
/// When the address cannot be listened on, epoll fails, or a callback does. A connection that fails ends alone.
pub fn run(
    listen: SocketAddr,
    transparent: bool,
    upstream: SocketAddr,
    delays: Delays,
    listening: impl FnOnce(SocketAddr) -> Result<()>,
    mut closed: impl FnMut(&Log) -> Result<()>,
) -> Result<()> {
    // The default slack of 50 us would eat half of the time that is left for spinning.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let listener = listen_on(listen, transparent)
        .with_context(|| format!("the delay proxy cannot listen on {listen}"))?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    listening(listener.local_addr()?)?;
    let mut toy = Toy {
        epoll,
        listener,
        upstream,
        delays,
        pairs: BTreeMap::new(),
        next_pair: 1,
        requests: VecDeque::new(),
        responses: VecDeque::new(),
        scratch: vec![0; LARGEST_BURST_BYTES],
    };
    let mut ready = Vec::with_capacity(64);
    loop {
        toy.wait(&mut ready)?;
        for event in ready.drain(..) {
            match event.data.u64() {
                LISTENER => toy.accept(),
                socket => toy.read(socket, &mut closed)?,
            }
        }
        toy.write_due();
    }
}

fn listen_on(address: SocketAddr, transparent: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_cloexec(true)?;
    socket.set_reuse_address(true)?;
    if transparent && address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else if transparent {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Toy {
    fn first_due(&self) -> Option<Instant> {
        let due = |bursts: &VecDeque<Burst>| bursts.front().map(|burst| burst.due);
        due(&self.requests).into_iter().chain(due(&self.responses)).min()
    }

    /// Waits for the next event or until shortly before the next burst is due.
    fn wait(&self, ready: &mut Vec<epoll::Event>) -> Result<()> {
        let timeout = self.first_due().map(|due| {
            let sleep = due.saturating_duration_since(Instant::now()).saturating_sub(SPIN);
            Timespec { tv_sec: sleep.as_secs().cast_signed(), tv_nsec: sleep.subsec_nanos().into() }
        });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(ready), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("the delay proxy cannot wait for its sockets"),
        }
    }

    fn accept(&mut self) {
        let opened = self.listener.accept().and_then(|(client, _peer)| {
            let server = TcpStream::connect(self.upstream)?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let name = self.next_pair * 2;
            epoll::add(&self.epoll, &client, epoll::EventData::new_u64(name), epoll::EventFlags::IN)?;
            epoll::add(&self.epoll, &server, epoll::EventData::new_u64(name + 1), epoll::EventFlags::IN)?;
            Ok(Pair { client, server, log: Log::default() })
        });
        match opened {
            Ok(pair) => {
                self.pairs.insert(self.next_pair, pair);
                self.next_pair += 1;
            }
            Err(error) => eprintln!("delay proxy: a connection to {} was not made: {error}", self.upstream),
        }
    }

    /// One read, which epoll said does not block. The end of either side ends the pair.
    fn read(&mut self, socket: u64, closed: &mut impl FnMut(&Log) -> Result<()>) -> Result<()> {
        let number = socket / 2;
        // An event of a pair that ended earlier in the same round.
        let Some(pair) = self.pairs.get_mut(&number) else { return Ok(()) };
        let (stream, way, delay) = if socket.is_multiple_of(2) {
            (&mut pair.client, Way::Request, self.delays.request)
        } else {
            (&mut pair.server, Way::Response, self.delays.response)
        };
        let called_at = Instant::now();
        let count = match stream.read(&mut self.scratch) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(_ended) => 0,
        };
        let read_at = Instant::now();
        if count == 0 {
            return self.close(number, closed);
        }
        let bytes = self.scratch[..count].to_vec();
        let burst = Burst { pair: number, way, called_at, read_at, due: read_at + delay, bytes };
        match way {
            Way::Request => self.requests.push_back(burst),
            Way::Response => self.responses.push_back(burst),
        }
        Ok(())
    }

    /// Forgets a pair and the bursts it still holds, and hands out its log.
    fn close(&mut self, number: u64, closed: &mut impl FnMut(&Log) -> Result<()>) -> Result<()> {
        let Some(pair) = self.pairs.remove(&number) else { return Ok(()) };
        self.requests.retain(|burst| burst.pair != number);
        self.responses.retain(|burst| burst.pair != number);
        closed(&pair.log)
    }

    /// Writes every burst that is due or will be within the spinning time.
    fn write_due(&mut self) {
        while let Some(due) = self.first_due() {
            if due.saturating_duration_since(Instant::now()) > SPIN {
                return;
            }
            let of_request = self.requests.front().is_some_and(|burst| burst.due == due);
            let Some(burst) = (if of_request { &mut self.requests } else { &mut self.responses }).pop_front()
            else {
                return;
            };
            self.write(&burst);
        }
    }

    fn write(&mut self, burst: &Burst) {
        let Some(pair) = self.pairs.get_mut(&burst.pair) else { return };
        let (stream, log) = match burst.way {
            Way::Request => (&mut pair.server, &mut pair.log.request),
            Way::Response => (&mut pair.client, &mut pair.log.response),
        };
        while Instant::now() < burst.due {
            std::hint::spin_loop();
        }
        let held = burst.read_at.elapsed();
        let written = stream.write_all(&burst.bytes);
        let with_calls = burst.called_at.elapsed();
        log.push(Hold { held_ns: whole_ns(held), with_calls_ns: whole_ns(with_calls) });
        if written.is_err() {
            // Epoll reports the broken socket as readable, and its read ends the pair.
            if let Err(error) = stream.shutdown(Shutdown::Both) {
                eprintln!("delay proxy: a broken connection could not be shut down: {error}");
            }
        }
    }
}

fn whole_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
