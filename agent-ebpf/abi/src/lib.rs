//! What the kernel half and the user half share, and nothing else: memory layouts, names, limits, the
//! histogram's bucket index and the matching rules. Everything here is plain data and pure logic, so it is
//! tested on the host and runs unchanged in the kernel.
#![no_std]

pub mod bucket;
pub mod lane;
pub mod layout;
pub mod names;
pub mod opening;
mod order;
pub mod pending;
pub mod upstreams;
pub mod word;
