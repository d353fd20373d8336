//! The connections a lane has opened, and what is foreseen of the next request of each.
//!
//! Two habits make a write's cause known before it happens, whatever order a proxy writes in:
//!
//! - a pool hands out the connection that was given back last. So connections that have brought their response
//!   lie on a stack, and a request takes the uppermost when it is read;
//! - a tunnel keeps its two connections together. So a request is foreseen on the connection that brought the
//!   response before it.
//!
//! Nothing here is certain: a connection that is written on without being foreseen leaves the stack, and whether the
//! habits are a proxy's own is counted in [`Order`](crate::order::Order).

use crate::word::Word;

/// Connections one lane can remember; the oldest are forgotten first.
pub const UPSTREAMS: usize = 512;

/// How many connections that have closed are passed over in search of a free one.
const POP_STEPS: usize = 4;

/// One opened connection. Its name is its place in the lane's history, never 0.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Upstream<W> {
    name: W,
    /// Names of its neighbours on the stack, 0 where there is none.
    above: W,
    pub(crate) below: W,
    /// 1 while it lies on the stack.
    free: W,
    /// 1 from when it closed. Any CPU may set it.
    pub(crate) closed: W,
    /// Tag of the request that took it off the stack.
    pub(crate) pooled: W,
    /// Tag of the request that it was opened for.
    pub(crate) opened_for: W,
    /// 1 until its first write if nothing is known that it was opened for.
    pub(crate) unasked: W,
    /// 1 once a second request was written to it.
    pub(crate) reused: W,
    /// Tag of the request that came from where its last response went.
    pub(crate) usual: W,
    /// Tag of its latest response.
    pub(crate) response: W,
    /// Tag of the request that was written to it last.
    pub(crate) carries: W,
    /// 1 if that was not the first message of its request to a server.
    pub(crate) again: W,
    /// Tag of the latest request written to it where that came from has been written to since.
    pub(crate) served: W,
    /// While that waits for its response: the position behind the turn it is from, as another one of that turn may
    /// have been meant; [`NOWHERE`] if whoever asked has gone. 0 while nothing waits.
    pub(crate) asked: W,
    /// What is held of its first request, in the order of [`Held`].
    held: [W; 5],
}

/// A request that was written to a connection of which it is not clear yet with what it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Held {
    /// When it arrived, ns; 0 when that was not seen.
    pub arrival_ns: u64,
    /// When it was read, ns.
    pub read_ns: u64,
    /// When it was written, ns.
    pub write_ns: u64,
    /// When it left, ns; 0 if it has not yet.
    pub departure_ns: u64,
    /// `CLASS_*` of it.
    pub class: u32,
}

/// What a connection says that it was asked for when its response will go nowhere.
pub(crate) const NOWHERE: u64 = u64::MAX;

/// The connections of one lane.
#[derive(Debug)]
#[repr(C)]
pub struct Upstreams<W> {
    /// How many there have been.
    joined: W,
    /// Name of the one given back last; 0 if none is free.
    pub(crate) top: W,
    places: [Upstream<W>; UPSTREAMS],
}

impl<W: Word> Upstreams<W> {
    /// A name for one more connection.
    #[inline(always)]
    pub fn join(&self) -> u64 {
        let name = self.joined.fetch_add(1) + 1;
        let place = &self.places[name as usize % UPSTREAMS];
        place.name.store(name);
        for word in [
            &place.above,
            &place.below,
            &place.free,
            &place.closed,
            &place.pooled,
            &place.opened_for,
            &place.unasked,
            &place.reused,
            &place.usual,
            &place.response,
            &place.carries,
            &place.again,
            &place.served,
            &place.asked,
            &place.held[4],
        ] {
            word.store(0);
        }
        name
    }

    /// The connection of that name, if it is remembered.
    #[inline(always)]
    pub(crate) fn get(&self, name: u64) -> Option<&Upstream<W>> {
        let place = &self.places[name as usize % UPSTREAMS];
        (name != 0 && place.name.load() == name).then_some(place)
    }

    /// Says that the connection has closed: no request will take it. Returns it the first time.
    #[inline(always)]
    pub(crate) fn close(&self, name: u64) -> Option<&Upstream<W>> {
        self.get(name).filter(|place| place.closed.swap_if(0, 1))
    }

    /// Puts it on top of the stack: its response has come.
    #[inline(always)]
    pub(crate) fn give_back(&self, name: u64) {
        self.take(name);
        let Some(place) = self.get(name) else { return };
        let top = self.top.load();
        if let Some(under) = self.get(top) {
            under.above.store(name);
        }
        place.below.store(top);
        place.above.store(0);
        place.free.store(1);
        self.top.store(name);
    }

    /// Puts it on the stack below the connection `over`; on top if that is none.
    #[inline(always)]
    pub(crate) fn give_back_below(&self, name: u64, over: u64) {
        let Some(upper) = self.get(over).filter(|_| over != name) else { return self.give_back(name) };
        self.take(name);
        let Some(place) = self.get(name) else { return };
        let below = upper.below.load();
        if let Some(under) = self.get(below) {
            under.above.store(name);
        }
        upper.below.store(name);
        place.above.store(over);
        place.below.store(below);
        place.free.store(1);
    }

    /// Takes it off the stack, wherever it lies.
    #[inline(always)]
    pub(crate) fn take(&self, name: u64) {
        let Some(place) = self.get(name) else { return };
        if place.free.load() == 0 {
            return;
        }
        place.free.store(0);
        let (above, below) = (place.above.load(), place.below.load());
        match self.get(above) {
            Some(over) => over.below.store(below),
            None => self.top.store(below),
        }
        if let Some(under) = self.get(below) {
            under.above.store(above);
        }
    }

    /// Takes the uppermost that is open; its name, or 0.
    #[inline(always)]
    pub(crate) fn pop(&self) -> u64 {
        for _ in 0..POP_STEPS {
            let name = self.top.load();
            let Some(place) = self.get(name) else { return 0 };
            self.take(name);
            if place.closed.load() == 0 {
                return name;
            }
        }
        0
    }

    /// Holds what was written to the connection of that name. False if it is not remembered.
    #[inline(always)]
    pub fn hold(&self, name: u64, held: Held) -> bool {
        let Some(place) = self.get(name) else { return false };
        let [arrival, read, write, departure, class] = &place.held;
        arrival.store(held.arrival_ns);
        read.store(held.read_ns);
        write.store(held.write_ns);
        departure.store(held.departure_ns);
        class.store(u64::from(held.class));
        true
    }

    /// Says when what is held of the connection of that name has left.
    #[inline(always)]
    pub fn depart(&self, name: u64, departure_ns: u64) {
        if let Some(place) = self.get(name) {
            place.held[3].store(departure_ns);
        }
    }

    /// Whether something is held of the connection of that name.
    #[inline(always)]
    pub fn holds(&self, name: u64) -> bool {
        self.get(name).is_some_and(|place| place.held[4].load() != 0)
    }

    /// Hands out what is held of the connection of that name, once, whichever CPUs ask.
    #[inline(always)]
    pub fn release(&self, name: u64) -> Option<Held> {
        let place = self.get(name)?;
        let [arrival, read, write, departure, class] = &place.held;
        let held = Held {
            arrival_ns: arrival.load(),
            read_ns: read.load(),
            write_ns: write.load(),
            departure_ns: departure.load(),
            class: class.load() as u32,
        };
        (held.class != 0 && class.swap_if(u64::from(held.class), 0)).then_some(held)
    }

    /// The name of the connection that is forgotten when the next one joins; what is held of it is to be released
    /// before. 0 if there is none.
    #[inline(always)]
    pub fn oldest(&self) -> u64 {
        self.places[(self.joined.load() + 1) as usize % UPSTREAMS].name.load()
    }

    /// Forgets all of them.
    #[inline(always)]
    pub(crate) fn clear(&self) {
        self.top.store(0);
        // The names of the forgotten are skipped, so none of them is taken for a later one.
        self.joined.add(UPSTREAMS as u64);
    }
}

#[cfg(test)]
pub(crate) mod tests;
