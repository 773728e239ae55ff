//! The C interface of the vfio-fast engine.
