//! Messages that differ in their id only.

use bytes::{Buf, BufMut as _, Bytes, BytesMut};

use super::{FILLER, ID_HEADER};
use crate::protocol::{Protocol, SMALL_BODY_BYTES};

/// A longer body is sent in several chunks of this many bytes.
const CHUNK_BYTES: usize = 16 * 1024;

/// A request or response without its id. Clones and messages share the body.
#[derive(Clone, Debug)]
pub struct Template {
    start_line: &'static str,
    /// The other headers, the empty line and the body.
    rest: Bytes,
}

impl Template {
    /// What a client of this protocol asks; as HTTP/1.1 keep-alive, where it is none of HTTP/1.1.
    pub fn request(protocol: Protocol) -> Self {
        let (start_line, body) = match protocol {
            Protocol::H1Body(bytes) => ("POST / HTTP/1.1", sized(bytes)),
            Protocol::H1Chunked(bytes) => ("POST / HTTP/1.1", chunked(bytes)),
            _ => ("GET / HTTP/1.1", Bytes::from_static(b"\r\n")),
        };
        let connection = if protocol == Protocol::H1Close { "connection: close\r\n" } else { "" };
        let host: &[u8] = b"host: bed\r\n";
        Self { start_line, rest: [host, connection.as_bytes(), &body].concat().into() }
    }

    /// What a client asks of the proxy itself, as HTTP/1.1 keep-alive.
    pub fn local_request() -> Self {
        let rest = Bytes::from_static(b"host: bed\r\n\r\n");
        Self { start_line: "GET /local HTTP/1.1", rest }
    }

    /// What a server of this protocol answers; as HTTP/1.1 keep-alive, where it is none of HTTP/1.1.
    pub fn response(protocol: Protocol) -> Self {
        let rest = match protocol {
            Protocol::H1Chunked(bytes) => chunked(bytes),
            _ => sized(body_bytes(protocol)),
        };
        Self { start_line: "HTTP/1.1 200 OK", rest }
    }

    /// The message with this id, and these lines among its headers.
    pub fn message(&self, id: u64, headers: &str) -> impl Buf + use<> {
        // The id comes first so that a short snap length still holds it after a proxy put its headers in front.
        let head = format!("{}\r\n{ID_HEADER}: {id:016x}\r\n{headers}", self.start_line);
        Bytes::from(head).chain(self.rest.clone())
    }
}

/// Length of a response's body.
pub fn body_bytes(protocol: Protocol) -> usize {
    match protocol {
        Protocol::H1Body(bytes) | Protocol::H1Chunked(bytes) => bytes,
        _ => SMALL_BODY_BYTES,
    }
}

fn sized(bytes: usize) -> Bytes {
    let mut message = BytesMut::from(format!("content-length: {bytes}\r\n\r\n").as_bytes());
    message.put_bytes(FILLER, bytes);
    message.freeze()
}

fn chunked(bytes: usize) -> Bytes {
    let mut message = BytesMut::from(&b"transfer-encoding: chunked\r\n\r\n"[..]);
    let mut left = bytes;
    while left > 0 {
        let chunk = left.min(CHUNK_BYTES);
        message.put_slice(format!("{chunk:x}\r\n").as_bytes());
        message.put_bytes(FILLER, chunk);
        message.put_slice(b"\r\n");
        left -= chunk;
    }
    message.put_slice(b"0\r\n\r\n");
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{self, Incoming, Message};

    #[tokio::test]
    async fn what_is_written_is_read_back() {
        let protocols = Protocol::ALL.into_iter().filter(|protocol| protocol.to_string().starts_with("h1"));
        for protocol in protocols {
            let close = protocol == Protocol::H1Close;
            let mut bytes = Template::request(protocol).message(7, "");
            let request = bytes.copy_to_bytes(bytes.remaining());
            let mut bytes = Template::response(protocol).message(8, "connection: close\r\n");
            let response = bytes.copy_to_bytes(bytes.remaining());

            let body_bytes = body_bytes(protocol) as u64;
            let asked = if request.starts_with(b"POST") { body_bytes } else { 0 };
            let mut incoming = Incoming::new(&request[..]);
            let message = incoming.message(http::request_head).await.unwrap();
            assert_eq!(message, Some(Message { id: Some(7), keep_alive: !close, body_bytes: asked }));
            assert_eq!(incoming.message(http::request_head).await.unwrap(), None);
            let message = Incoming::new(&response[..]).message(http::response_head).await.unwrap();
            assert_eq!(message, Some(Message { id: Some(8), keep_alive: false, body_bytes }));
        }
    }

    #[test]
    fn a_large_body_has_several_chunks() {
        let text = chunked(CHUNK_BYTES + 1);
        assert!(text.starts_with(b"transfer-encoding: chunked\r\n\r\n4000\r\n."));
        assert!(text.ends_with(b".\r\n1\r\n.\r\n0\r\n\r\n"));
    }
}
