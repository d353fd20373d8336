//! What travels through a proxy in a test: the protocol, and the shape of the messages.

use std::fmt;
use std::str::FromStr;

/// Bytes of a body that a message carries where its protocol says no other size.
pub const SMALL_BODY_BYTES: usize = 64;

/// Under [`Protocol::H1Local`] the proxy answers one of so many requests itself.
const LOCAL_EVERY: u64 = 10;

/// What load generator, proxy and server speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1, connections kept, requests without a body.
    H1,
    /// HTTP/1.1, one connection for each request.
    H1Close,
    /// HTTP/1.1, connections kept, bodies of this many bytes each way, told by `content-length`.
    H1Body(usize),
    /// HTTP/1.1, connections kept, bodies of this many bytes each way, chunked.
    H1Chunked(usize),
    /// HTTP/1.1, several requests under way on each connection.
    H1Pipelined,
    /// As [`Protocol::H1`], and the proxy answers some requests itself: see [`Protocol::is_local`].
    H1Local,
    /// As [`Protocol::H1`], and the proxy asks the server every 10 ms whether it is there.
    H1Checked,
    /// As [`Protocol::H1`], and the proxy divides what it gets among several servers.
    H1Hosts,
    /// Raw bytes, echoed; the client speaks first.
    Tcp,
    /// Raw bytes; the server speaks first, then answers whatever it receives.
    TcpServerFirst,
    /// HTTP/2 without TLS, this many streams at a time on each connection.
    H2(u32),
    /// gRPC (unary calls) over HTTP/2 without TLS, this many streams at a time on each connection.
    Grpc(u32),
    /// Two proxies, each in a network namespace of its own, mutual TLS between them carrying HTTP/1.1; plain HTTP/1.1
    /// towards client and server.
    MtlsH1,
    /// As [`Protocol::MtlsH1`], with one connection between the two for each request.
    MtlsH1Close,
    /// As [`Protocol::MtlsH1`], with HTTP/2 between the two.
    MtlsH2,
}

impl Protocol {
    /// All that the truth matrix has.
    pub const ALL: [Self; 25] = [
        Self::H1,
        Self::H1Close,
        Self::H1Body(1),
        Self::H1Body(1 << 10),
        Self::H1Body(64 << 10),
        Self::H1Body(1 << 20),
        Self::H1Chunked(1),
        Self::H1Chunked(1 << 10),
        Self::H1Chunked(64 << 10),
        Self::H1Chunked(1 << 20),
        Self::H1Pipelined,
        Self::H1Local,
        Self::H1Checked,
        Self::H1Hosts,
        Self::Tcp,
        Self::TcpServerFirst,
        Self::H2(1),
        Self::H2(10),
        Self::H2(100),
        Self::Grpc(1),
        Self::Grpc(10),
        Self::Grpc(100),
        Self::MtlsH1,
        Self::MtlsH1Close,
        Self::MtlsH2,
    ];

    /// Whether it takes two proxies.
    pub const fn takes_two(self) -> bool {
        matches!(self, Self::MtlsH1 | Self::MtlsH1Close | Self::MtlsH2)
    }

    /// Whether the proxy itself answers the request with this id.
    pub const fn is_local(self, id: u64) -> bool {
        matches!(self, Self::H1Local) && id.is_multiple_of(LOCAL_EVERY)
    }

    /// How many requests the proxy itself answers, of those with ids from 1 to `requests`.
    pub const fn local(self, requests: u64) -> u64 {
        if matches!(self, Self::H1Local) { requests / LOCAL_EVERY } else { 0 }
    }

    /// Whether several messages can be under way on a connection at a time. With one stream on each of a client's
    /// connections as well: a proxy may put them together on one of its own.
    pub const fn multiplexes(self) -> bool {
        matches!(self, Self::H1Pipelined | Self::H2(_) | Self::Grpc(_) | Self::MtlsH2)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::H1 => "h1".to_owned(),
            Self::H1Close => "h1-close".to_owned(),
            Self::H1Body(bytes) => format!("h1-body-{bytes}"),
            Self::H1Chunked(bytes) => format!("h1-chunked-{bytes}"),
            Self::H1Pipelined => "h1-pipelined".to_owned(),
            Self::H1Local => "h1-local".to_owned(),
            Self::H1Checked => "h1-checked".to_owned(),
            Self::H1Hosts => "h1-hosts".to_owned(),
            Self::Tcp => "tcp".to_owned(),
            Self::TcpServerFirst => "tcp-server-first".to_owned(),
            Self::H2(streams) => format!("h2-{streams}"),
            Self::Grpc(streams) => format!("grpc-{streams}"),
            Self::MtlsH1 => "mtls-h1".to_owned(),
            Self::MtlsH1Close => "mtls-h1-close".to_owned(),
            Self::MtlsH2 => "mtls-h2".to_owned(),
        };
        formatter.pad(&name)
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let sized = |prefix| name.strip_prefix(prefix).and_then(|size: &str| size.parse::<u32>().ok());
        let streams = |prefix| sized(prefix).filter(|&streams| streams > 0);
        let protocol = match name {
            "h1" => Some(Self::H1),
            "h1-close" => Some(Self::H1Close),
            "h1-pipelined" => Some(Self::H1Pipelined),
            "h1-local" => Some(Self::H1Local),
            "h1-checked" => Some(Self::H1Checked),
            "h1-hosts" => Some(Self::H1Hosts),
            "tcp" => Some(Self::Tcp),
            "tcp-server-first" => Some(Self::TcpServerFirst),
            "mtls-h1" => Some(Self::MtlsH1),
            "mtls-h1-close" => Some(Self::MtlsH1Close),
            "mtls-h2" => Some(Self::MtlsH2),
            _ => sized("h1-body-")
                .map(|bytes| Self::H1Body(bytes as usize))
                .or_else(|| sized("h1-chunked-").map(|bytes| Self::H1Chunked(bytes as usize)))
                .or_else(|| streams("h2-").map(Self::H2))
                .or_else(|| streams("grpc-").map(Self::Grpc)),
        };
        protocol.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(Self::to_string).collect();
            format!("unknown protocol {name:?}, known are {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Protocol;

    #[test]
    fn as_many_are_local_as_are_counted() {
        for protocol in [Protocol::H1, Protocol::H1Local] {
            let local = (1..=1234).filter(|&id| protocol.is_local(id)).count();
            assert_eq!(local as u64, protocol.local(1234));
        }
        assert_eq!((Protocol::H1.local(1234), Protocol::H1Local.local(1234)), (0, 123));
    }

    #[test]
    fn names_are_read_back() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.to_string().parse(), Ok(protocol));
        }
        assert_eq!("h2-7".parse(), Ok(Protocol::H2(7)));
        assert!("h2-0".parse::<Protocol>().is_err());
        assert!("http".parse::<Protocol>().is_err());
    }
}
