//! Builds, tests and proves vfio-fast.

fn main() {}
