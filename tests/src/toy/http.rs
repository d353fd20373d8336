//! HTTP on tokio's multi-threaded runtime: hyper towards the client, hyper-util's pooled client towards the server.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Error, Result};
use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use hyper::http::uri::{Authority, Scheme};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;

/// Headers that are for the next hop only (RFC 9110, 7.6.1), beside those that `connection` names.
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What the client is answered with.
type Body = Either<Incoming, Empty<Bytes>>;

/// The way to the server.
#[derive(Clone)]
struct Upstream {
    client: Client<HttpConnector, Incoming>,
    authority: Authority,
    version: Version,
}

/// Forwards HTTP/1.1 and HTTP/2 without TLS, whichever the client speaks, to a server that speaks HTTP/2 if `http2`
/// and HTTP/1.1 if not.
///
/// # Errors
/// When the runtime cannot be made or connections not be accepted.
pub fn run(listener: TcpListener, upstream: SocketAddr, workers: usize, http2: bool) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let upstream = Upstream {
        client: Client::builder(TokioExecutor::new())
            .pool_idle_timeout(None)
            .http2_only(http2)
            .build(connector),
        authority: upstream.to_string().parse()?,
        version: if http2 { Version::HTTP_2 } else { Version::HTTP_11 },
    };
    super::serve(listener, workers, move |client| {
        let upstream = upstream.clone();
        async move {
            let answer = service_fn(|request| upstream.forward(request));
            let mut server = auto::Builder::new(TokioExecutor::new());
            // The client says how many streams it wants at a time.
            server.http2().max_concurrent_streams(None);
            server.serve_connection(TokioIo::new(client), answer).await.map_err(Error::from_boxed)
        }
    })
}

impl Upstream {
    fn forward(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>>> + use<> {
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        target.scheme = Some(Scheme::HTTP);
        target.authority = Some(self.authority.clone());
        let (client, target) = (self.client.clone(), Uri::from_parts(target));
        *request.version_mut() = self.version;
        end_of_hop(request.headers_mut());
        async move {
            *request.uri_mut() = target?;
            match client.request(request).await {
                Ok(mut response) => {
                    end_of_hop(response.headers_mut());
                    Ok(response.map(Either::Left))
                }
                Err(error) => {
                    eprintln!("no answer from the server: {:#}", Error::new(error));
                    let mut response = Response::new(Either::Right(Empty::new()));
                    *response.status_mut() = StatusCode::BAD_GATEWAY;
                    Ok(response)
                }
            }
        }
    }
}

/// Removes what is not for the next hop.
fn end_of_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    // gRPC asks whether trailers get through; they do.
    if headers.get(TE).is_some_and(|value| value != "trailers") {
        headers.remove(TE);
    }
}
