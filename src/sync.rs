//! The lock and the condition variable of the suspension handshake, in one
//! place so that a model checker can take theirs.

pub use parking_lot::{Condvar, Mutex, MutexGuard};
