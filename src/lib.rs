//! `sqlproxy`: moves live SQL sessions between servers.
//!
//! # Reading order
//! The modules below stand in the order in which to read them; each uses only
//! what stands after it.  [`connection`] is one client's life, top to bottom:
//! begin there.
//!
//! # Data flow
//! ```text
//!            request processor                       bytes of the client
//!  client ─────────────────────▶ server ─ ─ ─ ▶      while suspended: nothing
//!         ◀─────────────────────        ◀ ─ ─ ─
//!            response processor          new server  (transfer's own login)
//!                   │    ▲
//!        every frame│    │may it pass?
//!                   ▼    │
//!        forwarder: exchange + phases + gate + order, one lock
//!                        │
//!                        └──▶ at the safe point: transfer, with both connections
//! ```
//!
//! # Threads
//! | thread | how many | blocks in |
//! |---|---|---|
//! | main | 1 | the signals' channel |
//! | signals, ctrl-c | 2 | the kernel |
//! | accept | one a listener | accept |
//! | request-N: session N, its request processor | one a client | poll, send, the gate |
//! | response-N: its response processor | one a session | poll, send, the gate |
//! | transfer-N | one a transfer, at most `workers` | reads until the transfer's deadline |
//! | round-N | one a round | the round's last outcome, a second at a time |
//! | admin | 1, and one a request | poll |
//! | resolve | one a dial of a name | the C library's resolver |
//!
//! # Locks
//! Taken in this order where more than one is held, which is rare; no I/O under
//! any of them but the two calls on an eventfd, a send that does not wait under
//! `Duplex::core`, and a writer's own sends under its `Duplex::turn`.
//!
//! | lock | guards | under it |
//! |---|---|---|
//! | `Forwarder::state` | one session's exchange, phases, gate, order | `ReadDeadline::expired`, `Workers::places` |
//! | `Workers::places` | transfers under way and their queue | – |
//! | `ReadDeadline::expired` | one session's eventfd | – |
//! | `Round::counts` | a round's outcomes | – |
//! | `Balancer::backends` | backends and their sessions | – |
//! | `Registry::entries`, `CancelKeys::keys`, `Places::state` | who is here | – |
//! | `Session::cause`, `Parameters` | one session's end, what its client was told | – |
//! | `Duplex::turn` | whose write it is, of one TLS connection | `Duplex::core` |
//! | `Duplex::core` | its TLS library, never while anything waits | – |

pub mod arguments;
pub mod server;
pub mod connection;
pub mod admission;
pub mod session;
pub mod disconnect;
pub mod processor;
pub mod transfer;
pub mod ticket;
pub mod round;
pub mod workers;
pub mod session_name;
pub mod server_conn;
pub mod forwarder;
pub mod exchange;
pub mod sync;
pub mod cancel;
pub mod connector;
pub mod authentication;
pub mod balancer;
pub mod registry;
pub mod connection_limit;
pub mod parameters;
pub mod admin;
pub mod signals;
pub mod limits;
pub mod metrics;
pub mod logging;
pub mod config;
pub mod dialect;
pub mod startup;
pub mod frame;
pub mod message;
pub mod tls;
pub mod stream;
pub mod socket;
pub mod error;
