#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod config;
mod engine;
mod error;
mod info;
mod map;
mod range;
mod region;
#[cfg(feature = "sim")]
pub mod sim;
mod transaction;

pub use config::{Config, Level};
pub use engine::Engine;
pub use error::{Error, Operation, Result};
pub use info::{Info, Outcome, Progress, ProgressState, Refused, Stats, Superpages};
pub use region::Region;
pub use transaction::Transaction;
