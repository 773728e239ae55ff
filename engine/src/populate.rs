//! Faulting memory in on many threads before it is mapped.
