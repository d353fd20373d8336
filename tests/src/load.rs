//! The load generator: HTTP/1.1 keep-alive requests, each with an id of its own that both the backend's answer
//! and a packet capture can be searched for.
//!
//! No pipelining: a connection sends its next request only after the whole response to the last one, so every
//! request and every response starts a packet.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::http;

/// A response that takes longer than this is an error, and so is a connection that takes longer to open.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection waits before it tries again after an error, so that a dead target costs no core.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// What to send, where, and when to end.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the proxy (or the backend) listens.
    pub target: SocketAddr,
    /// How many connections to keep busy; at least 1.
    pub connections: usize,
    /// No request starts after this long; those under way are finished.
    pub duration: Duration,
    /// Requests per second over all connections (open loop), or as fast as the responses come (closed loop).
    /// The connections take turns; one whose response is late sends at once when it is free. Timer ticks are
    /// 1 ms apart, so a high rate leaves in small bursts.
    pub rate: Option<f64>,
    /// End after this many requests, if that is sooner than `duration`.
    pub requests: Option<u64>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests whose whole response came back with the same id.
    pub requests: u64,
    /// Connections that could not be opened, and requests that were not answered in time or not as expected.
    pub errors: u64,
    /// From the first connection attempt to the last response, s.
    pub seconds: f64,
}

/// The part of a run that its connections share; all of them are on one thread.
struct Shared {
    plan: Plan,
    end: Instant,
    started: Cell<u64>,
    answered: Cell<u64>,
    errors: Cell<u64>,
}

/// Runs the plan to its end on this thread.
///
/// # Errors
/// When the plan has no connection, a rate that is no positive number, or the event loop cannot be made. What
/// the target does wrong is counted, not returned.
pub fn run(plan: Plan) -> Result<Tally> {
    ensure!(plan.connections > 0, "a load needs at least one connection");
    if let Some(rate) = plan.rate {
        ensure!(rate.is_finite() && rate > 0.0, "a rate must be a positive number of requests a second");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(plan))
}

async fn drive(plan: Plan) -> Result<Tally> {
    let start = Instant::now();
    let connections = plan.connections;
    let shared = Rc::new(Shared {
        end: start + plan.duration,
        plan,
        started: Cell::new(0),
        answered: Cell::new(0),
        errors: Cell::new(0),
    });
    let mut tasks = JoinSet::new();
    for place in 0..connections {
        tasks.spawn_local(keep_busy(Rc::clone(&shared), start, place));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection of the load generator ended early")?;
    }
    Ok(Tally {
        requests: shared.answered.get(),
        errors: shared.errors.get(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// One connection's life: open, ask, again after an error, until the plan's end.
async fn keep_busy(shared: Rc<Shared>, start: Instant, place: usize) {
    let mut turns = Turns::new(&shared.plan, start, place);
    while shared.may_start() {
        if let Err(_counted) = converse(&shared, &mut turns).await {
            shared.errors.set(shared.errors.get() + 1);
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
    }
}

/// Opens one connection and sends requests on it until the plan's end or the first error.
async fn converse(shared: &Shared, turns: &mut Turns) -> Result<()> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(shared.plan.target)).await??;
    stream.set_nodelay(true)?;
    let mut received = Vec::with_capacity(4096);
    loop {
        if let Some(at) = turns.next() {
            if at >= shared.end {
                sleep_until(shared.end).await;
                return Ok(());
            }
            sleep_until(at).await;
        }
        let Some(id) = shared.next_id() else { return Ok(()) };
        timeout(PATIENCE, ask(&mut stream, &mut received, id)).await??;
        shared.answered.set(shared.answered.get() + 1);
    }
}

/// One request and its whole response.
async fn ask(stream: &mut TcpStream, received: &mut Vec<u8>, id: u64) -> Result<()> {
    // The id comes first so that a short snap length holds it.
    let request = format!("GET / HTTP/1.1\r\n{}: {id:016x}\r\nhost: bed\r\n\r\n", http::ID_HEADER);
    stream.write_all(request.as_bytes()).await?;
    received.clear();
    loop {
        if stream.read_buf(received).await? == 0 {
            bail!("the connection was closed before the whole response");
        }
        let Some(head) = http::response_head(received)? else { continue };
        if received.len() < head.head_bytes + head.body_bytes {
            continue;
        }
        ensure!(received.len() == head.head_bytes + head.body_bytes, "more bytes than the response has");
        ensure!(head.status == 200, "status {}", head.status);
        ensure!(head.id == Some(id), "the response has another request's id, or none");
        return Ok(());
    }
}

impl Shared {
    fn may_start(&self) -> bool {
        Instant::now() < self.end && self.plan.requests.is_none_or(|most| self.started.get() < most)
    }

    /// Ids count from 1; `None` when no further request may start.
    fn next_id(&self) -> Option<u64> {
        self.may_start().then(|| {
            self.started.set(self.started.get() + 1);
            self.started.get()
        })
    }
}

/// When a connection's requests are due under a fixed rate: every `connections / rate` seconds, the connections
/// evenly apart.
struct Turns {
    next: Option<Instant>,
    every: Duration,
}

impl Turns {
    fn new(plan: &Plan, start: Instant, place: usize) -> Self {
        let Some(rate) = plan.rate else { return Self { next: None, every: Duration::ZERO } };
        let offset = Duration::from_secs_f64(place as f64 / rate);
        Self { next: Some(start + offset), every: Duration::from_secs_f64(plan.connections as f64 / rate) }
    }

    /// When the next request is due; `None` means at once.
    fn next(&mut self) -> Option<Instant> {
        let due = self.next?;
        self.next = Some(due + self.every);
        Some(due)
    }
}
