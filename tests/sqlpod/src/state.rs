//! What a session knows: settings and prepared statements. Shared with the
//! SQL functions, which run inside a statement of the same session; never
//! locked while SQLite runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::PgError;
use crate::prepared::Prepared;
use crate::settings::Settings;
use crate::transfer::{SavedStatement, Snapshot, human_size};

pub(crate) struct State {
    pub(crate) user: String,
    pub(crate) settings: Settings,
    /// By name; the unnamed one is "".
    pub(crate) statements: BTreeMap<String, Arc<Prepared>>,
    pub(crate) in_transaction: bool,
    /// Open portals other than the one that runs.
    pub(crate) other_portals: usize,
    pub(crate) temporary_tables: bool,
    /// Texts of NoticeResponses to send.
    pub(crate) notices: Vec<String>,
    /// A function's error; SQLite itself carries only its text.
    pub(crate) error: Option<PgError>,
}

impl State {
    pub(crate) fn new(user: &str, settings: Settings) -> Self {
        Self {
            user: user.to_owned(),
            settings,
            statements: BTreeMap::new(),
            in_transaction: false,
            other_portals: 0,
            temporary_tables: false,
            notices: Vec::new(),
            error: None,
        }
    }

    /// The session's state, or why it cannot be had; checked in
    /// CockroachDB's order.
    pub(crate) fn serialize(&self, max_bytes: usize) -> Result<Vec<u8>, PgError> {
        let refuse =
            |code: &str, why: &str| Err(PgError::new(code, format!("cannot serialize {why}")));
        if self.in_transaction {
            return refuse("25000", "a session which is inside a transaction");
        }
        if self.other_portals > 0 {
            return refuse("25000", "a session which has active portals");
        }
        if self.temporary_tables {
            return refuse("25000", "session with temporary schemas");
        }
        let saved = |(name, prepared): (&String, &Arc<Prepared>)| SavedStatement {
            name: name.clone(),
            sql: prepared.sql.clone(),
            types: prepared.params.clone(),
        };
        let state = Snapshot {
            session_user: self.user.clone(),
            current_user: self.user.clone(),
            settings: self.settings.values().clone(),
            statements: self
                .statements
                .iter()
                .filter(|(name, _)| !name.is_empty())
                .map(saved)
                .collect(),
        };
        let bytes = state.encode();
        if bytes.len() > max_bytes {
            let (size, max) = (human_size(bytes.len()), human_size(max_bytes));
            let text = format!("serialized session size {size} exceeds max allowed size {max}");
            return Err(PgError::new("54000", text));
        }
        Ok(bytes)
    }

    /// Takes over another session's state; all of it or nothing.
    pub(crate) fn deserialize(&mut self, bytes: &[u8]) -> Result<(), PgError> {
        if self.in_transaction {
            let text = "cannot deserialize a session whilst inside a transaction";
            return Err(PgError::new("25000", text));
        }
        let snapshot = Snapshot::decode(bytes)?;
        if snapshot.session_user != self.user {
            return Err(PgError::new(
                "42501",
                "can only deserialize matching session users",
            ));
        }
        if snapshot.current_user == "root" && self.user != "root" {
            return Err(PgError::new("42501", "only root can become root"));
        }
        let mut restored = Vec::new();
        for saved in snapshot.statements {
            if self.statements.contains_key(&saved.name) {
                return Err(duplicate(&saved.name));
            }
            let prepared = Prepared::restored(&saved.sql, saved.types)?;
            restored.push((saved.name, Arc::new(prepared)));
        }
        self.statements.extend(restored);
        self.settings.restore(snapshot.settings);
        Ok(())
    }
}

/// 42P05.
pub(crate) fn duplicate(name: &str) -> PgError {
    PgError::new(
        "42P05",
        format!("prepared statement \"{name}\" already exists"),
    )
}
