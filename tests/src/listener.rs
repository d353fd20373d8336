//! Sockets that take as many connections at once as those of servers and proxies in use.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Connections that wait to be accepted: as many as the kernel lets wait, which Go's and gRPC's servers ask for.
///
/// nginx opens a connection for each call under way. Beyond the backlog a client tries again after 1 s, or gets a SYN
/// cookie: then the kernel remembers nothing of it. When such a client's first segment finds no place but its second
/// does, that one fits no cookie, and the kernel resets the connection.
const BACKLOG: i32 = 4096;

/// Listens. The standard library and tokio let 128 wait.
///
/// # Errors
/// When the address cannot be listened on.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::Duration;

    use super::listen;

    #[test]
    fn more_connections_wait_than_the_standard_library_lets() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let waiting: Result<Vec<_>, _> =
            (0..256).map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(1))).collect();
        assert!(waiting.is_ok(), "{waiting:?}");
    }
}
