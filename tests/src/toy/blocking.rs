//! TCP by threads that block: two for each connection, one for each direction.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result};

/// Read at once, bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// Forwards; the caller's thread accepts.
///
/// # Errors
/// When connections cannot be accepted or threads not be started.
pub fn run(listener: &TcpListener, upstream: SocketAddr) -> Result<()> {
    loop {
        let (client, peer) = listener.accept().context("cannot accept connections")?;
        let serve = move || {
            if let Err(error) = forward(&client, upstream) {
                eprintln!("the connection from {peer} ended: {error:#}");
            }
        };
        thread::Builder::new().name("request".into()).spawn(serve)?;
    }
}

fn forward(client: &TcpStream, upstream: SocketAddr) -> Result<()> {
    let server = &TcpStream::connect(upstream).with_context(|| format!("cannot connect to {upstream}"))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    thread::scope(|scope| {
        let responses =
            thread::Builder::new().name("response".into()).spawn_scoped(scope, || copy(server, client))?;
        let requests = copy(client, server);
        let responses = responses.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(requests.and(responses)?)
    })
}

/// Copies until the end of the stream, and passes the end on; a failure ends both directions.
///
/// `std::io::copy` would splice.
fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut bytes = vec![0; BUFFER_BYTES];
    let mut copy_all = || loop {
        match from.read(&mut bytes)? {
            0 => return to.shutdown(Shutdown::Write),
            count => to.write_all(&bytes[..count])?,
        }
    };
    let copied = copy_all();
    if copied.is_err() {
        // The other direction is in a call that only this wakes. A socket that is closed already wakes it as well.
        from.shutdown(Shutdown::Both).or_else(|_closed| to.shutdown(Shutdown::Both)).ok();
    }
    copied
}
