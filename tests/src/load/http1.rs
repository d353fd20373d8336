//! HTTP/1.1: kept connections, one for each request, or several requests under way on each.

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc};

use super::{Shared, Turns, in_time};
use crate::http::{self, Incoming, Template};
use crate::protocol::Protocol;

/// How many requests are under way on a connection with pipelining.
const PIPELINE_DEPTH: usize = 4;

/// What every connection does.
pub(super) struct Client {
    manner: Manner,
    request: Template,
    /// What the proxy answers itself.
    local: Template,
    protocol: Protocol,
    /// Length of every response's body.
    body_bytes: u64,
}

/// How connections are used.
enum Manner {
    /// The next request after the whole response to the last one, so every request and response starts a packet.
    Kept,
    /// One request, then the proxy closes.
    Closing,
    /// Requests do not wait for responses; responses come in the order of the requests.
    Pipelined,
}

impl Client {
    pub(super) fn new(protocol: Protocol) -> Self {
        let manner = match protocol {
            Protocol::H1Close => Manner::Closing,
            Protocol::H1Pipelined => Manner::Pipelined,
            _ => Manner::Kept,
        };
        let body_bytes = http::body_bytes(protocol) as u64;
        let (request, local) = (Template::request(protocol), Template::local_request());
        Self { manner, request, local, protocol, body_bytes }
    }

    /// Sends requests until the plan's end or the first error.
    pub(super) async fn converse(&self, shared: &Shared, turns: &mut Turns) -> Result<()> {
        match self.manner {
            Manner::Kept => self.keep(shared, turns).await,
            Manner::Closing => self.close(shared, turns).await,
            Manner::Pipelined => self.pipeline(shared, turns).await,
        }
    }

    async fn keep(&self, shared: &Shared, turns: &mut Turns) -> Result<()> {
        let mut incoming = Incoming::new(shared.connect().await?);
        while let Some(turn) = shared.turn(turns).await {
            let id = turn.id;
            in_time(async {
                let request = if self.protocol.is_local(id) { &self.local } else { &self.request };
                incoming.stream().write_all_buf(&mut request.message(id, "")).await?;
                self.response(&mut incoming, id).await
            })
            .await?;
            shared.answered(turn);
        }
        Ok(())
    }

    async fn close(&self, shared: &Shared, turns: &mut Turns) -> Result<()> {
        while let Some(turn) = shared.turn(turns).await {
            let id = turn.id;
            let mut incoming = Incoming::new(shared.connect().await?);
            in_time(async {
                incoming.stream().write_all_buf(&mut self.request.message(id, "")).await?;
                self.response(&mut incoming, id).await?;
                // Waited for, so that it is the proxy who closes: the client's ports are free again at once.
                let more = incoming.message(http::response_head).await?;
                ensure!(more.is_none(), "a second response to one request");
                Ok(())
            })
            .await?;
            shared.answered(turn);
        }
        Ok(())
    }

    async fn pipeline(&self, shared: &Shared, turns: &mut Turns) -> Result<()> {
        let mut stream = shared.connect().await?;
        let (reading, mut writing) = stream.split();
        let mut incoming = Incoming::new(reading);
        let places = Semaphore::new(PIPELINE_DEPTH);
        let (asked, mut under_way) = mpsc::channel(PIPELINE_DEPTH);
        let places = &places;
        let ask = async move {
            loop {
                let place = places.acquire().await?;
                let Some(turn) = shared.turn(turns).await else { return Ok(()) };
                writing.write_all_buf(&mut self.request.message(turn.id, "")).await?;
                ensure!(asked.send((turn, place)).await.is_ok(), "nobody waits for the response");
            }
        };
        let listen = async {
            while let Some((turn, place)) = under_way.recv().await {
                in_time(self.response(&mut incoming, turn.id)).await?;
                shared.answered(turn);
                drop(place);
            }
            Ok(())
        };
        tokio::try_join!(ask, listen).map(|((), ())| ())
    }

    /// Reads the whole response to the request with this id.
    async fn response<S: AsyncRead + Unpin>(&self, incoming: &mut Incoming<S>, id: u64) -> Result<()> {
        let response = incoming.message(http::response_head).await?;
        let response = response.context("the connection was closed before the response")?;
        ensure!(response.id == Some(id), "the response has another request's id, or none");
        ensure!(
            response.body_bytes == self.body_bytes,
            "{} bytes of body instead of {}",
            response.body_bytes,
            self.body_bytes
        );
        Ok(())
    }
}
