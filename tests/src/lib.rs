//! The bed: real proxies between a client and a server, each in a network namespace of its own.
//!
//! ```text
//!  client namespace        proxy namespace           server namespace
//!  load generator  ------  Envoy, nginx, HAProxy  ------  server
//!        eth0   "downstream"            "upstream"   eth0
//! ```
//!
//! [`netns::Bed`] makes the namespaces, [`process::Child`] starts what runs in them, [`proxy::Proxy`] and
//! [`origin::Origin`] are such processes with a generated configuration, [`tools`] knows where `cargo xtask setup`
//! put what is needed. Every one of them ends what it started when it is dropped, and [`live`] does the same when
//! a signal ends this process instead.

pub mod live;
pub mod netns;
pub mod origin;
pub mod process;
pub mod proxy;
pub mod tools;
