//! An HTTP server that sends back what it gets, and clients of it: hyper on both ends.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use bed::listener;
use bed::netns::Netns;
use bed::protocol::{Protocol, SMALL_BODY_BYTES};
use http_body_util::channel::Channel;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, TE};
use hyper::service::service_fn;
use hyper::{Request, Response, Version, client};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Asks for an answer in chunks.
const CHUNKED: &str = "x-bed-chunked";
/// Says in the answer in which version the server was asked.
const VERSION: &str = "x-bed-version";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// Largest chunk.
const CHUNK_BYTES: usize = 16 * 1024;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How a body is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Its length is told before.
    Sized,
    /// In chunks.
    Chunked,
    /// Followed by the trailers of a call's answer.
    Trailed,
}

/// A running server; ended on drop.
pub struct Server {
    accepted: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl Server {
    /// Listens inside a namespace, and answers HTTP/1.1 and HTTP/2.
    pub fn start(netns: &Netns, listen: SocketAddr) -> Result<Self> {
        let listener = netns.within(|| Ok(listener::listen(listen)?))?;
        listener.set_nonblocking(true)?;
        let runtime = runtime()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
            while let Ok((stream, _peer)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut server = auto::Builder::new(TokioExecutor::new());
                    server.http2().max_concurrent_streams(None);
                    let served = server.serve_connection(TokioIo::new(stream), service_fn(answer));
                    if let Err(error) = served.await {
                        eprintln!("the server lost a connection: {error}");
                    }
                });
            }
        });
        Ok(Self { accepted, _runtime: runtime })
    }

    /// Connections accepted since the start.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let whole = body.collect().await?.to_bytes();
    let grpc = head.headers.get(CONTENT_TYPE) == Some(&GRPC);
    // Servers refuse calls without it.
    ensure!(!grpc || head.headers.get(TE).is_some_and(|te| te == "trailers"), "no `te`: {:?}", head.headers);
    let shape = match (grpc, head.headers.contains_key(CHUNKED)) {
        (true, _) => Shape::Trailed,
        (false, true) => Shape::Chunked,
        (false, false) => Shape::Sized,
    };
    let mut response = Response::new(body_of(whole, shape));
    response.headers_mut().insert(VERSION, format!("{:?}", head.version).parse()?);
    if grpc {
        response.headers_mut().insert(CONTENT_TYPE, GRPC);
    }
    Ok(response)
}

fn body_of(bytes: Bytes, shape: Shape) -> Body {
    match shape {
        Shape::Sized => Full::new(bytes).boxed_unsync(),
        Shape::Chunked => {
            let (mut sender, body) = Channel::new(1);
            tokio::spawn(async move {
                for chunk in bytes.chunks(CHUNK_BYTES) {
                    if sender.send_data(Bytes::copy_from_slice(chunk)).await.is_err() {
                        // Nobody waits for the rest of it any more.
                        return;
                    }
                }
            });
            body.boxed_unsync()
        }
        Shape::Trailed => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            Full::new(bytes).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync()
        }
    }
}

/// What a client sends.
#[derive(Clone, Debug)]
pub struct Talk {
    protocol: Protocol,
    body: Bytes,
}

impl Talk {
    /// What this protocol says, told from others' by its number.
    pub fn new(protocol: Protocol, number: usize) -> Self {
        let bytes = match protocol {
            Protocol::H1Body(bytes) | Protocol::H1Chunked(bytes) => bytes,
            _ => SMALL_BODY_BYTES,
        };
        let byte = |place: usize| (place.wrapping_mul(31) >> 4) as u8 ^ number as u8;
        Self { protocol, body: (0..bytes).map(byte).collect() }
    }

    /// The version that client and server are to speak, and the requests at a time on a connection.
    fn version(&self) -> (Version, u32) {
        match self.protocol {
            Protocol::H2(streams) | Protocol::Grpc(streams) => (Version::HTTP_2, streams),
            _ => (Version::HTTP_11, 1),
        }
    }

    /// So many requests one after the other on each stream of a connection, all streams at a time. Every answer must
    /// be what was sent, from a server that was asked in the same version.
    pub async fn on(self, stream: TcpStream, rounds: usize) -> Result<()> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
        let (version, streams) = self.version();
        if version == Version::HTTP_11 {
            let (mut client, connection) = client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection);
            for _ in 0..rounds {
                self.check(client.send_request(self.request()?).await?).await?;
            }
            return Ok(());
        }
        let (client, connection) = client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        let mut asking = JoinSet::new();
        for _ in 0..streams {
            let (mut client, talk) = (client.clone(), self.clone());
            asking.spawn(async move {
                for _ in 0..rounds {
                    talk.check(client.send_request(talk.request()?).await?).await?;
                }
                Ok(())
            });
        }
        asking.join_all().await.into_iter().collect()
    }

    fn request(&self) -> Result<Request<Body>> {
        // HTTP/2 names the host in the target.
        let mut request = match self.version().0 {
            Version::HTTP_2 => Request::post("http://bed/bed.Echo/Say"),
            _ => Request::post("/bed.Echo/Say").header(HOST, "bed"),
        };
        let mut shape = Shape::Sized;
        match self.protocol {
            Protocol::H1Close => request = request.header(CONNECTION, "close"),
            Protocol::H1Chunked(_) => {
                request = request.header(CHUNKED, "1");
                shape = Shape::Chunked;
            }
            Protocol::Grpc(_) => request = request.header(CONTENT_TYPE, GRPC).header(TE, "trailers"),
            _ => {}
        }
        Ok(request.body(body_of(self.body.clone(), shape))?)
    }

    async fn check(&self, response: Response<Incoming>) -> Result<()> {
        ensure!(response.status() == 200, "{response:?}");
        let wanted = format!("{:?}", self.version().0);
        ensure!(response.headers().get(VERSION).is_some_and(|version| version == &wanted), "{response:?}");
        let answer = response.into_body().collect().await.context("the answer was cut")?;
        let trailed = answer.trailers().is_some_and(|trailers| trailers.contains_key("grpc-status"));
        ensure!(trailed == matches!(self.protocol, Protocol::Grpc(_)), "trailers: {:?}", answer.trailers());
        ensure!(answer.to_bytes() == self.body, "another body came back");
        Ok(())
    }
}

/// What the ends of a test run on.
pub fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}
