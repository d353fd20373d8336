//! What a person reads.

pub mod table;
