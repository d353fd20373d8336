//! HTTP/2 without TLS (prior knowledge), and gRPC's unary calls: several streams at a time on each connection.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use h2::client::SendRequest;
use tokio::sync::Mutex;

use super::{Shared, Turns, in_time};
use crate::protocol::SMALL_BODY_BYTES;
use crate::{grpc, http, http2};

/// What every connection does.
pub(super) struct Client {
    /// Requests under way on a connection.
    streams: u32,
    /// What each request carries.
    content: Content,
}

enum Content {
    /// A request without a body, a response with one.
    Plain,
    /// One gRPC message each way.
    Call(Bytes),
}

impl Client {
    pub(super) fn plain(streams: u32) -> Self {
        Self { streams, content: Content::Plain }
    }

    pub(super) fn grpc(streams: u32) -> Self {
        Self { streams, content: Content::Call(grpc::message()) }
    }

    /// Opens one connection and keeps its streams busy until the plan's end or the first error.
    pub(super) async fn converse(&self, shared: &Shared, turns: &mut Turns) -> Result<()> {
        let stream = shared.connect().await?;
        let (sender, connection) = in_time(async { Ok(h2::client::handshake(stream).await?) }).await?;
        let turns = Mutex::new(turns);
        let streams: Vec<_> =
            (0..self.streams).map(|_| self.keep_busy(shared, sender.clone(), &turns)).collect();
        // The connection ends when no one can send on it.
        drop(sender);
        let carry = async { connection.await.context("the connection failed") };
        tokio::try_join!(try_join_all(streams), carry).map(|_| ())
    }

    /// One stream after the other, each in the connection's next turn.
    async fn keep_busy(
        &self,
        shared: &Shared,
        mut sender: SendRequest<Bytes>,
        turns: &Mutex<&mut Turns>,
    ) -> Result<()> {
        loop {
            let next = async {
                let mut turns = turns.lock().await;
                shared.turn(&mut turns).await
            };
            let Some(turn) = next.await else { return Ok(()) };
            // By value and back: it waits for a place among the streams that the proxy permits.
            sender = in_time(async { Ok(sender.ready().await?) }).await?;
            in_time(self.ask(&mut sender, turn.id)).await?;
            shared.answered(turn);
        }
    }

    /// One request and its whole response.
    async fn ask(&self, sender: &mut SendRequest<Bytes>, id: u64) -> Result<()> {
        let request = ::http::Request::builder().header(http::ID_HEADER, format!("{id:016x}"));
        let response = match &self.content {
            Content::Plain => {
                let request = request.uri("http://bed/").body(())?;
                sender.send_request(request, true)?.0.await?
            }
            Content::Call(message) => {
                let request = request
                    .method(::http::Method::POST)
                    .uri(format!("http://bed{}", grpc::PATH))
                    .header(::http::header::CONTENT_TYPE, grpc::CONTENT_TYPE)
                    .header(::http::header::TE, "trailers")
                    .body(())?;
                let (response, mut body) = sender.send_request(request, false)?;
                body.send_data(message.clone(), true)?;
                response.await?
            }
        };
        ensure!(response.status() == 200, "status {}", response.status());
        let told = response.headers().get(http::ID_HEADER).and_then(|value| http::parse_id(value.as_bytes()));
        ensure!(told == Some(id), "the response has another request's id, or none");
        let mut body = response.into_body();
        let bytes = http2::whole(&mut body).await?;
        match self.content {
            Content::Plain => ensure!(bytes.len() == SMALL_BODY_BYTES, "{} bytes of body", bytes.len()),
            Content::Call(_) => {
                grpc::check(&bytes)?;
                let trailers = body.trailers().await?.context("no trailers")?;
                let status = trailers.get(grpc::STATUS).context("no grpc-status")?;
                ensure!(status == "0", "grpc-status {status:?}");
            }
        }
        Ok(())
    }
}
