//! The pod over real sockets: ordinary clients, the transfer's statements byte
//! by byte, faults, and the end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

mod faults;
mod lifecycle;
mod ordinary;
mod protocol;
mod raw;
mod transfer;
