//! `sqlproxy`: a proxy that moves live SQL sessions between servers.

pub mod error;
pub mod frame;
pub mod arguments;
pub mod config;
pub mod limits;
pub mod logging;
pub mod exchange;
pub mod message;
pub mod socket;
pub mod stream;
pub mod signals;
