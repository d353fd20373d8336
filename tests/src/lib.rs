//! The bed.

pub mod backend;
pub mod capture;
pub mod delay;
pub mod http;
pub mod load;
pub mod wire;
