//! Where a body ends in a stream of bytes that comes in pieces.

use anyhow::{Result, ensure};

/// No line between chunks is longer, bytes.
const LONGEST_LINE_BYTES: usize = 1024;

/// What is still to come of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Sized(u64),
    /// Chunks, until the empty one.
    Chunked(Chunks),
}

/// Where in a chunked body the next byte is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// In a line, of which this much was seen.
    Line(Line, Vec<u8>),
    /// In a chunk, so many bytes before its end.
    Content(u64),
    /// Behind the body.
    Over,
}

/// The lines of a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Says how long the next chunk is.
    Size,
    /// The empty one behind a chunk.
    End,
    /// A trailer; an empty one ends the body.
    Trailer,
}

impl Body {
    /// A chunked body of which nothing was seen.
    pub const fn chunked() -> Self {
        Self::Chunked(Chunks::Line(Line::Size, Vec::new()))
    }

    /// Whether nothing is to come.
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Sized(0) | Self::Chunked(Chunks::Over))
    }

    /// Takes what belongs to the body from the start of `bytes`, hands its content to `content` piece by piece, and
    /// returns how many bytes it took: all, unless the body is over.
    ///
    /// # Errors
    /// When the bytes are no chunked body, or `content` fails.
    pub fn take(&mut self, bytes: &[u8], content: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<usize> {
        let mut left = bytes;
        while !left.is_empty() && !self.is_over() {
            match self {
                Self::Sized(size) | Self::Chunked(Chunks::Content(size)) => {
                    let here = usize::try_from(*size).unwrap_or(usize::MAX).min(left.len());
                    content(&left[..here])?;
                    left = &left[here..];
                    *size -= here as u64;
                    if let Self::Chunked(chunks) = self
                        && *chunks == Chunks::Content(0)
                    {
                        *chunks = Chunks::Line(Line::End, Vec::new());
                    }
                }
                Self::Chunked(Chunks::Line(line, seen)) => {
                    let end = left.iter().position(|&byte| byte == b'\n').map(|place| place + 1);
                    let here = end.unwrap_or(left.len());
                    seen.extend_from_slice(&left[..here]);
                    left = &left[here..];
                    ensure!(seen.len() <= LONGEST_LINE_BYTES, "{} bytes and no end of the line", seen.len());
                    if end.is_some() {
                        *self = Self::Chunked(line.followed_by(seen)?);
                    }
                }
                Self::Chunked(Chunks::Over) => {}
            }
        }
        Ok(bytes.len() - left.len())
    }
}

impl Line {
    /// What comes behind this line, given all of it.
    fn followed_by(self, text: &[u8]) -> Result<Chunks> {
        let empty = text == b"\r\n";
        Ok(match self {
            Self::Size => match httparse::parse_chunk_size(text) {
                Ok(httparse::Status::Complete((_, 0))) => Chunks::Line(Self::Trailer, Vec::new()),
                Ok(httparse::Status::Complete((_, size))) => Chunks::Content(size),
                _ => return Err(no_size(text)),
            },
            Self::End => {
                ensure!(empty, "{:?} behind a chunk", text.escape_ascii());
                Chunks::Line(Self::Size, Vec::new())
            }
            Self::Trailer if empty => Chunks::Over,
            Self::Trailer => Chunks::Line(Self::Trailer, Vec::new()),
        })
    }
}

fn no_size(text: &[u8]) -> anyhow::Error {
    anyhow::anyhow!("{:?} where a chunk's size should be", text.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content and length of the body at the start of `bytes`, given in pieces of `piece` bytes.
    fn content(mut body: Body, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize)> {
        let (mut content, mut taken_bytes) = (Vec::new(), 0);
        for piece in bytes.chunks(piece) {
            let taken = body.take(piece, &mut |bytes| {
                content.extend_from_slice(bytes);
                Ok(())
            })?;
            taken_bytes += taken;
            if taken < piece.len() {
                break;
            }
        }
        ensure!(body.is_over(), "{body:?} at the end");
        Ok((content, taken_bytes))
    }

    #[test]
    fn a_body_ends_where_it_says_in_pieces_of_any_size() {
        let chunked = b"3\r\nabc\r\n00a; name=value\r\n0123456789\r\n0\r\ntrailer: x\r\n\r\n";
        let mut followed = chunked.to_vec();
        followed.extend_from_slice(b"GET /");
        for piece in 1..followed.len() {
            let (seen, taken_bytes) = content(Body::chunked(), &followed, piece).unwrap();
            assert_eq!((seen.as_slice(), taken_bytes), (&b"abc0123456789"[..], chunked.len()));
            let (seen, taken_bytes) = content(Body::Sized(4), &followed, piece).unwrap();
            assert_eq!((seen.as_slice(), taken_bytes), (&b"3\r\na"[..], 4));
        }
        assert!(content(Body::Sized(4), b"abc", 3).is_err());
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for wrong in ["x\r\n", "\r\n", "1\r\nab\r\n"] {
            assert!(content(Body::chunked(), wrong.as_bytes(), 2).is_err(), "{wrong:?}");
        }
    }
}
