//! What the measuring programs print, one JSON object a line, and the machine they print it of.

pub mod calls;
pub mod host;
pub mod native;
