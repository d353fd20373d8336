//! As much of HTTP/1.1 as load, backend and capture need to agree on.

mod body;
mod incoming;
mod template;

use anyhow::{Context as _, Result, bail, ensure};

pub use body::Body;
pub use incoming::{Incoming, Message};
pub use template::{Template, body_bytes};

/// The header that names a request, in the request and echoed in its response: 16 hexadecimal digits.
pub const ID_HEADER: &str = "x-bed-id";

/// The value of [`ID_HEADER`] in a proxy's own requests to the server, and in their responses.
pub const CHECK_ID: u64 = u64::MAX;

/// What a request asks for that the proxy answers itself.
pub(crate) const LOCAL_PATH: &str = "/local";

/// What bodies are made of. No message starts with it.
pub const FILLER: u8 = b'.';

/// A body of so many bytes.
pub(crate) fn filler(bytes: usize) -> String {
    char::from(FILLER).to_string().repeat(bytes)
}

/// No head of the bed is longer, bytes; more without an end of the head is an error.
const LONGEST_HEAD_BYTES: usize = 16 * 1024;
/// Proxies add a handful of headers to the bed's few.
const MOST_HEADERS: usize = 48;

/// The head of a request or response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Length of the head with its empty line.
    pub head_bytes: usize,
    /// The body that follows.
    pub body: Body,
    /// The name of the request, or of the one that is answered, if it has one.
    pub id: Option<u64>,
    /// Whether the sender wants the connection kept.
    pub keep_alive: bool,
}

/// Parses the head of a request at the start of `bytes`; `None` when its end is not there yet.
///
/// # Errors
/// When the bytes are no HTTP/1 request, or the body's length is told in a way the bed does not speak.
pub fn request_head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(bytes).context("no HTTP/1 request")? {
        httparse::Status::Complete(head_bytes) => head_bytes,
        httparse::Status::Partial => return partial(bytes),
    };
    let body = body(request.headers)?.unwrap_or(Body::Sized(0));
    Ok(Some(head(head_bytes, request.version, request.headers, body)))
}

/// Parses the head of a response at the start of `bytes`; `None` when its end is not there yet.
///
/// # Errors
/// When the bytes are no HTTP/1 response, its status is not 200, or the body's length is told in a way the bed
/// does not speak.
pub fn response_head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(bytes).context("no HTTP/1 response")? {
        httparse::Status::Complete(head_bytes) => head_bytes,
        httparse::Status::Partial => return partial(bytes),
    };
    let status = response.code.context("a response without a status")?;
    ensure!(status == 200, "status {status}");
    let body = body(response.headers)?.context("a response that does not tell the length of its body")?;
    Ok(Some(head(head_bytes, response.version, response.headers, body)))
}

/// Reads an id: exactly 16 hexadecimal digits.
pub fn parse_id(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value).ok().filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

fn partial<T>(bytes: &[u8]) -> Result<Option<T>> {
    ensure!(bytes.len() < LONGEST_HEAD_BYTES, "{} bytes and no end of the head", bytes.len());
    Ok(None)
}

fn head(head_bytes: usize, version: Option<u8>, headers: &[httparse::Header<'_>], body: Body) -> Head {
    let keep_alive = match header(headers, "connection") {
        Some(value) if value.eq_ignore_ascii_case(b"close") => false,
        Some(value) if value.eq_ignore_ascii_case(b"keep-alive") => true,
        _ => version == Some(1),
    };
    Head { head_bytes, body, id: header(headers, ID_HEADER).and_then(parse_id), keep_alive }
}

fn header<'h>(headers: &[httparse::Header<'h>], name: &str) -> Option<&'h [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// The body the headers tell of; `None` when they tell of none.
fn body(headers: &[httparse::Header<'_>]) -> Result<Option<Body>> {
    match header(headers, "transfer-encoding") {
        Some(coding) if coding.eq_ignore_ascii_case(b"chunked") => return Ok(Some(Body::chunked())),
        Some(coding) => bail!("transfer encoding {:?}, which the bed does not speak", coding.escape_ascii()),
        None => {}
    }
    let Some(length) = header(headers, "content-length") else { return Ok(None) };
    let length = std::str::from_utf8(length)?.trim().parse().context("a content-length that is no number")?;
    Ok(Some(Body::Sized(length)))
}

#[cfg(test)]
mod tests {
    use super::{Body, request_head, response_head};

    #[test]
    fn a_request_is_read_when_its_head_is_whole() -> anyhow::Result<()> {
        let whole =
            b"GET / HTTP/1.1\r\nX-Bed-Id: 00000000000000ff\r\nhost: bed\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(request_head(&whole[..30])?, None);
        let head = request_head(whole)?.expect("the head is whole");
        assert_eq!((head.id, head.body, head.keep_alive), (Some(255), Body::Sized(3), true));
        assert_eq!(head.head_bytes + 3, whole.len());
        let old = request_head(b"GET / HTTP/1.0\r\n\r\n")?.expect("the head is whole");
        assert!(!old.keep_alive && old.id.is_none());
        Ok(())
    }

    #[test]
    fn a_response_is_read_or_refused() -> anyhow::Result<()> {
        let whole = b"HTTP/1.1 200 OK\r\nx-bed-id: 0000000000000001\r\ncontent-length: 2\r\n\r\nhi";
        let head = response_head(whole)?.expect("the head is whole");
        assert_eq!((head.id, head.body), (Some(1), Body::Sized(2)));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(response_head(chunked)?.expect("the head is whole").body, Body::chunked());
        for refused in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(response_head(refused.as_bytes()).is_err(), "{refused}");
        }
        Ok(())
    }
}
