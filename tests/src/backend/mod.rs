//! The server behind the proxy: answers every request with its id. One module for each family of protocols.

mod http1;
mod http2;
mod tcp;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;

use crate::listener;
use crate::protocol::Protocol;

/// What is done with every connection, by family of protocols.
enum Server {
    Http1(http1::Server),
    Http2,
    Tcp(tcp::Server),
}

/// Serves on this thread until the process ends. `listening` is called once, with the address in use, when
/// connections are accepted.
///
/// # Errors
/// When the address cannot be listened on or the event loop cannot be made. A
/// connection that fails ends alone.
pub fn run(
    listen: SocketAddr,
    protocol: Protocol,
    listening: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let server = Rc::new(Server::new(protocol));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        // One process is all of the servers.
        let several = protocol == Protocol::H1Hosts;
        let any = if listen.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let listen = if several { SocketAddr::new(any, listen.port()) } else { listen };
        let listener =
            listener::listen(listen).with_context(|| format!("the backend cannot listen on {listen}"))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        listening(listener.local_addr()?)?;
        loop {
            let (stream, peer) = listener.accept().await.context("the backend cannot accept connections")?;
            stream.set_nodelay(true)?;
            let server = Rc::clone(&server);
            tokio::task::spawn_local(async move {
                let served = match &*server {
                    Server::Http1(server) => server.serve(stream).await,
                    Server::Http2 => http2::serve(stream).await,
                    Server::Tcp(server) => server.serve(stream).await,
                };
                if let Err(error) = served {
                    eprintln!("backend: the connection from {peer} ended: {error:#}");
                }
            });
        }
    })
}

impl Server {
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
            | Protocol::MtlsH2 => Self::Http1(http1::Server::new(protocol)),
            Protocol::Tcp | Protocol::TcpServerFirst => Self::Tcp(tcp::Server::new(protocol)),
            Protocol::H2(_) | Protocol::Grpc(_) => Self::Http2,
        }
    }
}
