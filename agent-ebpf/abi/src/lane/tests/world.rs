//! A whole proxy on the [`Kernel`]: clients and servers that come and go, answers of the proxy's own, calls that carry
//! nothing on.

use super::kernel::{Id, Kernel, Tag, Written};
use super::*;
use std::collections::BTreeMap;

/// When a proxy writes what it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timing {
    /// At once, before it reads the next socket: nginx.
    AtOnce,
    /// When all that was ready is read: `HAProxy`.
    SameTurn,
    /// When the loop comes round: Envoy.
    NextTurn,
}

/// In which order it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writes {
    AsRead,
    Shuffled,
}

/// Which free upstream connection a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// The one given back last.
    Stack,
    /// That of its downstream connection.
    Own,
    /// The one given back first.
    Queue,
}

/// What happens to so many of a thousand messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Churn {
    /// The proxy answers itself.
    pub local: usize,
    /// The client leaves while its request is at the server, whose connection is closed too; another comes.
    pub abort: usize,
    /// The client leaves while its request is at the server; the response is read and dropped.
    pub dropped: usize,
    /// The server's connection is closed when its response is read, before that is written.
    pub close: usize,
    /// The proxy sends a request of its own, whose response goes nowhere.
    pub probe: usize,
    /// A copy of the request goes to a server of its own, the response to which goes nowhere.
    pub copy: usize,
    /// Another server is asked first, and the request goes on when that has answered.
    pub ask: usize,
    /// A message is written one turn late.
    pub late: usize,
    /// A message comes, and goes on, in two parts.
    pub parts: usize,
    /// The rest of a message comes later, and only then it goes on.
    pub rest: usize,
    /// A message is written by another thread than that which has read it.
    pub handed: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub timing: Timing,
    pub writes: Writes,
    pub pool: Pool,
    pub clients: usize,
    pub threads: usize,
    pub churn: Churn,
}

#[derive(Clone, Copy)]
enum Event {
    Request(usize),
    /// To the client of this number, if that is still the same connection.
    Response(Id, usize, Id),
    Probed(Id),
    Copied(Id),
    /// The request of the client of this number may go on.
    Allowed(Id, usize),
}

/// What is to be written on a socket, with its cause and when that was read.
#[derive(Clone, Copy)]
enum Work {
    Forward(usize, Option<(Tag, u64)>),
    Answer(usize, Option<(Tag, u64)>),
    Local(usize),
    Probe(Id),
    /// Asks for the client of this number whether its request may go on.
    Ask(usize, Id, Option<(Tag, u64)>),
    /// Lets it go on.
    GoOn(usize),
}

pub(super) struct World {
    pub kernel: Kernel,
    pub plan: Plan,
    random: Random,
    now_ns: u64,
    clients: Vec<Id>,
    /// Free connections, and to which client each belongs.
    free: VecDeque<Id>,
    own: HashMap<Id, usize>,
    /// By time, then by number.
    events: BTreeMap<(u64, u64), Event>,
    number: u64,
    work: Vec<Vec<Work>>,
    idle: bool,
    /// A free connection chosen when the request was read.
    chosen: HashMap<usize, Id>,
    /// Free connections to the server of copies.
    copies: Vec<Id>,
    /// Free connections to the server that is asked first.
    askers: Vec<Id>,
    /// What was read of messages whose rest is to come.
    begun: HashMap<Id, Option<(Tag, u64)>>,
    pub right: [u64; 2],
    pub wrong: [u64; 2],
    /// Answers of the proxy's own.
    pub local: u64,
    /// Requests that went on behind another one.
    pub gone_on: u64,
    /// How long messages were inside, ns: in truth and as found.
    pub truth_ns: Vec<u64>,
    pub found_ns: Vec<u64>,
}

impl World {
    pub fn new(plan: Plan, seed: u64) -> Self {
        let mut kernel = Kernel::new(plan.threads > 1);
        let clients = (0..plan.clients).map(|_| kernel.accept()).collect();
        let mut world = Self {
            kernel,
            plan,
            random: Random(seed | 1),
            now_ns: 1_000_000,
            clients,
            free: VecDeque::new(),
            own: HashMap::new(),
            events: BTreeMap::new(),
            number: 0,
            work: std::vec![Vec::new(); plan.threads],
            idle: false,
            chosen: HashMap::new(),
            copies: Vec::new(),
            askers: Vec::new(),
            gone_on: 0,
            begun: HashMap::new(),
            right: [0; 2],
            wrong: [0; 2],
            local: 0,
            truth_ns: Vec::new(),
            found_ns: Vec::new(),
        };
        (0..plan.clients).for_each(|client| world.later(20_000, Event::Request(client)));
        world
    }

    /// Forgets what was measured so far.
    pub fn forget(&mut self) {
        (self.right, self.wrong) = ([0; 2], [0; 2]);
        self.truth_ns.clear();
        self.found_ns.clear();
    }

    /// The share of right pairs by direction.
    pub fn shares(&self) -> [f64; 2] {
        [REQUEST, RESPONSE].map(|direction| {
            self.right[direction] as f64 / (self.right[direction] + self.wrong[direction]).max(1) as f64
        })
    }

    pub fn run(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn();
        }
        self.kernel.check();
    }

    /// Lets all that is under way come to its end; nobody asks anew until [`World::wake`].
    pub fn settle(&mut self) {
        self.idle = true;
        while !self.events.is_empty() || self.work.iter().any(|work| !work.is_empty()) {
            self.turn();
        }
        self.kernel.check();
    }

    pub fn wake(&mut self) {
        self.idle = false;
        (0..self.plan.clients).for_each(|client| self.later(20_000, Event::Request(client)));
    }

    fn chance(&mut self, per_mille: usize) -> bool {
        self.random.below(1000) < per_mille
    }

    fn later(&mut self, mean_ns: u64, event: Event) {
        let at_ns = self.now_ns + 1000 + self.random.below(2 * mean_ns as usize) as u64;
        self.number += 1;
        self.events.insert((at_ns, self.number), event);
    }

    fn turn(&mut self) {
        let thread = self.random.below(self.plan.threads);
        let mut writes = std::mem::take(&mut self.work[thread]);
        if let Some((&(at_ns, _), _)) = self.events.first_key_value()
            && at_ns > self.now_ns
            && self.work.iter().all(Vec::is_empty)
            && writes.is_empty()
        {
            self.now_ns = at_ns;
        }
        self.now_ns += 1000;
        let later = self.events.split_off(&(self.now_ns + 1, 0));
        let mut ready: Vec<_> = std::mem::replace(&mut self.events, later).into_iter().collect();
        // What one look at the sockets returns, the rest the next time: less where several threads look.
        let most = if self.plan.threads > 1 { 2 } else { 48 };
        for (at, event) in ready.drain(ready.len().min(most)..) {
            self.events.insert(at, event);
        }
        self.random.shuffle(&mut ready);
        let mut read = Vec::new();
        for ((at_ns, _), event) in ready {
            self.now_ns += 700;
            let Some(work) = self.read(thread, at_ns, event) else { continue };
            if self.plan.timing == Timing::AtOnce {
                self.write_or_leave(thread, work);
            } else {
                read.push(work);
            }
            if self.chance(self.plan.churn.probe) {
                let probe = Work::Probe(self.kernel.connect());
                self.write(thread, probe);
            }
        }
        if self.plan.timing == Timing::SameTurn {
            writes.append(&mut read);
        }
        if self.plan.writes == Writes::Shuffled {
            self.random.shuffle(&mut writes);
        }
        for work in writes {
            self.write_or_leave(thread, work);
        }
        self.work[thread].append(&mut read);
    }

    fn read(&mut self, thread: usize, arrival_ns: u64, event: Event) -> Option<Work> {
        let tid = thread as u32 + 1;
        let socket = match event {
            Event::Request(client) => self.clients[client],
            Event::Response(socket, ..)
            | Event::Probed(socket)
            | Event::Copied(socket)
            | Event::Allowed(socket, _) => socket,
        };
        let read_ns = self.now_ns;
        let tag = self.kernel.read(socket, tid, arrival_ns, read_ns);
        if self.chance(self.plan.churn.parts) {
            self.now_ns += 300;
            assert_eq!(self.kernel.read(socket, tid, self.now_ns, self.now_ns), None, "a continuation");
        }
        let mut cause = tag.map(|tag| (tag, read_ns));
        if let Some(begun) = self.begun.remove(&socket) {
            cause = begun;
        } else if !matches!(event, Event::Probed(_) | Event::Copied(_) | Event::Allowed(..))
            && self.chance(self.plan.churn.rest)
        {
            self.begun.insert(socket, cause);
            self.later(20_000, event);
            return None;
        }
        match event {
            Event::Request(client) if self.chance(self.plan.churn.local) => Some(Work::Local(client)),
            Event::Request(client) if self.chance(self.plan.churn.ask) => {
                let server = self.askers.pop().unwrap_or_else(|| self.kernel.connect());
                Some(Work::Ask(client, server, cause))
            }
            Event::Allowed(socket, client) => {
                self.askers.push(socket);
                self.choose(client);
                Some(Work::GoOn(client))
            }
            Event::Request(client) => {
                self.choose(client);
                Some(Work::Forward(client, cause))
            }
            Event::Response(socket, client, asker) => {
                if self.chance(self.plan.churn.close) {
                    self.kernel.close(socket);
                    self.own.remove(&socket);
                } else {
                    self.free.push_back(socket);
                }
                // Of a client that has left nothing is written.
                (self.clients[client] == asker).then_some(Work::Answer(client, cause))
            }
            Event::Probed(socket) => {
                self.kernel.close(socket);
                None
            }
            Event::Copied(socket) => {
                self.copies.push(socket);
                None
            }
        }
    }

    fn choose(&mut self, client: usize) {
        let free = match self.plan.pool {
            Pool::Stack => self.free.pop_back(),
            Pool::Queue => self.free.pop_front(),
            Pool::Own => {
                let place = self.free.iter().position(|id| self.own.get(id) == Some(&client));
                place.and_then(|place| self.free.remove(place))
            }
        };
        let upstream = free.unwrap_or_else(|| self.kernel.connect());
        self.own.insert(upstream, client);
        self.chosen.insert(client, upstream);
    }

    fn write_or_leave(&mut self, thread: usize, work: Work) {
        if self.plan.threads > 1 && self.chance(self.plan.churn.handed) {
            let other = self.random.below(self.plan.threads);
            self.work[other].push(work);
        } else if self.chance(self.plan.churn.late) {
            self.work[thread].push(work);
        } else {
            self.write(thread, work);
        }
    }

    fn write(&mut self, thread: usize, work: Work) {
        self.now_ns += 900;
        let socket = match work {
            Work::Forward(client, _) | Work::GoOn(client) => self.chosen[&client],
            Work::Answer(client, _) | Work::Local(client) => self.clients[client],
            Work::Probe(socket) | Work::Ask(_, socket, _) => socket,
        };
        let (tid, random) = (thread as u32 + 1, self.random.next() as u32);
        let written = self.kernel.write(socket, tid, random, self.now_ns);
        self.local += u64::from(matches!(work, Work::Local(_)));
        if !matches!(work, Work::Probe(_))
            && written != Written::Nothing
            && self.chance(self.plan.churn.parts)
        {
            self.now_ns += 300;
            assert_eq!(self.kernel.write(socket, tid, random, self.now_ns), Written::Continued);
        }
        match work {
            Work::Ask(client, server, cause) => {
                self.compare(cause, written);
                self.later(40_000, Event::Allowed(server, client));
            }
            Work::GoOn(client) => {
                self.gone_on += 1;
                self.later(40_000, Event::Response(socket, client, self.clients[client]));
            }
            Work::Forward(client, cause) => {
                self.compare(cause, written);
                if self.chance(self.plan.churn.copy) {
                    let copy = self.copies.pop().unwrap_or_else(|| self.kernel.connect());
                    self.now_ns += 900;
                    self.kernel.write(copy, tid, random, self.now_ns);
                    self.later(40_000, Event::Copied(copy));
                }
                let asker = self.clients[client];
                let abort = self.chance(self.plan.churn.abort);
                if abort {
                    self.kernel.close(socket);
                } else {
                    self.later(40_000, Event::Response(socket, client, asker));
                }
                if abort || self.chance(self.plan.churn.dropped) {
                    self.kernel.close(asker);
                    self.clients[client] = self.kernel.accept();
                    self.think(client);
                }
            }
            Work::Answer(client, cause) => {
                self.compare(cause, written);
                self.think(client);
            }
            Work::Local(client) => self.think(client),
            Work::Probe(socket) => self.later(40_000, Event::Probed(socket)),
        }
    }

    fn think(&mut self, client: usize) {
        if !self.idle {
            self.later(20_000, Event::Request(client));
        }
    }

    fn compare(&mut self, cause: Option<(Tag, u64)>, written: Written) {
        let Some((tag, read_ns)) = cause else { return };
        let found = match written {
            Written::Claimed(_, found_ns) => {
                self.truth_ns.push(self.now_ns - read_ns);
                self.found_ns.push(self.now_ns - found_ns);
                found_ns == read_ns
            }
            _ => false,
        };
        self.right[tag.0] += u64::from(found);
        self.wrong[tag.0] += u64::from(!found);
    }
}
