//! HTTP/2 without TLS (prior knowledge): a response with the request's id, and for gRPC the message of the call.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use tokio::net::TcpStream;

use crate::protocol::SMALL_BODY_BYTES;
use crate::{grpc, http, http2};

/// Answers what comes on a connection until the client is done. That gRPC's messages are short is no attack here.
pub(super) async fn serve(stream: TcpStream) -> Result<()> {
    let mut connection = h2::server::Builder::new().data_frame_budget(usize::MAX).handshake(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        // Beside the connection, which must go on for a body to come.
        tokio::task::spawn_local(async move {
            if let Err(error) = answer(request, respond).await {
                eprintln!("backend: a request was not answered: {error:#}");
            }
        });
    }
    Ok(())
}

async fn answer(mut request: ::http::Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let id = request.headers().get(http::ID_HEADER).context("a request without an id")?.clone();
    let content_type = request.headers().get(::http::header::CONTENT_TYPE);
    let call = content_type.is_some_and(|value| value == grpc::CONTENT_TYPE);
    let message = http2::whole(request.body_mut()).await?.freeze();
    let response = ::http::Response::builder().header(http::ID_HEADER, id);
    if call {
        grpc::check(&message)?;
        let response = response.header(::http::header::CONTENT_TYPE, grpc::CONTENT_TYPE).body(())?;
        let mut body = respond.send_response(response, false)?;
        body.send_data(message, false)?;
        let status = (grpc::STATUS.parse()?, ::http::HeaderValue::from_static("0"));
        body.send_trailers(::http::HeaderMap::from_iter([status]))?;
    } else {
        let mut body = respond.send_response(response.body(())?, false)?;
        body.send_data(Bytes::from_static(&[http::FILLER; SMALL_BODY_BYTES]), true)?;
    }
    Ok(())
}
