//! The load generator: messages with an id of their own, that both the backend's answer and a packet capture can be
//! searched for.
//!
//! One module for each family of protocols. It says what one connection does; when a message may start, under
//! either of two disciplines (closed loop, open loop), and what counts as answered, is said here.

mod http1;
mod http2;
mod tcp;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::protocol::Protocol;
use crate::wire::Latencies;

/// A response that takes longer than this is an error, and so is a connection that takes longer to open.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection waits before it tries again after an error, so that a dead target costs no core.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// What to send, where, and when to end.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the proxy (or the backend) listens.
    pub target: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
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
    /// Messages that came back: the responses to them, and the greetings of a server that speaks first.
    pub responses: u64,
    /// Connections that could not be opened or failed, and requests that were not answered in time or not as
    /// expected.
    pub errors: u64,
    /// What the first of the errors was.
    pub first_error: Option<String>,
    /// From the first connection attempt to the last response, s.
    pub seconds: f64,
    /// How long the answered requests took; `None` where none was answered.
    pub took: Option<Took>,
}

/// How long requests took, from when each was due to its whole response, us. One that could not be sent in time because the
/// last response on its connection was late was due all the same; what the timer that woke it was late is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// The median.
    pub p50_us: f64,
    /// What one of a hundred exceeds.
    pub p99_us: f64,
    /// What one of a thousand exceeds.
    pub p999_us: f64,
}

/// What all connections do, by family of protocols.
enum Client {
    Http1(http1::Client),
    Http2(http2::Client),
    Tcp(tcp::Client),
}

/// The part of a run that its connections share; all of them are on one thread.
struct Shared {
    plan: Plan,
    client: Client,
    start: Instant,
    end: Instant,
    started: Cell<u64>,
    tally: RefCell<Tally>,
    /// Of each answered request, ns.
    took_ns: RefCell<Vec<u64>>,
}

/// One request's turn to be sent.
#[derive(Clone, Copy)]
struct Turn {
    /// Its id; these count from 1.
    id: u64,
    due: Instant,
}

/// Runs the plan to its end on this thread.
///
/// # Errors
/// When the plan has no connection, a rate that is no positive number, or the event loop cannot be made. What the target does wrong is counted, not returned.
pub fn run(plan: Plan) -> Result<Tally> {
    ensure!(plan.connections > 0, "a load needs at least one connection");
    if let Some(rate) = plan.rate {
        ensure!(rate.is_finite() && rate > 0.0, "a rate must be a positive number of requests a second");
    }
    let client = Client::new(plan.protocol);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(plan, client))
}

async fn drive(plan: Plan, client: Client) -> Result<Tally> {
    let start = Instant::now();
    let connections = plan.connections;
    let shared = Rc::new(Shared {
        end: start + plan.duration,
        start,
        plan,
        client,
        started: Cell::new(0),
        tally: RefCell::new(Tally::default()),
        took_ns: RefCell::default(),
    });
    let mut tasks = JoinSet::new();
    for place in 0..connections {
        tasks.spawn_local(keep_busy(Rc::clone(&shared), place));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection of the load generator ended early")?;
    }
    let tally = shared.tally.borrow().clone();
    let took = Took::of(&shared.took_ns.take().into_iter().collect());
    Ok(Tally { seconds: start.elapsed().as_secs_f64(), took, ..tally })
}

/// One connection's life: open, ask, again after an error, until the plan's end.
async fn keep_busy(shared: Rc<Shared>, place: usize) {
    let mut turns = Turns::new(&shared.plan, shared.start, place);
    while shared.may_start() {
        let conversed = match &shared.client {
            Client::Http1(client) => client.converse(&shared, &mut turns).await,
            Client::Http2(client) => client.converse(&shared, &mut turns).await,
            Client::Tcp(client) => client.converse(&shared, &mut turns).await,
        };
        if let Err(error) = conversed {
            shared.failed(&error);
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
    }
}

impl Client {
    fn new(protocol: Protocol) -> Self {
        match protocol {
            Protocol::H1
            | Protocol::H1Close
            | Protocol::H1Body(_)
            | Protocol::H1Chunked(_)
            | Protocol::H1Pipelined
            | Protocol::H1Local
            | Protocol::H1Checked
            | Protocol::H1Hosts
            // What is between the proxies is theirs alone.
            | Protocol::MtlsH1
            | Protocol::MtlsH1Close
            | Protocol::MtlsH2 => Self::Http1(http1::Client::new(protocol)),
            Protocol::Tcp | Protocol::TcpServerFirst => Self::Tcp(tcp::Client::new(protocol)),
            Protocol::H2(streams) => Self::Http2(http2::Client::plain(streams)),
            Protocol::Grpc(streams) => Self::Http2(http2::Client::grpc(streams)),
        }
    }
}

impl Took {
    fn of(latencies: &Latencies) -> Option<Self> {
        let at = |per_mille| Some(latencies.quantile_ns(per_mille)? as f64 / 1e3);
        Some(Self { p50_us: at(500)?, p99_us: at(990)?, p999_us: at(999)? })
    }
}

impl Shared {
    /// Opens a connection to the target.
    async fn connect(&self) -> Result<TcpStream> {
        let stream = in_time(async { Ok(TcpStream::connect(self.plan.target).await?) })
            .await
            .context("no connection to the target")?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn may_start(&self) -> bool {
        Instant::now() < self.end && self.plan.requests.is_none_or(|most| self.started.get() < most)
    }

    /// Waits for a connection's next turn; `None` when no further request may start.
    async fn turn(&self, turns: &mut Turns) -> Option<Turn> {
        let mut due = Instant::now();
        if let Some(at) = turns.next() {
            if at >= self.end {
                sleep_until(self.end).await;
                return None;
            }
            if at < due {
                due = at;
            } else {
                sleep_until(at).await;
                due = Instant::now();
            }
        }
        self.may_start().then(|| {
            self.started.set(self.started.get() + 1);
            Turn { id: self.started.get(), due }
        })
    }

    /// A request's whole response came back, with its id.
    fn answered(&self, turn: Turn) {
        let mut tally = self.tally.borrow_mut();
        tally.requests += 1;
        tally.responses += 1;
        let took_ns = u64::try_from(turn.due.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.took_ns.borrow_mut().push(took_ns);
    }

    /// The server spoke without being asked.
    fn greeted(&self) {
        self.tally.borrow_mut().responses += 1;
    }

    fn failed(&self, error: &anyhow::Error) {
        let mut tally = self.tally.borrow_mut();
        tally.errors += 1;
        tally.first_error.get_or_insert_with(|| format!("{error:#}"));
    }
}

/// What `step` comes to, unless it takes too long.
async fn in_time<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, step).await.with_context(|| format!("nothing within {} s", PATIENCE.as_secs()))?
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
