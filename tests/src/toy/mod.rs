//! Proxies of the bed's own, each a way to do I/O that the known proxies do not have.
//!
//! Each takes a socket that listens already and forwards until its process ends; a connection that fails ends alone.

pub mod blocking;
pub mod http;
pub mod io_uring;
pub mod splice;
pub mod tcp;

use std::net::TcpListener;

use anyhow::{Context as _, Result};
use tokio::net::TcpStream;

/// Accepts connections on a multi-threaded runtime with so many worker threads, and gives each a task.
///
/// Nothing runs beside the workers: accepting is a task like any other.
fn serve<F>(
    listener: TcpListener,
    workers: usize,
    connection: impl Fn(TcpStream) -> F + Send + 'static,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    runtime.block_on(runtime.spawn(accept(listener, connection)))?
}

async fn accept<F>(listener: TcpListener, connection: impl Fn(TcpStream) -> F + Send) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (client, peer) = listener.accept().await.context("cannot accept connections")?;
        client.set_nodelay(true)?;
        let served = connection(client);
        tokio::spawn(async move {
            if let Err(error) = served.await {
                eprintln!("the connection from {peer} ended: {error:#}");
            }
        });
    }
}
