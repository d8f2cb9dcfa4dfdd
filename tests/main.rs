//! Tests of the proxy as its users meet it: a process, sockets and a log.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test says that something is wrong by panicking"
)]

mod support;

mod admission;
mod answers;
mod authentication;
mod busy;
mod cancel;
mod exchange;
mod late;
mod fuzz;
mod many;
mod matrix;
mod metrics;
mod migration;
mod options;
mod reload;
mod shutdown;
mod split;
mod storm;
mod transfer;
mod waiting;
mod tls;
