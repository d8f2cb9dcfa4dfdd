//! Tests of the proxy as its users meet it: a process, sockets and a log.
//!
//! | symptom | look in |
//! |---|---|
//! | a login fails, or a stranger gets further than it should | admission, authentication |
//! | `[login] method = "scram"`: a password, its proof, a lookup | scram, `src/scram/tests.rs` |
//! | a client hangs, or gets an answer that is not its own, after a move | moving/answers, moving/late, moving/busy |
//! | a session does not move, or its reason is wrong | moving/waiting, moving/transfer, exchange |
//! | a failure in a transfer costs the session | moving/matrix |
//! | a round's counts, order or summary | moving/migration, moving/many |
//! | a PostgreSQL session does not arrive as it was, or stays without a reason | postgresql |
//! | a wake-up is lost, a suspension hangs | storm, and `src/forwarder/model.rs` |
//! | a message is cut or mixed up at a read's edge | split |
//! | the tracker of unanswered requests is wrong | exchange, `src/exchange/tests.rs` |
//! | clients are locked out by others who do not log in | crowd, `src/handshakes.rs` |
//! | a peer that has died is not noticed | dead_peers |
//! | a drain does not end, a node is not left in time | drain |
//! | a cancel is lost or hits the wrong query | cancel |
//! | TLS: handshakes, certificates, channel binding, alerts | tls |
//! | a reload loses or changes what it should not | reload, tls/reload |
//! | a session is lost while its server restarts, a hold does not end | hold |
//! | `/readyz` is wrong or late, a backend counts as up or down and is not | health |
//! | a server's bytes cost memory or time that they should not | hostile_servers |
//! | a share of the sessions, a network, an idle session | limits |
//! | half a message, a batch without Sync or a COPY keeps a session for ever | unfinished |
//! | a client that sends no more loses an answer, or keeps its session | leaving |
//! | a log line is forged, swollen or lost, or the log stops the proxy | logging |
//! | a message costs more system calls | cost |
//! | a message allocates | `tests/allocations.rs`, a program of its own |
//! | it uses a core while nothing happens | rest |
//! | the end: SIGTERM, last messages, exit codes | shutdown |
//! | command line, configuration errors | options, `src/config/tests.rs` |
//! | a command's answer or exit code, the status | control |
//! | a counter or a gauge is off, the admin's HTTP | metrics, `src/admin/tests.rs` |
//! | the page for people is wrong, or runs what it should not | page |
//! | peers' bytes bring the proxy down | fuzz |
//! | the machine has no threads left | exhaustion |
//! | the map in `src/lib.rs` and the code differ | structure |
//! | a test's own peers are wrong | support/selftest |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test says that something is wrong by panicking"
)]

mod support;

mod admission;
mod authentication;
mod cancel;
mod control;
mod cost;
mod crowd;
mod dead_peers;
mod drain;
mod exchange;
mod exhaustion;
mod fuzz;
mod health;
mod hold;
mod hostile_servers;
mod leaving;
mod limits;
mod logging;
mod metrics;
mod moving;
mod options;
mod page;
mod postgresql;
mod reference;
mod reload;
mod replacing;
mod rest;
mod scram;
mod shutdown;
mod split;
mod storm;
mod structure;
mod tls;
mod unfinished;
