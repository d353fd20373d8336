//! Raw TCP: a message, its echo, the next message.

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Shared, Turns, in_time};
use crate::protocol::Protocol;
use crate::tcp::{self, GREETING, MESSAGE_BYTES};

/// What every connection does.
pub(super) struct Client {
    /// Whether the server speaks first.
    greeted: bool,
}

impl Client {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { greeted: protocol == Protocol::TcpServerFirst }
    }

    /// Waits for a greeting where there is one, then sends messages until the plan's end or the first error.
    pub(super) async fn converse(&self, shared: &Shared, turns: &mut Turns) -> Result<()> {
        let mut stream = shared.connect().await?;
        if self.greeted {
            let greeting = in_time(receive(&mut stream)).await.context("no greeting")?;
            ensure!(tcp::id(&greeting).is_some_and(|id| id & GREETING != 0), "a greeting without an id");
            shared.greeted();
        }
        while let Some(turn) = shared.turn(turns).await {
            let message = tcp::message(turn.id);
            let echo = in_time(async {
                stream.write_all(&message).await?;
                receive(&mut stream).await
            })
            .await?;
            ensure!(echo == message, "another message came back than was sent");
            shared.answered(turn);
        }
        Ok(())
    }
}

async fn receive(stream: &mut TcpStream) -> Result<[u8; MESSAGE_BYTES]> {
    let mut message = [0; MESSAGE_BYTES];
    stream.read_exact(&mut message).await.context("no whole message came back")?;
    Ok(message)
}
