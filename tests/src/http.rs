//! As much of HTTP/1.1 as load, backend and capture need to agree on.

use anyhow::{Context as _, Result, bail, ensure};

/// The header that names a request, in the request and echoed in its response: 16 hexadecimal digits.
pub const ID_HEADER: &str = "x-bed-id";

/// No head of the bed is longer, bytes; more without an end of the head is an error.
const LONGEST_HEAD_BYTES: usize = 16 * 1024;
/// Proxies add a handful of headers to the bed's few.
const MOST_HEADERS: usize = 48;

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Length of the head with its empty line.
    pub head_bytes: usize,
    /// Length of the body that follows.
    pub body_bytes: usize,
    /// The request's name, if it has one.
    pub id: Option<u64>,
    /// Whether the sender wants the connection kept.
    pub keep_alive: bool,
}

/// A response's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Length of the head with its empty line.
    pub head_bytes: usize,
    /// Length of the body that follows.
    pub body_bytes: usize,
    /// The name of the request it answers, if it has one.
    pub id: Option<u64>,
    /// Status code.
    pub status: u16,
}

/// Parses the head of a request at the start of `bytes`; `None` when its end is not there yet.
///
/// # Errors
/// When the bytes are no HTTP/1 request, or the body's length is not told by `content-length`.
pub fn request_head(bytes: &[u8]) -> Result<Option<RequestHead>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(bytes).context("no HTTP/1 request")? {
        httparse::Status::Complete(head_bytes) => head_bytes,
        httparse::Status::Partial => return partial(bytes),
    };
    let connection = header(request.headers, "connection");
    let keep_alive = match connection {
        Some(value) if value.eq_ignore_ascii_case(b"close") => false,
        Some(value) if value.eq_ignore_ascii_case(b"keep-alive") => true,
        _ => request.version == Some(1),
    };
    Ok(Some(RequestHead {
        head_bytes,
        body_bytes: body_bytes(request.headers)?,
        id: header(request.headers, ID_HEADER).and_then(parse_id),
        keep_alive,
    }))
}

/// Parses the head of a response at the start of `bytes`; `None` when its end is not there yet.
///
/// # Errors
/// When the bytes are no HTTP/1 response, or the body's length is not told by `content-length`.
pub fn response_head(bytes: &[u8]) -> Result<Option<ResponseHead>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(bytes).context("no HTTP/1 response")? {
        httparse::Status::Complete(head_bytes) => head_bytes,
        httparse::Status::Partial => return partial(bytes),
    };
    Ok(Some(ResponseHead {
        head_bytes,
        body_bytes: body_bytes(response.headers)?,
        id: header(response.headers, ID_HEADER).and_then(parse_id),
        status: response.code.context("a response without a status")?,
    }))
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

fn header<'h>(headers: &[httparse::Header<'h>], name: &str) -> Option<&'h [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

fn body_bytes(headers: &[httparse::Header<'_>]) -> Result<usize> {
    if header(headers, "transfer-encoding").is_some() {
        bail!("a body with a transfer encoding, which the bed does not speak");
    }
    header(headers, "content-length").map_or(Ok(0), |value| {
        std::str::from_utf8(value)?.trim().parse().context("a content-length that is no number")
    })
}

#[cfg(test)]
mod tests {
    use super::{request_head, response_head};

    #[test]
    fn a_request_is_read_when_its_head_is_whole() -> anyhow::Result<()> {
        let whole =
            b"GET / HTTP/1.1\r\nX-Bed-Id: 00000000000000ff\r\nhost: bed\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(request_head(&whole[..30])?, None);
        let head = request_head(whole)?.expect("the head is whole");
        assert_eq!((head.id, head.body_bytes, head.keep_alive), (Some(255), 3, true));
        assert_eq!(head.head_bytes + head.body_bytes, whole.len());
        let old = request_head(b"GET / HTTP/1.0\r\n\r\n")?.expect("the head is whole");
        assert!(!old.keep_alive && old.id.is_none());
        Ok(())
    }

    #[test]
    fn a_response_is_read_or_refused() -> anyhow::Result<()> {
        let whole = b"HTTP/1.1 200 OK\r\nx-bed-id: 0000000000000001\r\ncontent-length: 2\r\n\r\nhi";
        let head = response_head(whole)?.expect("the head is whole");
        assert_eq!((head.status, head.id, head.body_bytes), (200, Some(1), 2));
        assert!(response_head(b"SSH-2.0-OpenSSH\r\n").is_err());
        assert!(response_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        Ok(())
    }
}
