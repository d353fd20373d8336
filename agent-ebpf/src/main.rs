//! The probes.
fn main() {}
