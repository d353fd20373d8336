//! `smp-agent`: what a service mesh costs, measured in the kernel.
//!
//! One module per step of the line that a measurement travels:
//! [`probe`] -> [`histogram`] -> [`window`] -> document -> files, table, exposition.

pub mod clock;
pub mod discover;
pub mod drain;
pub mod histogram;
pub mod hop;
pub mod measure;
pub mod probe;
pub mod window;
