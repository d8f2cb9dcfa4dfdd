//! Asks a PostgreSQL session for its state without disturbing it.
//!
//! All of it is one batch, which leaves nothing behind: its own settings are
//! local to the transaction that the batch is.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::Request;
use super::Step;
use super::batch::{Batch, BatchAnswer, BatchFailure, Row};
use super::settings::Setting;
use super::sql;
use super::state::{Obstacle, Place, State, Statement, is_custom};
use crate::frame::Frame;

/// Settings that the batch overrides for itself, and that only the session's
/// last word on them is known of: not whether it was its own.
pub(super) const OVERRIDDEN: [&str; 4] = [
    STATEMENT_TIMEOUT,
    "lock_timeout",
    "transaction_timeout",
    "exit_on_error",
];
const STATEMENT_TIMEOUT: &str = "statement_timeout";

/// How much to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All that a session may have.
    Session,
    /// What a login alone may have brought.
    Login,
    /// What a restore may have brought.
    Restored,
}

/// What to ask, and how.
#[derive(Debug, Clone)]
pub(super) struct CaptureOptions<'a> {
    /// How much.
    pub(super) extent: Extent,
    /// Name of the statements: one that no client has.
    pub(super) name: &'a str,
    /// The server's major version.
    pub(super) version: u32,
    /// How long one statement may take: the server gives up then by itself.
    pub(super) timeout: Duration,
    /// Settings with a dot in their names to ask for.
    pub(super) custom_names: &'a BTreeSet<Vec<u8>>,
    /// Wait this long on the server before asking.
    pub(super) wait: Duration,
}

/// The batch that asks for everything.
pub(super) fn capture(options: &CaptureOptions<'_>) -> (Request, BatchAnswer<Step>) {
    let mut batch = Batch::new(options.name);
    guard(&mut batch, options.timeout);
    if !options.wait.is_zero() {
        let seconds = options.wait.as_secs_f64();
        batch.execute(
            Step::Wait,
            format!("SELECT pg_catalog.pg_sleep({seconds})").as_bytes(),
            &[],
        );
    }
    batch.execute(Step::Place, sql::place().as_bytes(), &[]);
    if options.extent == Extent::Session {
        batch.execute(Step::Obstacles, sql::obstacles().as_bytes(), &[]);
    }
    batch.execute(Step::Settings, sql::settings().as_bytes(), &[]);
    let custom: Vec<_> = options.custom_names.iter().map(Vec::as_slice).collect();
    if let [first, rest @ ..] = custom.as_slice() {
        let mut names = first.to_vec();
        for name in rest {
            names.push(b',');
            names.extend_from_slice(name);
        }
        batch.execute(
            Step::CustomSettings,
            sql::custom_settings().as_bytes(),
            &[&names],
        );
    }
    if options.extent != Extent::Login {
        let statements = sql::statements(options.name, options.version);
        batch.execute(Step::Statements, statements.as_bytes(), &[]);
        batch.execute(Step::Channels, sql::channels().as_bytes(), &[]);
    }
    batch.finish()
}

/// Gives the batch time, whatever the session allows itself, and keeps an error
/// from ending the session.
///
/// The first statement is under the session's own statement_timeout yet, so it
/// does nothing else.  Neither takes longer than a tenth of a millisecond where
/// the server has a processor for it; see [`is_worth_retrying`].
pub(super) fn guard(batch: &mut Batch<Step>, timeout: Duration) {
    let milliseconds = timeout.as_millis().clamp(1, 2_000_000_000).to_string();
    // The inner query comes first: OFFSET keeps the two from becoming one.
    let first = format!(
        "SELECT o.old, pg_catalog.set_config('{STATEMENT_TIMEOUT}', '{milliseconds}', true) \
         FROM (SELECT {} AS old OFFSET 0) AS o",
        sql::bytes("pg_catalog.current_setting('statement_timeout')")
    );
    batch.execute(Step::Guard, first.as_bytes(), &[]);
    let old = OVERRIDDEN.iter().skip(1).enumerate();
    let (mut inner, mut outer) = (Vec::new(), Vec::new());
    for (number, name) in old {
        let value = sql::bytes(&format!("pg_catalog.current_setting('{name}', true)"));
        inner.push(format!("{value} AS c{number}"));
        outer.push(format!("o.c{number}"));
        // A server that does not know the setting gets a harmless one.
        outer.push(format!(
            "pg_catalog.set_config(CASE WHEN o.c{number} IS NULL THEN 'lock_timeout' \
             ELSE '{name}' END, '0', true)"
        ));
    }
    let (inner, outer) = (inner.join(", "), outer.join(", "));
    let second = format!("SELECT {outer} FROM (SELECT {inner} OFFSET 0) AS o");
    batch.execute(Step::Guard, second.as_bytes(), &[]);
}

/// `query_canceled` (errcodes.txt).
const QUERY_CANCELED: &str = "57014";

/// Whether the batch failed by the session's own statement_timeout before it
/// could set another: it has done nothing, and may be sent again.
pub(super) fn is_worth_retrying(failure: &BatchFailure<Step>) -> bool {
    matches!(
        failure,
        BatchFailure::Error { step: Step::Guard, sqlstate, .. } if sqlstate == QUERY_CANCELED
    )
}

/// Whether the question for the state failed like that, or by a cancel request of the
/// client's, which can be late and meet any of its steps.  It changes nothing, and may be
/// asked again as long as there is time: without, its own limit is what has ended it.
pub(super) fn is_worth_asking_again(failure: &BatchFailure<Step>, left: Duration) -> bool {
    matches!(
        failure,
        BatchFailure::Error { sqlstate, .. } if sqlstate == QUERY_CANCELED && !left.is_zero()
    )
}

const TEMPORARY: &[u8] = b"temporary";
const CURSOR: &[u8] = b"cursor";
const ADVISORY: &[u8] = b"advisory";
const SLOT: &[u8] = b"slot";
const ORIGIN: &[u8] = b"origin";
const DBLINK: &[u8] = b"dblink";

/// Why an answer holds no state.
const MALFORMED: BatchFailure<Step> = BatchFailure::Malformed("a row of the wrong shape");

/// Reads the answer to [`capture`].
///
/// # Errors
/// [`BatchFailure`]: no state, whatever else the answer holds.
pub(super) fn read_state<'a>(
    answer: BatchAnswer<Step>,
    frames: &mut impl Iterator<Item = &'a Frame>,
) -> Result<State, BatchFailure<Step>> {
    let mut state = State::default();
    let mut overridden = Vec::new();
    for (step, rows) in answer.read(frames)? {
        for row in rows {
            state.bytes += row.iter().flatten().map(Vec::len).sum::<usize>();
            match step {
                // Every other value is set_config's.
                Step::Guard => overridden.extend(row.into_iter().step_by(2)),
                Step::Place => read_place(row, &mut state)?,
                Step::Obstacles => {
                    let obstacle = read_obstacle(row)?;
                    state.obstacle = state.obstacle.take().or(obstacle);
                }
                Step::Settings => {
                    let [Some(name), value, by_session, login] = exactly(row)? else {
                        return Err(MALFORMED);
                    };
                    if login.is_some() {
                        state.place.read_only = login.as_deref() == Some(b"on");
                    }
                    state.settings.insert(Setting {
                        name: &name,
                        // NULL is an empty text to set_config's reader.
                        value: value.as_deref().unwrap_or_default(),
                        by_session: is_true(by_session.as_deref())?,
                    });
                }
                Step::CustomSettings => {
                    let [Some(name), value] = exactly(row)? else {
                        return Err(MALFORMED);
                    };
                    state.custom.extend(value.map(|value| (name, value)));
                }
                Step::Statements => {
                    let (name, statement) = read_statement(row)?;
                    state.statements.insert(name, statement);
                }
                Step::Channels => {
                    let [Some(channel)] = exactly(row)? else {
                        return Err(MALFORMED);
                    };
                    state.channels.insert(channel);
                }
                _ => {}
            }
        }
    }
    for (name, value) in OVERRIDDEN.iter().zip(overridden) {
        if let Some(value) = value {
            state.settings.insert(Setting {
                name: name.as_bytes(),
                value: &value,
                by_session: false,
            });
        }
    }
    state.settings.shrink();
    // One that a view shows is no custom one, whoever thinks so.
    let State {
        settings, custom, ..
    } = &mut state;
    custom.retain(|name, _| is_custom(name) && settings.get(name).is_none());
    Ok(state)
}

fn exactly<const N: usize>(row: Row) -> Result<[Option<Vec<u8>>; N], BatchFailure<Step>> {
    row.try_into().map_err(|_| MALFORMED)
}

fn is_true(value: Option<&[u8]>) -> Result<bool, BatchFailure<Step>> {
    match value {
        Some(b"t") => Ok(true),
        Some(b"f") => Ok(false),
        _ => Err(MALFORMED),
    }
}

fn read_place(row: Row, state: &mut State) -> Result<(), BatchFailure<Step>> {
    let [
        system,
        recovery,
        wal,
        Some(encoding),
        Some(role),
        Some(authorization),
    ] = exactly(row)?
    else {
        return Err(MALFORMED);
    };
    let number = |text: Vec<u8>| std::str::from_utf8(&text).ok()?.parse().ok();
    state.place = Place {
        system: match system {
            Some(text) => Some(number(text).ok_or(MALFORMED)?),
            None => None,
        },
        in_recovery: is_true(recovery.as_deref())?,
        read_only: state.place.read_only,
        // NULL: a standby that has replayed nothing yet.
        wal: match wal {
            Some(text) => parse_lsn(&text).ok_or(MALFORMED)?,
            None => 0,
        },
        encoding,
    };
    for (name, value) in [("role", role), ("session_authorization", authorization)] {
        state.settings.insert(Setting {
            name: name.as_bytes(),
            value: &value,
            by_session: false,
        });
    }
    Ok(())
}

/// A position in the WAL as text: two hexadecimal numbers (pg_lsn.c).
fn parse_lsn(text: &[u8]) -> Option<u64> {
    let (high, low) = std::str::from_utf8(text).ok()?.split_once('/')?;
    let half = |text| u32::from_str_radix(text, 16).ok();
    Some(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

fn read_obstacle(row: Row) -> Result<Option<Obstacle>, BatchFailure<Step>> {
    let [Some(kind), first, second] = exactly(row)? else {
        return Err(MALFORMED);
    };
    let name = first.unwrap_or_default();
    Ok(Some(match kind.as_slice() {
        TEMPORARY => Obstacle::Temporary {
            kind: name,
            name: without_schema(second.unwrap_or_default()),
        },
        CURSOR => Obstacle::Cursor(name),
        ADVISORY => Obstacle::AdvisoryLock(name),
        SLOT => Obstacle::ReplicationSlot(name),
        ORIGIN if name == b"true" => Obstacle::ReplicationOrigin,
        DBLINK if !name.is_empty() => Obstacle::Dblink(name),
        ORIGIN | DBLINK => return Ok(None),
        _ => return Err(MALFORMED),
    }))
}

/// The identity of a function and the like without the temporary schema's name.
fn without_schema(identity: Vec<u8>) -> Vec<u8> {
    let after = identity.strip_prefix(b"pg_temp_").and_then(|rest| {
        let end = rest.iter().position(|byte| !byte.is_ascii_digit())?;
        rest.get(end..)?.strip_prefix(b".").map(<[u8]>::to_vec)
    });
    after.unwrap_or(identity)
}

fn read_statement(row: Row) -> Result<(Vec<u8>, Statement), BatchFailure<Step>> {
    let [
        Some(name),
        Some(text),
        types,
        type_names,
        from_sql,
        result_types,
    ] = exactly(row)?
    else {
        return Err(MALFORMED);
    };
    let types = types.unwrap_or_default();
    let types = std::str::from_utf8(&types).map_err(|_| MALFORMED)?;
    let types = types.split(',').filter(|oid| !oid.is_empty());
    let types: Result<_, _> = types.map(str::parse).collect();
    let statement = Statement {
        text,
        types: types.map_err(|_| MALFORMED)?,
        type_names: type_names.unwrap_or_default(),
        result_types,
        from_sql: is_true(from_sql.as_deref())?,
    };
    Ok((name, statement))
}
