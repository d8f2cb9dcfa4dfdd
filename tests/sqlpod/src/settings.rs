//! A session's settings: what there is, and what a client is told unasked.

use std::collections::BTreeMap;

use crate::error::PgError;

/// The server version that clients see; a CockroachDB says 13.0.0 as well.
pub(crate) const SERVER_VERSION: &str = "13.0.0";
/// What `version()` and `crdb_version` say.
pub(crate) const VERSION: &str = "CockroachDB-like sqlpod v0.1.0 over SQLite";

/// Settings and their defaults.
const DEFAULTS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("database", ""),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_isolation", "serializable"),
    ("extra_float_digits", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("intervalstyle", "postgres"),
    ("lock_timeout", "0"),
    ("role", "none"),
    ("search_path", "\"$user\", public"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("timezone", "UTC"),
];

/// Settings that nobody changes.
const FIXED: &[(&str, &str)] = &[
    ("crdb_version", VERSION),
    ("integer_datetimes", "on"),
    ("max_identifier_length", "128"),
    ("server_encoding", "UTF8"),
    ("server_version_num", "130000"),
    ("transaction_isolation", "serializable"),
];

/// Settings reported by ParameterStatus whenever they change, spelled as
/// clients know them.
pub(crate) const REPORTED: &[(&str, &str)] = &[
    ("application_name", "application_name"),
    ("client_encoding", "client_encoding"),
    ("datestyle", "DateStyle"),
    ("intervalstyle", "IntervalStyle"),
    ("standard_conforming_strings", "standard_conforming_strings"),
    ("timezone", "TimeZone"),
];

/// Values by lower-case name; what differs from the session's start is here
/// just as what does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// What RESET returns to: the defaults and the startup parameters.
    initial: BTreeMap<String, String>,
    values: BTreeMap<String, String>,
    server_version: String,
}

impl Settings {
    pub(crate) fn new(database: &str, server_version: &str) -> Self {
        let pairs = DEFAULTS
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut initial: BTreeMap<_, _> = pairs.collect();
        initial.insert("database".to_owned(), database.to_owned());
        let server_version = server_version.to_owned();
        Self {
            values: initial.clone(),
            initial,
            server_version,
        }
    }

    /// Takes a startup parameter: RESET will come back to it.
    pub(crate) fn start(&mut self, name: &str, value: &str) -> Result<(), PgError> {
        self.set(name, value)?;
        self.initial
            .insert(name.to_ascii_lowercase(), value.to_owned());
        Ok(())
    }

    /// # Errors
    /// 42704 for an unknown name, 55P02 for a fixed one; names with a dot are
    /// the client's own.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), PgError> {
        let name = name.to_ascii_lowercase();
        if name == "server_version" || FIXED.iter().any(|(fixed, _)| *fixed == name) {
            return Err(PgError::new(
                "55P02",
                format!("parameter \"{name}\" cannot be changed"),
            ));
        }
        if !name.contains('.') && !self.initial.contains_key(&name) {
            return Err(unknown(&name));
        }
        self.values.insert(name, value.to_owned());
        Ok(())
    }

    pub(crate) fn reset(&mut self, name: &str) -> Result<(), PgError> {
        let name = name.to_ascii_lowercase();
        match self.initial.get(&name) {
            Some(value) => self.values.insert(name, value.clone()),
            None if name.contains('.') => self.values.remove(&name),
            None => return Err(unknown(&name)),
        };
        Ok(())
    }

    pub(crate) fn reset_all(&mut self) {
        self.values = self.initial.clone();
    }

    /// # Errors
    /// 42704 for a name that is not there.
    pub(crate) fn get(&self, name: &str) -> Result<String, PgError> {
        let lower = name.to_ascii_lowercase();
        if lower == "server_version" {
            return Ok(self.server_version.clone());
        }
        let fixed = || {
            FIXED
                .iter()
                .find(|(fixed, _)| *fixed == lower)
                .map(|(_, v)| (*v).to_owned())
        };
        self.values
            .get(&lower)
            .cloned()
            .or_else(fixed)
            .ok_or_else(|| unknown(&lower))
    }

    /// All values, for a session's state.
    pub(crate) fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// Replaces all values by those of a session's state.
    pub(crate) fn restore(&mut self, values: BTreeMap<String, String>) {
        self.values = values;
    }

    /// The values a client is told of, in a fixed order.
    pub(crate) fn reported(&self) -> Vec<(&'static str, String)> {
        let value = |name: &str| self.values.get(name).cloned().unwrap_or_default();
        REPORTED
            .iter()
            .map(|(name, shown)| (*shown, value(name)))
            .collect()
    }
}

fn unknown(name: &str) -> PgError {
    PgError::new(
        "42704",
        format!("unrecognized configuration parameter \"{name}\""),
    )
}
