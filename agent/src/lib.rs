//! `smp-agent`: what a service mesh costs, measured in the kernel.
//!
//! One module per step of the line that a measurement travels:
//! [`probe`] -> [`histogram`] -> [`window`] -> [`document`] -> [`smp`] and [`result_files`], [`report`];
//! beside it [`exposition`], for Prometheus.

pub mod breaker;
pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod co_tenants;
pub mod cost;
mod counters;
pub mod discover;
pub mod document;
pub mod drain;
pub mod exposition;
pub mod histogram;
pub mod hop;
pub mod identity;
pub mod kubernetes;
pub mod measure;
pub mod memory;
pub mod node;
pub mod probe;
pub mod report;
pub mod result_files;
pub mod signal;
pub mod smp;
pub mod usage;
pub mod window;
