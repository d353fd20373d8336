//! HTTP/1.1: a response with the request's id and a body, in the order of the requests.

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::http::{self, Incoming, Template};
use crate::protocol::Protocol;

pub(super) struct Server {
    response: Template,
}

impl Server {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { response: Template::response(protocol) }
    }

    /// Answers until the client is done or does not want the connection kept.
    pub(super) async fn serve(&self, stream: TcpStream) -> Result<()> {
        let mut incoming = Incoming::new(stream);
        while let Some(request) = incoming.message(http::request_head).await? {
            let id = request.id.context("a request without an id")?;
            let connection = if request.keep_alive { "" } else { "connection: close\r\n" };
            incoming.stream().write_all_buf(&mut self.response.message(id, connection)).await?;
            if !request.keep_alive {
                break;
            }
        }
        Ok(())
    }
}
