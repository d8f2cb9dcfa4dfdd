//! `[[backend]]`.

use super::reader::Section;
use super::{Address, ConfigError};

/// Larger than any name in a metric or a log line should be.
const MAX_NAME_LENGTH: usize = 63;

/// One `[[backend]]`: a SQL node that sessions may be on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// `name`: how the log and the metrics call it; unique.
    pub name: String,
    /// `address`: resolved anew at each dial; the port is never 0.
    pub address: Address,
    /// `state`: whether it takes sessions.
    pub state: BackendState,
    /// `health_url`: where the node says over HTTP that it is about to go, by a 503.
    pub health_url: Option<String>,
}

/// Whether a backend takes sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendState {
    /// `"active"`: takes new sessions.
    Active,
    /// `"draining"`: takes none; those it has are moved away.
    Draining,
}

pub(super) fn read_backends(root: &Section<'_>) -> Result<Vec<BackendConfig>, ConfigError> {
    let mut backends: Vec<BackendConfig> = Vec::new();
    for section in root.sections("backend", &["name", "address", "state", "health_url"])? {
        let backend = BackendConfig {
            name: section.name("name", MAX_NAME_LENGTH)?,
            address: section
                .address("address", 1)?
                .ok_or_else(|| section.missing("address", "\"host:port\""))?,
            state: section
                .choice(
                    "state",
                    &[
                        ("active", BackendState::Active),
                        ("draining", BackendState::Draining),
                    ],
                )?
                .unwrap_or(BackendState::Active),
            health_url: section.url("health_url")?,
        };
        if backends.iter().any(|other| other.name == backend.name) {
            let message = format!("expected a unique name, found {:?} again", backend.name);
            return Err(section.error("name", &message));
        }
        backends.push(backend);
    }
    if backends.is_empty() {
        return Err(root.missing("backend", "at least one [[backend]] section"));
    }
    Ok(backends)
}
