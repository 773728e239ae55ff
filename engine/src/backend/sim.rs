//! An executable model of type1v2.
