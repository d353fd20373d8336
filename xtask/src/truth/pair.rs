//! Load through two proxies with mutual TLS between them; each is judged by the packets on its own two sides.

use std::fs;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use bed::capture::{Capture, Vantage};
use bed::netns::PairBed;
use bed::protocol::Protocol;
use bed::proxy::Pair;
use bed::wire::{Carried, Sides, Wire};

use super::cell::{self, End, Programs, Seen, SeenProxy};
use super::matrix::Cell;

/// Runs the load with everything beside it. Both captures are decrypted with the keys that the server's proxy logged.
pub(super) fn observe(programs: &Programs, cell: &Cell, dir: &Path) -> Result<Seen> {
    let family = cell.family;
    let (listen, between, upstream) = (
        PairBed::client_proxy_address(family),
        PairBed::server_proxy_address(family),
        PairBed::server_address(family),
    );
    let bed = PairBed::new()?;
    cell::await_family(family, &[&bed.client, &bed.client_proxy, &bed.server_proxy, &bed.server])?;
    let backend = programs.backend(cell, &bed.server, upstream, dir)?;
    let pair = Pair::start(cell.proxy, cell.workers, cell.protocol, &bed, family, &dir.join("proxy"))?;
    let capture = |name: &str, netns, listen_port, upstream_port| {
        let dir = dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Capture::start(Vantage { netns, listen_port, upstream_port }, true, &dir)
    };
    let client_capture = capture("client-capture", &bed.client_proxy, listen.port(), between.port())?;
    let server_capture = capture("server-capture", &bed.server_proxy, between.port(), upstream.port())?;
    let (client, server) = (pair.client.pid(), pair.server.pid());
    let load = programs.load(cell, &bed.client, listen, &[client, server], dir)?;
    let (client_captured, server_captured) = (client_capture.stop()?, server_capture.stop()?);
    let keys = Rc::new(pair.stop()?);
    backend.stop()?;
    drop(bed);

    let inside = if cell.protocol == Protocol::MtlsH2 { Carried::Http2 } else { Carried::Http1 };
    let tls = Carried::Tls(keys, Box::new(inside));
    let client_wire = Wire::of_sides(Sides { downstream: Carried::Http1, upstream: tls.clone() });
    let server_wire = Wire::of_sides(Sides { downstream: tls, upstream: Carried::Http1 });
    Ok(Seen {
        load,
        proxies: vec![
            SeenProxy { end: Some(End::Client), pid: client, wire: client_captured.read(client_wire)? },
            SeenProxy { end: Some(End::Server), pid: server, wire: server_captured.read(server_wire)? },
        ],
    })
}
