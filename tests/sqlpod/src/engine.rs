//! SQLite: opening the tenant's file, the functions that PostgreSQL and
//! CockroachDB have and SQLite lacks, and errors in PostgreSQL's terms.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{ToSql, Value};
use rusqlite::{Connection, ErrorCode, ffi};

use crate::error::PgError;
use crate::handle::Handle;
use crate::pod::Inner;
use crate::settings::VERSION;
use crate::state::State;
use crate::types;

/// How long a statement waits for another session's write lock.
const LOCK_WAIT: Duration = Duration::from_secs(20);
/// Longest pause between two looks at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// Steps of SQLite's virtual machine between two looks whether to stop: some
/// microseconds.
const LOOK_STEPS: i32 = 1000;
/// SQLite's page cache per session; there may be hundreds.
const CACHE_KIB: i64 = 512;
const META_TABLE: &str = "sqlpod_meta";

thread_local! {
    /// The session of this thread, for SQLite's busy callback, which has no
    /// argument of its own.
    static CURRENT: RefCell<Option<Arc<Handle>>> = const { RefCell::new(None) };
}

/// Opens the tenant's file for the pod itself, and finds or makes the
/// tenant's signing key. The connection stays open as long as the pod, so that
/// SQLite's log is not folded and made anew with every session.
pub(crate) fn open_tenant(file: &Path) -> rusqlite::Result<(Connection, SigningKey)> {
    let db = Connection::open(file)?;
    db.busy_timeout(LOCK_WAIT)?;
    // Pods that start together find each other in the middle of the switch.
    let deadline = Instant::now() + LOCK_WAIT;
    while let Err(error) = db.pragma_update(None, "journal_mode", "WAL") {
        if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    db.pragma_update(None, "synchronous", "OFF")?;
    db.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {META_TABLE} (name TEXT PRIMARY KEY, value BLOB)"
    ))?;
    let fresh: [u8; 32] = crate::auth::random();
    let insert = format!("INSERT OR IGNORE INTO {META_TABLE} VALUES ('signing_key', ?1)");
    db.execute(&insert, [fresh.as_slice()])?;
    let select = format!("SELECT value FROM {META_TABLE} WHERE name = 'signing_key'");
    let key: [u8; 32] = db.query_row(&select, [], |row| row.get(0))?;
    Ok((db, SigningKey::from_bytes(&key)))
}

/// Opens the tenant's file for a session of this thread.
pub(crate) fn open_session(
    pod: &Arc<Inner>,
    handle: &Arc<Handle>,
    state: &Arc<Mutex<State>>,
) -> Result<Connection, PgError> {
    let open = || -> rusqlite::Result<Connection> {
        let db = Connection::open(&pod.config.database)?;
        CURRENT.with(|current| *current.borrow_mut() = Some(Arc::clone(handle)));
        db.busy_handler(Some(wait_for_lock))?;
        db.pragma_update(None, "synchronous", "OFF")?;
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        db.pragma_update(None, "foreign_keys", "ON")?;
        rusqlite::vtab::series::load_module(&db)?;
        add_functions(&db, pod, handle, state)?;
        db.authorizer(Some(authorize))?;
        // Not sqlite3_interrupt: one that comes between two statements is lost.
        let looks = Arc::clone(handle);
        db.progress_handler(LOOK_STEPS, Some(move || looks.interrupted().is_some()))?;
        Ok(db)
    };
    open().map_err(|error| translate_error(&error, handle, state))
}

/// SQLite's busy callback: true to try again.
fn wait_for_lock(tries: i32) -> bool {
    let tries = u32::try_from(tries).unwrap_or(0);
    let pause = LOCK_PAUSE.min(Duration::from_millis(u64::from(tries)));
    if LOCK_PAUSE.saturating_mul(tries) > LOCK_WAIT {
        return false;
    }
    let handle = CURRENT.with(|current| current.borrow().clone());
    handle.is_some_and(|handle| handle.pause(pause).is_ok())
}

/// Keeps the pods' own table, and the engine's switches, from the users.
fn authorize(context: AuthContext<'_>) -> Authorization {
    let allowed = match context.action {
        AuthAction::Read { table_name, .. }
        | AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name }
        | AuthAction::DropTable { table_name }
        | AuthAction::AlterTable { table_name, .. } => table_name != META_TABLE,
        AuthAction::Pragma { pragma_name, .. } => pragma_name == "table_info",
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => false,
        _ => true,
    };
    if allowed {
        Authorization::Allow
    } else {
        Authorization::Deny
    }
}

/// True where the session has tables of its own.
pub(crate) fn has_temporary_tables(db: &Connection) -> bool {
    let query = "SELECT 1 FROM sqlite_temp_master LIMIT 1";
    db.prepare_cached(query)
        .and_then(|mut query| query.exists([]))
        .unwrap_or(false)
}

fn add_functions(
    db: &Connection,
    pod: &Arc<Inner>,
    handle: &Arc<Handle>,
    state: &Arc<Mutex<State>>,
) -> rusqlite::Result<()> {
    let functions = Functions { db, state };
    let pid = i64::from(handle.pid);
    let shared = Arc::clone(state);
    functions.add("current_user", 0, move |_| Ok(shared.lock().user.clone()))?;
    let shared = Arc::clone(state);
    functions.add("current_database", 0, move |_| {
        shared.lock().settings.get("database")
    })?;
    functions.add("current_schema", 0, |_| Ok("public"))?;
    functions.add("version", 0, |_| Ok(VERSION))?;
    functions.add("pg_backend_pid", 0, move |_| Ok(pid))?;
    functions.add("gen_random_uuid", 0, |_| {
        Ok(uuid::Uuid::new_v4().to_string())
    })?;
    let name = pod.config.name.clone();
    functions.add("sqlpod_name", 0, move |_| Ok(name.clone()))?;
    let name = pod.config.name.clone();
    functions.add("crdb_internal.node_id", 0, move |_| Ok(name.clone()))?;
    let shared = Arc::clone(state);
    functions.add("sqlpod_notice", 1, move |args| {
        shared.lock().notices.push(text(args, 0)?);
        Ok(String::new())
    })?;
    let sleeper = Arc::clone(handle);
    functions.add("pg_sleep", 1, move |args| {
        let seconds: f64 = text(args, 0)?.parse().unwrap_or(0.0);
        let time = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX / 4);
        sleeper
            .pause(time.min(Duration::from_secs(86_400)))
            .map(|()| String::new())
    })?;
    functions.add("decode", 2, |args| decode(&text(args, 0)?, &text(args, 1)?))?;
    functions.add("encode", 2, |args| encode(&blob(args, 0)?, &text(args, 1)?))?;
    functions.add("sqlpod_cast", 2, |args| {
        let oid = args.get::<u32>(1).unwrap_or(types::TEXT);
        match args.get::<Value>(0).unwrap_or(Value::Null) {
            Value::Null => Ok(Value::Null),
            #[allow(clippy::cast_possible_truncation, reason = "rounded; a cast saturates")]
            Value::Real(number) if matches!(oid, types::INT2 | types::INT4 | types::INT8) => {
                Ok(Value::Integer(number.round_ties_even() as i64))
            }
            Value::Blob(bytes) if oid == types::BYTEA => Ok(Value::Blob(bytes)),
            value => {
                let shown = types::to_text(&value, types::UNKNOWN).unwrap_or_default();
                types::from_text(oid, crate::wire::utf8(&shown)?)
            }
        }
    })?;
    let shared = Arc::clone(state);
    functions.add("current_setting", 1, move |args| {
        shared.lock().settings.get(&text(args, 0)?)
    })?;
    let shared = Arc::clone(state);
    functions.add("set_config", 3, move |args| {
        let value = text(args, 1)?;
        shared
            .lock()
            .settings
            .set(&text(args, 0)?, &value)
            .map(|()| value)
    })?;
    let (shared, inner) = (Arc::clone(state), Arc::clone(pod));
    functions.add("crdb_internal.serialize_session", 0, move |_| {
        shared.lock().serialize(inner.max_state_size())
    })?;
    let shared = Arc::clone(state);
    functions.add("crdb_internal.deserialize_session", 1, move |args| {
        shared.lock().deserialize(&blob(args, 0)?).map(|()| true)
    })
}

fn text(args: &Context<'_>, at: usize) -> Result<String, PgError> {
    let value = args.get::<Value>(at).unwrap_or(Value::Null);
    let bytes = types::to_text(&value, types::UNKNOWN).unwrap_or_default();
    String::from_utf8(bytes).map_err(|_| PgError::new("22021", "invalid text"))
}

fn blob(args: &Context<'_>, at: usize) -> Result<Vec<u8>, PgError> {
    match args.get::<Value>(at) {
        Ok(Value::Blob(bytes)) => Ok(bytes),
        _ => Ok(text(args, at)?.into_bytes()),
    }
}

fn decode(text: &str, format: &str) -> Result<Vec<u8>, PgError> {
    let bytes = match format {
        "base64" => BASE64
            .decode(text.split_whitespace().collect::<String>())
            .ok(),
        "hex" => types::unhex(text),
        _ => None,
    };
    bytes.ok_or_else(|| PgError::new("22023", format!("cannot decode from \"{format}\"")))
}

fn encode(bytes: &[u8], format: &str) -> Result<String, PgError> {
    match format {
        "base64" => Ok(BASE64.encode(bytes)),
        "hex" => Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => Err(PgError::new(
            "22023",
            format!("unrecognized encoding: \"{format}\""),
        )),
    }
}

struct Functions<'c> {
    db: &'c Connection,
    state: &'c Arc<Mutex<State>>,
}

impl Functions<'_> {
    fn add<T: ToSql>(
        &self,
        name: &str,
        arguments: i32,
        function: impl Fn(&Context<'_>) -> Result<T, PgError> + Send + 'static,
    ) -> rusqlite::Result<()> {
        let state = Arc::clone(self.state);
        self.db
            .create_scalar_function(name, arguments, FunctionFlags::SQLITE_UTF8, move |args| {
                function(args).map_err(|error| {
                    state.lock().error = Some(error.clone());
                    rusqlite::Error::UserFunctionError(Box::new(error))
                })
            })
    }
}

/// SQLite's error with PostgreSQL's SQLSTATE and, where clients are known to
/// read it, PostgreSQL's text.
pub(crate) fn translate_error(
    error: &rusqlite::Error,
    handle: &Handle,
    state: &Mutex<State>,
) -> PgError {
    if let Some(error) = state.lock().error.take() {
        return error;
    }
    let (code, text) = match error {
        rusqlite::Error::SqliteFailure(code, text) => (*code, text.clone().unwrap_or_default()),
        rusqlite::Error::SqlInputError { error, msg, .. } => (*error, msg.clone()),
        other => return PgError::new("XX000", other.to_string()),
    };
    let stopped = matches!(
        code.code,
        ErrorCode::OperationInterrupted | ErrorCode::DatabaseBusy
    );
    if let Some(error) = handle.interrupted().filter(|_| stopped) {
        return error;
    }
    let text = if text.is_empty() {
        code.to_string()
    } else {
        text
    };
    match (code.code, code.extended_code) {
        (_, ffi::SQLITE_BUSY_SNAPSHOT) => {
            PgError::new("40001", format!("restart transaction: {text}"))
        }
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => {
            PgError::new("55P03", format!("could not obtain lock: {text}"))
        }
        (ErrorCode::OperationInterrupted, _) => PgError::cancelled(),
        (_, ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY) => PgError::new(
            "23505",
            format!("duplicate key value violates unique constraint: {text}"),
        ),
        (_, ffi::SQLITE_CONSTRAINT_NOTNULL) => PgError::new("23502", text),
        (_, ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => PgError::new("23503", text),
        (_, ffi::SQLITE_CONSTRAINT_CHECK) => PgError::new("23514", text),
        (ErrorCode::ConstraintViolation, _) => PgError::new("23000", text),
        (ErrorCode::ReadOnly, _) => PgError::new("25006", text),
        (ErrorCode::TooBig, _) => PgError::new("54000", text),
        (ErrorCode::TypeMismatch, _) => PgError::new("42804", text),
        (ErrorCode::AuthorizationForStatementDenied, _) => PgError::new("42501", text),
        (ErrorCode::DiskFull, _) => PgError::new("53100", text),
        _ => named_error(&text),
    }
}

/// SQLite has one code for all that is wrong with a statement's text.
fn named_error(text: &str) -> PgError {
    let after = |prefix: &str| text.strip_prefix(prefix).map(str::trim);
    if let Some(table) = after("no such table: ") {
        return PgError::new("42P01", format!("relation \"{table}\" does not exist"));
    }
    if let Some(column) = after("no such column: ") {
        return PgError::new("42703", format!("column \"{column}\" does not exist"));
    }
    if let Some(function) = after("no such function: ") {
        return PgError::new("42883", format!("function {function}() does not exist"));
    }
    let code = match text {
        text if text.contains("has no column named") => "42703",
        text if text.contains("already exists") => "42P07",
        text if text.contains("syntax error") || text.contains("incomplete input") => "42601",
        text if text.contains("prohibited") => "42501",
        text if text.contains("integer overflow") => "22003",
        text if text.contains("wrong number of arguments") => "42883",
        _ => "42601",
    };
    PgError::new(code, text)
}
