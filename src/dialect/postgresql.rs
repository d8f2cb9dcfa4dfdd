//! PostgreSQL: the session's state is read by SQL, rebuilt by SQL, and read
//! again to compare.
//!
//! The servers know nothing of it, so everything here has to work in whatever
//! state a session is, and to leave none behind.

mod batch;
mod capture;
mod conversation;
mod learning;
mod restore;
mod settings;
mod sql;
mod state;
mod target;
mod words;

use std::fmt;

pub(super) use conversation::{Transfer, is_replication};
pub(super) use learning::NameWatcher;
use state::quoted;

/// What a statement of the proxy's own is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Makes the batch independent of the session's settings.
    Guard,
    /// Lets time pass.
    Wait,
    /// Where the session is.
    Place,
    /// What ties it there.
    Obstacles,
    /// Asks for the settings.
    Settings,
    /// Asks for the settings that no view shows.
    CustomSettings,
    /// Asks for the prepared statements.
    Statements,
    /// Asks for the channels.
    Channels,
    /// Sets one setting.
    Setting(Vec<u8>),
    /// Prepares one statement.
    Statement(Vec<u8>),
    /// Listens on one channel.
    Channel(Vec<u8>),
    /// Parses the unnamed statement.
    Unnamed,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guard => "preparing to ask",
            Self::Wait => "waiting",
            Self::Place => "asking for the server",
            Self::Obstacles => "asking for temporary objects, cursors and locks",
            Self::Settings => "asking for settings",
            Self::CustomSettings => "asking for custom settings",
            Self::Statements => "asking for prepared statements",
            Self::Channels => "asking for channels",
            Self::Setting(name) => return write!(f, "setting {}", quoted(name)),
            Self::Statement(name) => return write!(f, "prepared statement {}", quoted(name)),
            Self::Channel(name) => return write!(f, "listening on channel {}", quoted(name)),
            Self::Unnamed => "unnamed statement",
        })
    }
}
