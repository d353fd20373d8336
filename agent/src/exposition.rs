//! `/metrics`, `/healthz` and `/readyz`, from the latest snapshot. A scrape reads and changes nothing.

mod metrics;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Router, routing::get};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::window::Snapshot;

/// The snapshot of the latest drain; `None` before the first. The sender's end is the end of measuring.
pub type Latest = watch::Receiver<Option<Arc<Snapshot>>>;

/// Of the text that `/metrics` answers.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long requests under way may take once the server is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// `OpenMetrics` text of a snapshot, or of the agent alone without one.
pub fn render(latest: &Latest) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics::Metrics::new(latest.clone())));
    encode(&registry)
}

/// Answers on `listener` until `stop` is ready, then lets requests under way finish for at most 2 s.
///
/// `/readyz` is 200 once there is a snapshot and as long as the sender of `latest` lives, else 503.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    latest: Latest,
    stop: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics::Metrics::new(latest.clone())));
    let router = Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(Served { registry: Arc::new(registry), latest });
    let (stop_server, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        // An error is the sender's end, which says the same.
        stopped.await.unwrap_or_default();
    });
    let mut server = std::pin::pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return ended,
        () = stop => drop(stop_server),
    }
    tokio::time::timeout(STOP_GRACE, server).await.unwrap_or(Ok(()))
}

#[derive(Clone)]
struct Served {
    registry: Arc<Registry>,
    latest: Latest,
}

async fn scrape(State(served): State<Served>) -> Response {
    match encode(&served.registry) {
        Ok(body) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready(State(served): State<Served>) -> (StatusCode, &'static str) {
    if served.latest.has_changed().is_err() {
        (StatusCode::SERVICE_UNAVAILABLE, "measuring has ended\n")
    } else if served.latest.borrow().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "no drain yet\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut body = String::new();
    text::encode(&mut body, registry)?;
    Ok(body)
}

#[cfg(test)]
mod tests;
