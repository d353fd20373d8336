//! The bed: real proxies between a client and a server, each in a network namespace of its own.
//!
//! ```text
//!  client namespace        proxy namespace           server namespace
//!  load generator  ------  Envoy, nginx, HAProxy  ------  server
//!        eth0   "downstream"            "upstream"   eth0
//! ```
//!
//! For mutual TLS there are two proxies in a row ([`netns::PairBed`], [`proxy::Pair`]), and [`wire`] opens what is
//! between them with the keys that one of them logs.
//!
//! [`netns::Bed`] makes the namespaces, [`process::Child`] starts what runs in them, [`proxy::Proxy`] and
//! [`origin::Origin`] are such processes with a generated configuration, [`tools`] knows where `cargo xtask setup`
//! put what is needed. [`awake`] keeps the processors from sleeping, [`redirection`] leads connections to a proxy unasked, [`measuring::Measuring`] is the agent and [`perf`] perf, each for a [`span::Span`].
//! Every one of them ends what it started when it is dropped, and [`live`] does the same when
//! a signal ends this process instead.
//!
//! The truth: [`load`] sends requests with ids that [`backend`] returns, [`capture`] takes the packets on both sides
//! of the proxy, [`wire`] makes latencies of them, [`delay`] is a proxy of known latency, and [`burn`] a program of known cost. None of it shares code
//! with the agent. [`toy`] has proxies for the ways of doing I/O that no known proxy of the bed has.

pub mod awake;
pub mod backend;
pub mod burn;
pub mod capture;
pub mod certificates;
pub mod delay;
pub mod grpc;
pub mod http;
pub mod http2;
pub mod listener;
pub mod live;
pub mod load;
pub mod measuring;
pub mod netns;
pub mod origin;
pub mod perf;
pub mod process;
pub mod protocol;
pub mod proxy;
pub mod python;
pub mod redirection;
pub mod span;
pub mod tcp;
pub mod tools;
pub mod toy;
pub mod verifier;
pub mod wire;
