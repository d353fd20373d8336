//! TCP through `io_uring` alone: accept, connect, receive and send are entries of a ring; no socket call is made and
//! nothing is polled.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context as _, Result};
use compio::net::TcpStream;
use compio::runtime::Runtime;

/// Forwards on so many threads, each with a ring of its own; all of them accept.
///
/// # Errors
/// When the kernel has no `io_uring` for us or connections cannot be accepted.
pub fn run(listener: &TcpListener, upstream: SocketAddr, workers: usize) -> Result<()> {
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..workers {
            let listener = listener.try_clone()?;
            let work = move || Runtime::new()?.block_on(accept(listener, upstream));
            let name = format!("ring-{number}");
            threads.push(thread::Builder::new().name(name).spawn_scoped(scope, work)?);
        }
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener, upstream: SocketAddr) -> Result<()> {
    let listener = compio::net::TcpListener::from_std(listener)?;
    loop {
        let (client, peer) = listener.accept().await.context("cannot accept connections")?;
        let serve = async move {
            if let Err(error) = forward(client, upstream).await {
                eprintln!("the connection from {peer} ended: {error:#}");
            }
        };
        compio::runtime::spawn(serve).detach();
    }
}

async fn forward(client: TcpStream, upstream: SocketAddr) -> Result<()> {
    let server =
        TcpStream::connect(upstream).await.with_context(|| format!("cannot connect to {upstream}"))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    tokio::try_join!(pass(&client, &server), pass(&server, &client))?;
    Ok(())
}

/// Copies until the end of the stream, and passes the end on.
async fn pass(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<u64> {
    compio::io::copy(&mut from, &mut to).await
}
