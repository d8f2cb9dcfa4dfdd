//! Moving sessions: rounds, transfers, and what a client sees of them.

mod answers;
mod busy;
mod late;
mod liveness;
mod many;
mod matrix;
mod migration;
mod transfer;
mod unnamed;
mod waiting;
mod without_tokens;
