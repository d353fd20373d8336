//! TCP on tokio's multi-threaded runtime: a task goes on wherever a worker is free, so a message may be read by one
//! thread and the next one of the same connection by another.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

/// Forwards with `tokio::io::copy_bidirectional`.
///
/// # Errors
/// When the runtime cannot be made or connections not be accepted.
pub fn run(listener: TcpListener, upstream: SocketAddr, workers: usize) -> Result<()> {
    super::serve(listener, workers, move |client| forward(client, upstream))
}

async fn forward(mut client: TcpStream, upstream: SocketAddr) -> Result<()> {
    let mut server = connect(upstream).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// A connection to the server, without Nagle's algorithm.
pub(super) async fn connect(upstream: SocketAddr) -> Result<TcpStream> {
    let server =
        TcpStream::connect(upstream).await.with_context(|| format!("cannot connect to {upstream}"))?;
    server.set_nodelay(true)?;
    Ok(server)
}
