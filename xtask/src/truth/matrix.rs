//! Which combinations are measured.

use std::fmt;
use std::time::Duration;

use bed::netns::Family;
use bed::protocol::Protocol;
use bed::proxy::ProxyKind;

/// Connections of the closed-loop cells of the whole matrix.
const CONNECTIONS: [u32; 4] = [1, 16, 64, 256];
/// Connections of its open-loop cells.
const OPEN_LOOP_CONNECTIONS: u32 = 16;
/// Requests a second of its open-loop cells, unless their bodies are too long for that.
const OPEN_LOOP_RATE: f64 = 2_000.0;
/// No open-loop cell sends more a second each way: more would be a closed loop in this bed.
const OPEN_LOOP_BYTES: f64 = 64e6;
/// Workers of its open-loop cells, where the proxy can have several.
const OPEN_LOOP_WORKERS: u32 = 2;

/// No cell makes a proxy open more connections to its server: 25,600 at once (nginx, 256 clients with 100 streams each) took
/// two processors longer than 5 s to open.
const MOST_CONNECTIONS: u32 = 8192;

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Which proxy.
    pub proxy: ProxyKind,
    /// Its threads or processes.
    pub workers: u32,
    /// What it carries.
    pub protocol: Protocol,
    /// Connections kept busy.
    pub connections: u32,
    /// Requests a second (open loop); without it, as fast as the responses come (closed loop).
    pub rate: Option<f64>,
    /// How long.
    pub duration: Duration,
    /// Over which Internet protocol.
    pub family: Family,
}

/// What the cells of a matrix are made of.
#[derive(Clone, Debug)]
pub struct Axes {
    /// Which proxies.
    pub proxies: Vec<ProxyKind>,
    /// Which protocols; a proxy gets those it speaks.
    pub protocols: Vec<Protocol>,
    /// How many connections; empty for those of the whole matrix.
    pub connections: Vec<u32>,
    /// How many workers; empty for those in which the proxy differs.
    pub workers: Vec<u32>,
    /// As in [`Cell::rate`].
    pub rate: Option<f64>,
    /// Of each cell.
    pub duration: Duration,
    /// Of every cell.
    pub family: Family,
}

impl Axes {
    /// Every combination of proxy, protocol, workers and connections that can be.
    pub fn product(&self) -> Vec<Cell> {
        self.pairs().flat_map(|(proxy, protocol)| self.of(proxy, protocol)).collect()
    }

    /// The whole matrix: the product in a closed loop, and one cell in an open loop for each proxy and protocol.
    pub fn whole(&self) -> Vec<Cell> {
        let closed = Self { rate: None, ..self.clone() };
        let cells = self.pairs().flat_map(|(proxy, protocol)| {
            let workers = self.workers(proxy);
            let open = Cell {
                proxy,
                protocol,
                workers: *workers.iter().find(|&&count| count == OPEN_LOOP_WORKERS).unwrap_or(&workers[0]),
                connections: OPEN_LOOP_CONNECTIONS,
                rate: Some(self.rate.unwrap_or_else(|| open_loop_rate(protocol))),
                duration: self.duration,
                family: self.family,
            };
            let mut cells = closed.of(proxy, protocol);
            cells.push(open);
            cells
        });
        cells.collect()
    }

    fn pairs(&self) -> impl Iterator<Item = (ProxyKind, Protocol)> {
        let speaking = |&proxy: &ProxyKind| {
            let protocols = self.protocols.iter().copied();
            protocols.filter(move |&protocol| proxy.speaks(protocol)).map(move |protocol| (proxy, protocol))
        };
        self.proxies.iter().flat_map(speaking)
    }

    fn of(&self, proxy: ProxyKind, protocol: Protocol) -> Vec<Cell> {
        let connections = if self.connections.is_empty() { &CONNECTIONS[..] } else { &self.connections };
        let (rate, duration, family) = (self.rate, self.duration, self.family);
        let mut cells = Vec::new();
        for &workers in self.workers(proxy) {
            for &connections in connections {
                if proxy.servers_connections(protocol, connections) <= MOST_CONNECTIONS {
                    cells.push(Cell { proxy, workers, protocol, connections, rate, duration, family });
                }
            }
        }
        cells
    }

    fn workers(&self, proxy: ProxyKind) -> &[u32] {
        if self.workers.is_empty() { proxy.worker_counts() } else { &self.workers }
    }
}

fn open_loop_rate(protocol: Protocol) -> f64 {
    OPEN_LOOP_RATE.min(OPEN_LOOP_BYTES / bed::http::body_bytes(protocol) as f64).floor()
}

impl Cell {
    /// How its load is shown: the connections, and the rate where there is one.
    pub fn load(&self) -> String {
        self.rate.map_or_else(|| self.connections.to_string(), |rate| format!("{}@{rate}", self.connections))
    }

    /// The name of its folder.
    pub fn folder(&self) -> String {
        format!("{}-{}-{}-{}", self.proxy, self.workers, self.protocol, self.load())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { proxy, workers, protocol, connections, .. } = self;
        write!(formatter, "{proxy}, {workers} workers, {protocol}, {connections} connections")?;
        self.rate.map_or(Ok(()), |rate| write!(formatter, ", {rate} requests/s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(proxies: &[ProxyKind], protocols: &[Protocol]) -> Axes {
        Axes {
            proxies: proxies.to_vec(),
            protocols: protocols.to_vec(),
            connections: Vec::new(),
            workers: Vec::new(),
            rate: None,
            duration: Duration::from_secs(3),
            family: Family::V4,
        }
    }

    #[test]
    fn the_whole_matrix_has_each_proxy_with_what_it_speaks() {
        let cells = axes(&ProxyKind::ALL, &Protocol::ALL).whole();
        assert!(cells.iter().all(|cell| cell.proxy.speaks(cell.protocol)));
        let of = |proxy, protocol| -> Vec<_> {
            let fitting = cells.iter().filter(|cell| cell.proxy == proxy && cell.protocol == protocol);
            fitting.map(|cell| (cell.workers, cell.load())).collect()
        };
        let envoy = of(ProxyKind::Envoy, Protocol::H1);
        assert_eq!(envoy.len(), 3 * 4 + 1);
        assert_eq!((envoy[0].clone(), envoy[12].clone()), ((1, "1".into()), (2, "16@2000".into())));
        let many = of(ProxyKind::Nginx, Protocol::Grpc(100));
        assert_eq!(many.iter().filter(|(workers, _)| *workers == 1).count(), 3, "{many:?}");
        assert_eq!(of(ProxyKind::Splice, Protocol::H1), []);
        assert_eq!(of(ProxyKind::Blocking, Protocol::Tcp).last(), Some(&(1, "16@2000".into())));
        assert_eq!(of(ProxyKind::Nginx, Protocol::H1Body(1 << 20)).last(), Some(&(2, "16@61".into())));
        let mut folders: Vec<_> = cells.iter().map(Cell::folder).collect();
        folders.sort_unstable();
        folders.dedup();
        assert_eq!(folders.len(), cells.len());
    }

    #[test]
    fn what_is_given_replaces_the_axis() {
        let mut axes = axes(&[ProxyKind::Envoy, ProxyKind::Splice], &[Protocol::Tcp, Protocol::H1]);
        axes.workers = vec![3];
        axes.connections = vec![5, 6];
        axes.rate = Some(10.0);
        let names: Vec<_> = axes.product().iter().map(Cell::folder).collect();
        let expected = ["envoy-3-tcp-5@10", "envoy-3-tcp-6@10", "envoy-3-h1-5@10", "envoy-3-h1-6@10"];
        assert_eq!(names[..4], expected);
        assert_eq!(names[4..], ["splice-3-tcp-5@10", "splice-3-tcp-6@10"]);
        assert_eq!(axes.product()[0].to_string(), "envoy, 3 workers, tcp, 5 connections, 10 requests/s");
    }
}
