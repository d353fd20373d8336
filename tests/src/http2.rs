//! As much of HTTP/2 as load and backend need beyond what the library does.

use anyhow::Result;
use bytes::BytesMut;
use h2::RecvStream;

/// Reads a body to its end.
///
/// # Errors
/// When the stream is reset or the connection fails before.
pub async fn whole(body: &mut RecvStream) -> Result<BytesMut> {
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(bytes)
}
