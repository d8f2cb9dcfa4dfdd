//! `sqlproxy`: a proxy that moves live SQL sessions between servers.

pub mod message;
