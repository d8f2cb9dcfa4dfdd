//! Gives a new session the state of another: one batch, which does all of it or
//! nothing, each step by the name of what it restores.
//!
//! The order: what others depend on comes first.  A statement is parsed with
//! the session's search_path and role; the times it allows itself come last, or
//! the batch itself would stand under them.

use std::time::Duration;

use super::super::Request;
use super::Step;
use super::batch::{Batch, BatchAnswer};
use super::capture::{OVERRIDDEN, guard};
use super::state::{State, Statement, is_custom, quoted};
use super::words::first_word;

/// Set before everything else but after the other settings: whose rights count.
const RIGHTS: [&[u8]; 2] = [b"session_authorization", b"role"];
const CLIENT_ENCODING: &[u8] = b"client_encoding";

/// Why a state cannot be given to any other session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unrestorable {
    /// PostgreSQL keeps the whole text that was sent with a PREPARE
    /// (prepare.c, `PrepareQuery`), and this one does more than that.
    #[error("prepared statement {name}: its text is not that of one PREPARE", name = quoted(.0))]
    NotOnePrepare(Vec<u8>),
}

/// The batch that makes a session that has just logged in, whose state is
/// `login`, one with the state `wanted`.
///
/// # Errors
/// [`Unrestorable`], before anything is sent.
pub(super) fn restore(
    name: &str,
    timeout: Duration,
    wanted: &State,
    login: &State,
) -> Result<(Request, BatchAnswer<Step>), Unrestorable> {
    let mut batch = Batch::new(name);
    guard(&mut batch, timeout);
    // All texts are sent as the database holds them.
    batch.execute(
        Step::Guard,
        b"SELECT pg_catalog.set_config('client_encoding', \
          pg_catalog.getdatabaseencoding()::pg_catalog.text, true)",
        &[],
    );
    let changes: Vec<_> = changed_settings(wanted, login).collect();
    let at_the_end = |name: &[u8]| {
        name == CLIENT_ENCODING || OVERRIDDEN.iter().any(|own| own.as_bytes() == name)
    };
    let first = changes
        .iter()
        .filter(|(name, _)| !RIGHTS.contains(name) && !at_the_end(name));
    for (name, value) in first {
        set(&mut batch, name, value);
    }
    let mut rights_changed = false;
    for right in RIGHTS {
        let value = wanted.setting(right);
        // Setting session_authorization takes the role away.
        if let Some(value) = value
            && (rights_changed || login.setting(right) != Some(value))
        {
            set(&mut batch, right, value);
            rights_changed = true;
        }
    }
    for (name, statement) in &wanted.statements {
        prepare(&mut batch, name, statement)?;
    }
    for channel in &wanted.channels {
        let mut sql = b"LISTEN \"".to_vec();
        for &byte in channel {
            // Doubled within an identifier.
            sql.extend(std::iter::repeat_n(byte, if byte == b'"' { 2 } else { 1 }));
        }
        sql.push(b'"');
        batch.execute(Step::Channel(channel.clone()), &sql, &[]);
    }
    // Its other values are names, which every encoding can say.
    let last =
        std::iter::once(CLIENT_ENCODING).chain(OVERRIDDEN.iter().rev().map(|name| name.as_bytes()));
    for name in last {
        if let Some((_, value)) = changes.iter().find(|(changed, _)| *changed == name) {
            set(&mut batch, name, value);
        }
    }
    Ok(batch.finish())
}

/// The Parse that the client sent without a name, for the new session.
pub(super) fn restore_unnamed(name: &str, frame: &[u8]) -> (Request, BatchAnswer<Step>) {
    let mut batch = Batch::new(name);
    batch.parse_frame(Step::Unnamed, frame);
    batch.finish()
}

/// What a new session has to be told: what differs, and what the session itself
/// has set, so that no later change of the server's defaults touches it.
fn changed_settings<'a>(
    wanted: &'a State,
    login: &'a State,
) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    wanted
        .own_settings()
        .filter_map(|(name, value, by_session)| {
            let there = login.setting(name);
            let unloaded = there.is_none() && !wanted.custom.contains_key(name) && is_custom(name);
            let changed = by_session || (there != Some(value) && !unloaded);
            changed.then_some((name, value))
        })
}

fn set(batch: &mut Batch<Step>, name: &[u8], value: &[u8]) {
    batch.execute(
        Step::Setting(name.to_vec()),
        b"SELECT pg_catalog.set_config($1, $2, false)",
        &[name, value],
    );
}

fn prepare(
    batch: &mut Batch<Step>,
    name: &[u8],
    statement: &Statement,
) -> Result<(), Unrestorable> {
    let step = Step::Statement(name.to_vec());
    if !statement.from_sql {
        batch.parse(step, name, &statement.text, &statement.types);
    } else if first_word(&statement.text).eq_ignore_ascii_case(b"prepare") {
        // A text of several commands fails at its Parse, before it does anything.
        batch.execute(step, &statement.text, &[]);
    } else {
        return Err(Unrestorable::NotOnePrepare(name.to_vec()));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use crate::dialect::postgresql::settings::Setting;

    fn state(settings: &[(&str, &str, bool)]) -> State {
        let mut state = State::default();
        for (name, value, by_session) in settings {
            state.settings.insert(Setting {
                name: name.as_bytes(),
                value: value.as_bytes(),
                by_session: *by_session,
            });
        }
        state
    }

    fn order(wanted: &State, login: &State) -> Vec<String> {
        let (request, _) = restore("own", Duration::from_secs(1), wanted, login).unwrap();
        // Names and values stand in the Binds as parameters.
        let text = String::from_utf8_lossy(&request.bytes).into_owned();
        let mut found: Vec<_> = wanted
            .settings
            .iter()
            .map(|setting| String::from_utf8_lossy(setting.name).into_owned())
            .filter_map(|name| {
                let parameter = format!("\0{}{name}\0\0\0", char::from(name.len() as u8));
                Some((text.find(&parameter)?, name))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn settings_come_in_the_order_in_which_they_depend_on_each_other() {
        let wanted = state(&[
            ("client_encoding", "SJIS", true),
            ("exit_on_error", "on", false),
            ("role", "r", false),
            ("search_path", "a", true),
            ("session_authorization", "u", false),
            ("statement_timeout", "1ms", false),
            ("work_mem", "64", false),
            ("application_name", "same", false),
        ]);
        let login = state(&[
            ("application_name", "same", false),
            ("role", "none", false),
            ("session_authorization", "postgres", false),
            ("work_mem", "32", false),
        ]);
        assert_eq!(
            order(&wanted, &login),
            [
                "search_path",
                "work_mem",
                "session_authorization",
                "role",
                "client_encoding",
                "exit_on_error",
                "statement_timeout",
            ]
        );
    }

    #[test]
    fn a_role_is_set_again_where_the_authorization_took_it_away() {
        let wanted = state(&[("role", "r", false), ("session_authorization", "u", false)]);
        let login = state(&[
            ("role", "r", false),
            ("session_authorization", "postgres", false),
        ]);
        assert_eq!(order(&wanted, &login), ["session_authorization", "role"]);
        assert_eq!(order(&wanted, &wanted), [] as [&str; 0]);
    }

    #[test]
    fn only_a_text_that_begins_with_prepare_is_executed() {
        let mut wanted = State::default();
        let statement = Statement {
            text: b"INSERT INTO a VALUES (1); PREPARE b AS SELECT 1".to_vec(),
            types: Vec::new(),
            type_names: Vec::new(),
            result_types: None,
            from_sql: true,
        };
        wanted.statements.insert(b"b".to_vec(), statement);
        let refused = restore("own", Duration::ZERO, &wanted, &State::default()).map(drop);
        assert_eq!(
            refused.unwrap_err().to_string(),
            "prepared statement \"b\": its text is not that of one PREPARE"
        );
    }
}
