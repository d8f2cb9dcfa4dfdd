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
//! A round's way: server → rounds → ticket → forwarder → transfer → ticket's log line
//! → round's summary.  Where no server takes the session: transfer → hold → ticket.
//!
//! # Threads
//! | thread | how many | blocks in |
//! |---|---|---|
//! | main | 1 | the signals' channel |
//! | heap | one a core but one, until each has had a heap made | each other |
//! | signals, ctrl-c | 1 each | the kernel |
//! | accept | one a listener | accept |
//! | login | one a connection until its session begins (login-N), and for good where no further thread is to be had | recv, send |
//! | request, response | one each a session (request-N, response-N) | recv, send, the gate |
//! | spare | those of login, of request and response, and of transfer whose work is done, at most 64 each | the next connection, a second at most |
//! | transfer | one a transfer (transfer-N), at most `workers` | reads until the transfer's deadline |
//! | sweep | 1, where `[migration] capture` is "idle" or `idle_timeout` is set | its interval |
//! | drain | 1, while backends are to be emptied | its interval |
//! | hold | 1, while sessions are held | their sockets, at most a twentieth of a second at a time |
//! | probe | one a backend that held sessions wait for (probe-NAME) | a dial |
//! | round | one a round (round-N) | the round's outcomes, at most a tenth of a second at a time |
//! | resolve | up to 4, once a name is dialled | the C library's resolver |
//! | health, page | one a backend (health-NAME), and one where it has a `health_url` (page-NAME); none where `health_interval` is 0 | a dial, a request, the interval |
//! | notify | 1, where systemd wants to hear | the service manager, the next message |
//! | log | 1 | a log line, stderr |
//! | control, control client | 1, and one a command | accept; a round's outcomes |
//! | admin | 1 | its clients' sockets, all at once |
//!
//! # Locks
//! Taken in this order where more than one is held.  No I/O, no log line and no
//! dial under any of them, but for setting a socket's timeout and signalling a thread,
//! a send that does not wait under `Duplex::core`, and a writer's own sends under its
//! `Duplex::turn`.
//!
//! | lock | guards | taken under it |
//! |---|---|---|
//! | `Forwarder::state` | one session's exchange, phases, gate, order | `ReadDeadline::parties`, `Workers::queue` |
//! | `Workers::queue` | transfers under way and who waits for a place | – |
//! | `ReadDeadline::parties` | one session's sockets, and its processors' threads until they end | – |
//! | `Round::counts`, `Round::not_moved` | a round's outcomes | – |
//! | `Threads::idle` | threads that wait for work | – |
//! | `Slot::next` | the work that one of them is given | – |
//! | `ProxyState::draining` | the way to the thread that empties backends | – |
//! | `Holds::book` | how many sessions of which backend are held | `Balancer::backends`, `News::holding` |
//! | `Rounds::history` | the last rounds | – |
//! | `RecentTransfers::kept` | the last transfers | – |
//! | `Session::ahead` | the state that was captured while it was idle | – |
//! | `Session::last_transfer`, `Session::stays_told` | how its last order to move ended; why the log says that it cannot | – |
//! | `Session::reason` | why it ends | – |
//! | `TransferContext::parameters` (the processors' `Context::parameters`) | what one client was told | – |
//! | `Balancer::backends` | backends and their sessions | – |
//! | `InClear::refused` | servers that have just refused TLS | – |
//! | `News::holding` | whether new clients wait for a server | – |
//! | `Registry::entries`, `CancelKeys::keys` | who is here | – |
//! | `Peers::others` | where the peers are: copied out, never held | – |
//! | `Entry::requests` | one key's cancel requests | – |
//! | `CustomNames::known`, `SessionNames::own` | names of settings that no server lists, the process's and one session's | – |
//! | `Handshakes::table` | connections that are not logged in | – |
//! | `Users::source` | what is known of users: copied out, never held | – |
//! | `Lookups::under_way` | how many users are looked up for which address | – |
//! | `Shares::counts` | sessions of each user and database | – |
//! | `Limit::state` | permits of connections and sessions | – |
//! | `ProxyState::config`, `ProxyState::tls`, `Connector::settings` | what a reload changes: copied out, never held | – |
//! | `Health::probers` | who looks at which backend | `Balancer::backends` |
//! | `Resolver::lookups` | names being looked up, threads that do it | – |
//! | `Lookup::answer` | one name's addresses | – |
//! | `Metrics::transfers` | what a finished transfer changes together | – |
//! | `LogWriter::queue` | lines on their way to stderr, and what repeats | – |
//! | `Logger::settings` | how they are written: copied out, never held | – |
//! | `Duplex::turn` | whose write it is, of one TLS connection | `Duplex::core` |
//! | `Duplex::core` | its TLS library, never while anything waits | – |

// The modules are private, and so is whoever reads this documentation: scripts/test
// builds it with --document-private-items.
#![allow(rustdoc::private_intra_doc_links)]

// The process
mod arguments;
mod control_client;
mod server;
mod service_manager;
mod ending;
mod sweep;
mod control;
mod drain;
mod status;
mod accept;

// A client's life
mod connection;
mod proxy_state;
mod proxy_header;
mod admission;
mod session;
mod disconnect;
mod processor;

// Moving
mod hold;
mod transfer;
mod ticket;
mod rounds;
mod round;
mod recent_transfers;
mod workers;
mod rate;
mod session_name;
mod server_conn;
mod forwarder;
mod exchange;
mod sync;

// Reaching servers
mod cancel;
mod peers;
mod users;
mod health;
mod connector;
mod resolver;
mod authentication;
mod balancer;
mod registry;
mod handshakes;
mod connection_limit;
mod shares;

// Operation
mod admin;
mod signals;
mod stage;
mod limits;
mod heaps;
mod metrics;
mod logging;
mod userlist;
mod passfile;
mod config;

// Protocol
mod dialect;
mod scram;
mod tls;
mod startup;
mod parameters;
mod frame;
mod message;

// Streams
mod stream;
mod socket;
mod threads;
mod unchecked;
mod error;

/// What the binary and the tests use; no interface for anybody else.
#[doc(hidden)]
pub mod internal {
    pub use crate::arguments::Arguments;
    pub use crate::config::Config;
    pub use crate::control_client::ask;
    pub use crate::heaps::share as share_heaps;
    pub use crate::limits::check as check_limits;
    pub use crate::logging::{flush as flush_log, init as init_log};
    pub use crate::server::Server;
    pub use crate::signals::install as install_signals;
    pub use crate::users::check as check_users;

    pub use crate::dialect::{
        Answer, BadAnswer, Conversation, Credentials, CustomNames, Dialect, LoginMethod,
        SessionNames, SessionState, SessionTransfer, Turn,
    };
    pub use crate::error::SqlState;
    pub use crate::exchange::{
        Exchange, SkipRule, Unnamed, UnnamedEffect, UnnamedTracker, WaitingFor,
    };
    pub use crate::forwarder::{
        Closing, Direction, Forwarder, Interrupt, NotParked, Ordered, Ready, Resumed, Suspension,
        Ticket,
    };
    pub use crate::frame::{Frame, HEADER_BYTES, Header, Scanner, Verdict};
    pub use crate::message::{
        BackendTag, ErrorFields, FrontendTag, TransactionStatus, data_row, fatal_error,
        parameter_status, put_parameter_status, refuses_unread, row_description,
    };
    pub use crate::parameters::Parameters;
    pub use crate::processor::{Context, ProcessorExit, ServerStream, run_requests, run_responses};
    pub use crate::socket::{ReadDeadline, Reader, Received, Socket, Wait};
    pub use crate::startup::{Startup, StartupPacket, cancel_request};
    pub use crate::stream::Stream;
    pub use crate::tls::{
        ClientTlsContext, Negotiated, ServerTlsContext, SslMode, TlsContexts, same_certificate,
    };
}
