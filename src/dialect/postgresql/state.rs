//! A PostgreSQL session's state, as its server tells it, and what differs
//! between two.
//!
//! All texts are bytes in the database's own encoding: a session's
//! client_encoding need not be able to say them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::settings::Settings;

/// What a session has that a new login would not have.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// Where it is.
    pub(super) place: Place,
    /// Every setting that a user may set, `role` and `session_authorization`
    /// among them.
    pub(super) settings: Settings,
    /// Settings that no view shows, of the names that were asked for; those
    /// without a value are absent.
    pub(super) custom: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Its named prepared statements.
    pub(super) statements: BTreeMap<Vec<u8>, Statement>,
    /// The channels it listens on.
    pub(super) channels: BTreeSet<Vec<u8>>,
    /// What ties it to its server.
    pub(super) obstacle: Option<Obstacle>,
    /// Length of all that the server told, in bytes.
    pub(super) bytes: usize,
}

/// What a session's server tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// `pg_control_system()`'s identifier; `None` where it may not be read.
    pub(super) system: Option<u64>,
    /// A standby.
    pub(super) in_recovery: bool,
    /// Begins its transactions read-only by its configuration.
    pub(super) read_only: bool,
    /// What it has written, or replayed where it is a standby.
    pub(super) wal: u64,
    /// The database's encoding.
    pub(super) encoding: Vec<u8>,
}

/// A prepared statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// Its text as it was sent; where PREPARE made it, all that was sent with it.
    pub(super) text: Vec<u8>,
    /// Types of its parameters.
    pub(super) types: Vec<u32>,
    /// Names of those among them that are no built-in ones.
    pub(super) type_names: Vec<u8>,
    /// Types of its result; `None` where the server does not tell (before 16).
    pub(super) result_types: Option<Vec<u8>>,
    /// Made by PREPARE, not by Parse.
    pub(super) from_sql: bool,
}

/// Why a session cannot leave its server now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Something in the session's temporary schema.
    Temporary {
        /// As `pg_identify_object` has it: `table`.
        kind: Vec<u8>,
        /// Its name.
        name: Vec<u8>,
    },
    /// A cursor WITH HOLD.
    Cursor(Vec<u8>),
    /// A session-level advisory lock, and its key.
    AdvisoryLock(Vec<u8>),
    /// A temporary replication slot.
    ReplicationSlot(Vec<u8>),
    /// The session replays under a replication origin.
    ReplicationOrigin,
    /// Connections of the extension dblink.
    Dblink(Vec<u8>),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temporary { kind, name } => {
                write!(f, "temporary {} {}", shown(kind), quoted(name))
            }
            Self::Cursor(name) => write!(f, "holdable cursor {}", quoted(name)),
            Self::AdvisoryLock(key) => write!(f, "advisory lock {}", shown(key)),
            Self::ReplicationSlot(name) => {
                write!(f, "temporary replication slot {}", quoted(name))
            }
            Self::ReplicationOrigin => f.write_str("replication origin set up"),
            Self::Dblink(names) => write!(f, "dblink connection {}", quoted(names)),
        }
    }
}

/// What the new server's session has otherwise than the old one's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Difference {
    /// Without its values, which may be secret.
    Setting(Vec<u8>),
    /// A prepared statement, by name.
    Statement(Vec<u8>),
    /// A channel that one of them listens on.
    Channel(Vec<u8>),
    /// The database's encoding.
    Encoding,
    /// The new one has this.
    Obstacle(Obstacle),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(name) => write!(f, "setting {} differs", quoted(name)),
            Self::Statement(name) => write!(f, "prepared statement {} differs", quoted(name)),
            Self::Channel(name) => write!(f, "listening on channel {} differs", quoted(name)),
            Self::Encoding => f.write_str("the database's encoding differs"),
            Self::Obstacle(obstacle) => write!(f, "the new session has: {obstacle}"),
        }
    }
}

/// A name as words show it.
pub(super) fn quoted(name: &[u8]) -> String {
    format!("\"{}\"", shown(name))
}

fn shown(name: &[u8]) -> String {
    crate::error::shown(&String::from_utf8_lossy(name))
}

impl State {
    /// The custom settings to ask the new server's session for: those that were
    /// asked for here, and an extension's whose library is not loaded there.
    pub(super) fn custom_names(&self) -> BTreeSet<Vec<u8>> {
        let extension = self
            .settings
            .iter()
            .filter(|setting| setting.by_session && is_custom(setting.name))
            .map(|setting| setting.name.to_vec());
        self.custom.keys().cloned().chain(extension).collect()
    }

    /// The value of a setting, whatever shows it.
    pub(super) fn setting(&self, name: &[u8]) -> Option<&[u8]> {
        let shown = self.settings.get(name);
        shown.or_else(|| self.custom.get(name).map(Vec::as_slice))
    }

    /// The settings that a session has to have elsewhere: with their names,
    /// whether the session itself has set them.
    ///
    /// An extension's setting that nobody has set appears with the first use of
    /// its library; a session that has not used it is no different for that.
    pub(super) fn own_settings(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
        let shown = self
            .settings
            .iter()
            .map(|setting| (setting.name, setting.value, setting.by_session));
        let custom = self.custom.iter();
        shown.chain(custom.map(|(name, value)| (&**name, &**value, false)))
    }

    /// The first thing that `new` has otherwise.
    pub(super) fn difference(&self, new: &Self) -> Option<Difference> {
        if self.place.encoding != new.place.encoding {
            return Some(Difference::Encoding);
        }
        for (name, value, by_session) in self.own_settings() {
            let there = new.setting(name);
            let unloaded = there.is_none() && !by_session && !self.custom.contains_key(name);
            if there != Some(value) && !(unloaded && is_custom(name)) {
                return Some(Difference::Setting(name.to_vec()));
            }
        }
        let added = new.custom.keys().find(|name| self.setting(name).is_none());
        if let Some(name) = added {
            return Some(Difference::Setting(name.clone()));
        }
        let names = self.statements.keys().chain(new.statements.keys());
        for name in names {
            let same = match (self.statements.get(name), new.statements.get(name)) {
                (Some(old), Some(new)) => old.means(new),
                _ => false,
            };
            if !same {
                return Some(Difference::Statement(name.clone()));
            }
        }
        if let Some(name) = self.channels.symmetric_difference(&new.channels).next() {
            return Some(Difference::Channel(name.clone()));
        }
        new.obstacle.clone().map(Difference::Obstacle)
    }
}

impl Statement {
    /// Whether both are the same, as far as both servers tell.
    fn means(&self, other: &Self) -> bool {
        let results = match (&self.result_types, &other.result_types) {
            (Some(old), Some(new)) => old == new,
            _ => true,
        };
        results
            && self.text == other.text
            && self.types == other.types
            && self.type_names == other.type_names
            && self.from_sql == other.from_sql
    }
}

/// A name with a dot is an extension's or nobody's (guc.c, `add_placeholder_variable`).
pub(super) fn is_custom(name: &[u8]) -> bool {
    name.contains(&b'.')
}
