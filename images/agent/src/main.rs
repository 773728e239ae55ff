//! PID 1 of the test machines.

fn main() {}
