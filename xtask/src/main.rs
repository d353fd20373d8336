//! Every developer verb, one file each.
fn main() {}
