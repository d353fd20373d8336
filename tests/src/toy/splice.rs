//! TCP whose bytes never enter the process: `splice` moves them from socket to pipe to socket.

use std::io;
use std::net::{SocketAddr, TcpListener};

use anyhow::Result;
use rustix::net::{Shutdown, shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::tcp::connect;

/// Asked for at once, bytes: what a pipe holds.
const LARGEST_MOVE_BYTES: usize = 64 * 1024;

/// Forwards on a multi-threaded runtime.
///
/// # Errors
/// When the runtime cannot be made or connections not be accepted.
pub fn run(listener: TcpListener, upstream: SocketAddr, workers: usize) -> Result<()> {
    super::serve(listener, workers, move |client| forward(client, upstream))
}

async fn forward(client: TcpStream, upstream: SocketAddr) -> Result<()> {
    let server = connect(upstream).await?;
    tokio::try_join!(copy(&client, &server), copy(&server, &client))?;
    Ok(())
}

/// Moves bytes until the end of the stream, and passes the end on.
async fn copy(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        // The pipe is empty here, so what would block is the socket.
        let fill = || Ok(splice(from, None, &writer, None, LARGEST_MOVE_BYTES, flags)?);
        let mut held = from.async_io(Interest::READABLE, fill).await?;
        if held == 0 {
            return Ok(shutdown(to, Shutdown::Write)?);
        }
        while held > 0 {
            let drain = || Ok(splice(&reader, None, to, None, held, flags)?);
            held -= to.async_io(Interest::WRITABLE, drain).await?;
        }
    }
}
