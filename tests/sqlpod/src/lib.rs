//! An embedded CockroachDB-like tenant: a small server that speaks the
//! PostgreSQL protocol over SQLite, for the demo and the tests of `sqlproxy`.
//!
//! Several pods share one database file as a tenant's pods share one store.
//! A session's state can be carried from one pod to another by the statements
//! that CockroachDB has for it: `SHOW TRANSFER STATE`, the session revival
//! token and `crdb_internal.deserialize_session`.
//!
//! # Map
//! `pod` accepts and starts a `session` per connection; it goes through
//! `login`, then takes message after message (`extended` for that protocol),
//! runs statements in `execute` (with `transaction` and `copy`), which go to
//! SQLite through `engine` after `statement` (with `parser`) and `translate`
//! have read them. `prepare` keeps statements, `prepared` and `scope` find out
//! their types. `state` and `transfer` carry a session over.
//! Everything leaves through `output`, where `faults` strike, and `wire`.
//!
//! # Whose behaviour
//! CockroachDB's, and to be kept as it is there: `transfer` and `state` (the two
//! statements, their columns, refusals and errors), the revival token and `crdb:…`
//! parameters in `login`, the skip after an error and the dropped Query in `session`
//! and `extended`, `COPY` that fails on a Query.  All else is a small SQL server for
//! the clients of the demo and the tests: `lexer`, `parser`, `translate`, `scope`,
//! `types` and `engine` know just the SQL that these send.  `faults` is neither: it
//! is how tests break an answer at a step.
//!
//! # Locks
//! Each is a leaf, held for moments and never over I/O or SQLite: the
//! registry (`pod`), a session's `handle` and `state`, the rules of `faults`.
//!
//! # Not PostgreSQL
//! Statements of a pipeline commit one by one; several in one Query share a
//! transaction. One writer at a time: a second one waits. No catalog, no
//! cursors, no LISTEN, COPY in text format only.

mod auth;
mod config;
mod copy;
mod engine;
mod error;
mod execute;
mod extended;
mod faults;
mod handle;
mod health;
mod lexer;
mod login;
mod output;
mod parser;
mod pod;
mod prepare;
mod prepared;
mod scope;
mod session;
mod settings;
mod state;
mod statement;
mod tls;
mod transaction;
mod transfer;
mod translate;
mod types;
mod wire;

pub use config::{Auth, Config, Tls};
pub use faults::{Fault, Faults, Rule, RuleId, Step};
pub use health::Health;
pub use pod::Pod;
