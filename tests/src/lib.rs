//! The bed.

pub mod python;
pub mod synthetic;
