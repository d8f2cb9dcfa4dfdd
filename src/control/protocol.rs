//! What a command and the running proxy say to each other: JSON, one line each.
//!
//! Both ends are the same binary, but for the moment of an upgrade: unknown keys are
//! ignored, an unknown command is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longer requests are refused; the longest real one names a backend.
pub(crate) const MAX_REQUEST_BYTES: u64 = 64 * 1024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Command {
    /// Backends, rounds, sessions in all.
    Status,
    /// Sessions one by one.
    Sessions {
        /// Those on this backend.
        backend: Option<String>,
        /// Those that have been asked to move and have not.
        waiting: bool,
    },
    /// One round, and its outcome.
    Migrate {
        /// Over the sessions of this backend.
        backend: Option<String>,
        /// Over this session.
        conn: Option<u64>,
        /// How long a busy session may take; else `[migration] wait`.
        wait: Option<Duration>,
    },
    /// A backend takes no new sessions, and those it has are moved away.
    Drain {
        /// Which.
        name: String,
        /// How long that may take; else `[migration] wait`.
        wait: Option<Duration>,
    },
    /// A backend takes sessions again.
    Ready {
        /// Which.
        name: String,
    },
    /// The sessions of a backend are captured and held until it comes back.
    Hold {
        /// Which.
        name: String,
        /// How long a busy session may take; else `[migration] wait`.
        wait: Option<Duration>,
    },
    /// The sessions of a backend go on.
    Release {
        /// Which.
        name: String,
    },
    /// One session is ended.
    Kill {
        /// Which.
        conn: u64,
    },
    /// The file and the certificates are read again.
    Reload,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    /// It goes on.
    Progress(String),
    /// It is over.
    Done(Done),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// The exit code: 0 done, 1 not done, 2 not understood.
    pub code: u8,
    /// For people.
    pub text: String,
    /// For programs.
    pub json: Value,
}

/// The longest `--wait`; more than that is as good as for ever.
const MAX_WAIT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A wait that a clock can hold, whatever was asked for.
#[must_use]
pub(super) fn bounded(wait: Option<Duration>) -> Option<Duration> {
    wait.map(|wait| wait.min(MAX_WAIT))
}
