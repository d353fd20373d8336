//! The server behind the proxy: answers HTTP/1.1 with a small body and the request's id, or echoes raw bytes.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::http;

/// What the server says.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// HTTP/1.1: status 200, the request's id, and this many bytes of body.
    Http {
        /// Length of every response's body.
        body_bytes: usize,
    },
    /// Whatever was received.
    Echo,
}

/// Serves on this thread until the process ends. `listening` is called once, with the address in use, when
/// connections are accepted.
///
/// # Errors
/// When the address cannot be listened on or the event loop cannot be made. A connection that fails ends alone.
pub fn run(
    listen: SocketAddr,
    answer: Answer,
    listening: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("the backend cannot listen on {listen}"))?;
        listening(listener.local_addr()?)?;
        loop {
            let (stream, peer) = listener.accept().await.context("the backend cannot accept connections")?;
            tokio::spawn(async move {
                let served = match answer {
                    Answer::Http { body_bytes } => serve_http(stream, body_bytes).await,
                    Answer::Echo => serve_echo(stream).await,
                };
                if let Err(error) = served {
                    eprintln!("backend: the connection from {peer} ended: {error:#}");
                }
            });
        }
    })
}

async fn serve_http(mut stream: TcpStream, body_bytes: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::with_capacity(4096);
    let mut response = Vec::with_capacity(256 + body_bytes);
    loop {
        let Some(head) = http::request_head(&received)? else {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let whole = head.head_bytes + head.body_bytes;
        while received.len() < whole {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
        received.drain(..whole);
        response.clear();
        // The id comes first so that a short snap length still holds it after a proxy put its headers in front.
        response.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        if let Some(id) = head.id {
            response.extend_from_slice(format!("{}: {id:016x}\r\n", http::ID_HEADER).as_bytes());
        }
        let kept = if head.keep_alive { "keep-alive" } else { "close" };
        response.extend_from_slice(
            format!("content-length: {body_bytes}\r\nconnection: {kept}\r\n\r\n").as_bytes(),
        );
        response.resize(response.len() + body_bytes, b'.');
        stream.write_all(&response).await?;
        if !head.keep_alive {
            return Ok(());
        }
    }
}

async fn serve_echo(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = stream.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&bytes[..count]).await?;
    }
}
