//! Runs statements: the session's own, and SQLite's, inside the transaction
//! rules of PostgreSQL.

use rusqlite::types::Value;
use rusqlite::{CachedStatement, Connection};

use crate::engine::{has_temporary_tables, open_session, translate_error};
use crate::error::{Failure, PgError};
use crate::output::{Answer, Output, Purpose};
use crate::prepare::unknown_statement;
use crate::prepared::{Column, Prepared};
use crate::session::{Session, Txn};
use crate::statement::{Sql, Statement};
use crate::transfer::issue_token;
use crate::types;
use crate::wire::Message;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Where a statement's rows go.
pub(crate) enum Sink<'a> {
    /// To the client, as they come.
    Send(&'a Answer),
    /// To a portal, whose client asks for them in portions.
    Collect {
        columns: Vec<Column>,
        rows: Vec<Vec<Value>>,
    },
    /// To the client, as COPY's text lines.
    Copy,
}

impl Sink<'_> {
    pub(crate) fn begin(&mut self, output: &mut Output, found: &[Column]) -> Result<(), Failure> {
        match self {
            Sink::Send(answer) if answer.describe => output.describe(answer, found),
            Sink::Send(_) => Ok(()),
            Sink::Collect { columns, .. } => {
                *columns = found.to_vec();
                Ok(())
            }
            Sink::Copy => {
                let message = Message::new(b'H').u8(0).count(found.len());
                let message = found.iter().fold(message, |message, _| message.i16(0));
                Ok(output.wire.send(&message.finish())?)
            }
        }
    }

    pub(crate) fn row(
        &mut self,
        output: &mut Output,
        columns: &[Column],
        values: Vec<Value>,
    ) -> Result<(), Failure> {
        match self {
            Sink::Send(answer) => output.row(answer, columns, &values),
            Sink::Collect { rows, .. } => {
                rows.push(values);
                Ok(())
            }
            Sink::Copy => Ok(output.wire.send(&crate::copy::line(columns, &values))?),
        }
    }
}

impl Session {
    /// Runs one statement and gives its command tag; an empty tag is an empty
    /// query's.
    pub(crate) fn run(
        &mut self,
        prepared: &Prepared,
        params: &[Value],
        sink: &mut Sink<'_>,
    ) -> Result<String, Failure> {
        self.check_allowed(&prepared.statement)?;
        let tag = match &prepared.statement {
            Statement::Empty => String::new(),
            Statement::Begin => self.begin()?,
            Statement::Commit if self.txn == Txn::Failed => self.rollback()?,
            Statement::Commit => self.commit()?,
            Statement::Rollback => self.rollback()?,
            Statement::Savepoint { sql, tag } => self.savepoint(sql, tag)?,
            Statement::Set { name, value, local } => {
                self.set(name, value.as_deref(), *local)?;
                "SET".to_owned()
            }
            Statement::Reset(name) => {
                self.keep_settings();
                let mut state = self.state.lock();
                match name {
                    Some(name) => state.settings.reset(name)?,
                    None => state.settings.reset_all(),
                }
                "RESET".to_owned()
            }
            Statement::Show(name) => {
                let value = self.show(name)?;
                self.send_rows(sink, &[Column::text(name)], vec![vec![Value::Text(value)]])?;
                "SHOW".to_owned()
            }
            Statement::ShowTransferState { key } => {
                let (columns, row) = self.transfer_state(key.as_deref());
                self.send_rows(sink, &columns, vec![row])?;
                "SHOW TRANSFER STATE 1".to_owned()
            }
            Statement::DiscardAll => {
                if self.txn != Txn::Idle {
                    let text = "DISCARD ALL cannot run inside a transaction block";
                    return Err(PgError::new("25001", text).into());
                }
                self.portals.clear();
                self.db = None;
                let mut state = self.state.lock();
                state.settings.reset_all();
                state.statements.clear();
                "DISCARD ALL".to_owned()
            }
            Statement::Prepare { name, types, body } => {
                self.prepare(name, body, types)?;
                "PREPARE".to_owned()
            }
            Statement::Execute { name, args } => {
                let prepared = self.statement(name)?;
                let params = self.evaluate(&prepared, args)?;
                return self.run(&prepared, &params, sink);
            }
            Statement::Deallocate(None) => {
                self.state.lock().statements.clear();
                "DEALLOCATE ALL".to_owned()
            }
            Statement::Deallocate(Some(name)) => {
                let known = self.state.lock().statements.remove(name);
                known.ok_or_else(|| unknown_statement(name))?;
                "DEALLOCATE".to_owned()
            }
            Statement::CopyIn { table, columns } => self.copy_in(table, columns)?,
            Statement::CopyOut { query } => {
                let tag = self.run_sql(prepared, query, params, &mut Sink::Copy)?;
                self.output.wire.send(&Message::new(b'c').finish())?;
                // The query's own tag with another name.
                let count = tag.rsplit(' ').next().unwrap_or("0");
                format!("COPY {count}")
            }
            Statement::Ignored(tag) => (*tag).to_owned(),
            Statement::Sql(sql) => self.run_sql(prepared, sql, params, sink)?,
        };
        self.after_statement(&prepared.statement)?;
        Ok(tag)
    }

    /// A failed transaction takes nothing but its end, and the statements
    /// that only look at the session.
    pub(crate) fn check_allowed(&self, statement: &Statement) -> Result<(), PgError> {
        let ends = match statement {
            Statement::Commit | Statement::Rollback | Statement::ShowTransferState { .. } => true,
            Statement::Savepoint { tag, .. } => *tag == "ROLLBACK",
            Statement::Empty => true,
            _ => false,
        };
        if self.txn == Txn::Failed && !ends {
            let text =
                "current transaction is aborted, commands ignored until end of transaction block";
            return Err(PgError::new("25P02", text));
        }
        Ok(())
    }

    /// Sends what a statement leaves behind: notices, changed settings.
    fn after_statement(&mut self, statement: &Statement) -> Result<(), Failure> {
        let notices = std::mem::take(&mut self.state.lock().notices);
        for notice in notices {
            self.output
                .wire
                .send(&crate::wire::notice_response(&notice))?;
        }
        let restored = matches!(statement, Statement::Sql(sql) if sql.restores);
        let silent = restored && !self.pod.config.report_restored;
        self.report_settings(silent)
    }

    fn send_rows(
        &mut self,
        sink: &mut Sink<'_>,
        columns: &[Column],
        rows: Vec<Vec<Value>>,
    ) -> Result<(), Failure> {
        sink.begin(&mut self.output, columns)?;
        for row in rows {
            sink.row(&mut self.output, columns, row)?;
        }
        Ok(())
    }

    /// The answer to SHOW TRANSFER STATE; a refusal is data.
    fn transfer_state(&self, key: Option<&str>) -> (Vec<Column>, Vec<Value>) {
        let refused = |text: &str| PgError::new("0A000", text);
        let state = self.serialize().and_then(|state| match self.user.as_str() {
            _ if !self.pod.config.tokens => Err(refused(
                "session revival tokens are not supported on this cluster",
            )),
            "root" => Err(refused("cannot create token for root user")),
            user => Ok((
                state,
                issue_token(&self.pod.key, user, std::time::SystemTime::now()),
            )),
        });
        let mut row = match state {
            Ok((state, token)) => vec![
                Value::Null,
                Value::Text(BASE64.encode(state)),
                Value::Text(BASE64.encode(token)),
            ],
            Err(error) => vec![Value::Text(error.message), Value::Null, Value::Null],
        };
        row.extend(key.map(|key| Value::Text(key.to_owned())));
        (transfer_columns(key.is_some()), row)
    }

    fn serialize(&self) -> Result<Vec<u8>, PgError> {
        let mut state = self.state.lock();
        state.in_transaction = self.txn != Txn::Idle;
        state.other_portals = self.portals.len();
        state.temporary_tables = self.db.as_ref().is_some_and(has_temporary_tables);
        state.serialize(self.pod.max_state_size())
    }

    /// The session's connection to SQLite, opened when first needed.
    pub(crate) fn db(&mut self) -> Result<&Connection, PgError> {
        if self.db.is_none() {
            self.db = Some(open_session(&self.pod, &self.handle, &self.state)?);
        }
        self.db
            .as_ref()
            .ok_or_else(|| PgError::new("XX000", "no database"))
    }

    pub(crate) fn sql_error(&self, error: &rusqlite::Error) -> PgError {
        translate_error(error, &self.handle, &self.state)
    }

    fn run_sql(
        &mut self,
        prepared: &Prepared,
        sql: &Sql,
        params: &[Value],
        sink: &mut Sink<'_>,
    ) -> Result<String, Failure> {
        self.db()?;
        let (in_transaction, others) = (self.txn != Txn::Idle, self.portals.len());
        let Self {
            db: Some(db),
            output,
            handle,
            state,
            ..
        } = self
        else {
            return Err(PgError::new("XX000", "no database").into());
        };
        {
            let temporary_tables = sql.serializes && has_temporary_tables(db);
            let mut state = state.lock();
            state.in_transaction = in_transaction;
            state.temporary_tables = temporary_tables;
            state.other_portals = others;
        }
        let fail = |error: rusqlite::Error| translate_error(&error, handle, state);
        let mut statement = db.prepare_cached(&sql.text).map_err(fail)?;
        bind(&mut statement, params).map_err(fail)?;
        if statement.column_count() == 0 {
            let changed = statement.raw_execute().map_err(fail)?;
            return Ok(tag_with_count(&sql.tag, changed));
        }
        // COPY is described as having no columns, though its query has some.
        let described = prepared
            .described
            .get()
            .filter(|columns| columns.len() == statement.column_count());
        let mut columns = described
            .cloned()
            .unwrap_or_else(|| prepared.columns(&statement, None));
        let width = columns.len();
        let mut rows = statement.raw_query();
        let mut count = 0;
        loop {
            let row = rows.next().map_err(fail)?;
            let values: Option<Vec<Value>> = row
                .map(|row| (0..width).map(|at| row.get(at)).collect())
                .transpose()
                .map_err(fail)?;
            if count == 0 {
                for (column, value) in columns.iter_mut().zip(values.iter().flatten()) {
                    if column.oid == types::UNKNOWN {
                        column.oid = types::of_value(value);
                    }
                }
                sink.begin(output, &columns)?;
            }
            let Some(values) = values else { break };
            sink.row(output, &columns, values)?;
            count += 1;
        }
        Ok(tag_with_count(&sql.tag, count))
    }
}

pub(crate) fn transfer_columns(with_key: bool) -> Vec<Column> {
    let names = [
        "error",
        "session_state_base64",
        "session_revival_token_base64",
        "transfer_key",
    ];
    names
        .iter()
        .take(if with_key { 4 } else { 3 })
        .map(|name| Column::text(name))
        .collect()
}

/// What a statement's answer is for.
pub(crate) fn purpose(statement: &Statement) -> Purpose {
    match statement {
        Statement::ShowTransferState { .. } => Purpose::State,
        Statement::Sql(sql) if sql.restores => Purpose::Restore,
        _ => Purpose::Plain,
    }
}

fn bind(statement: &mut CachedStatement<'_>, params: &[Value]) -> rusqlite::Result<()> {
    statement.clear_bindings();
    for (at, value) in params.iter().enumerate().take(statement.parameter_count()) {
        statement.raw_bind_parameter(at + 1, value)?;
    }
    Ok(())
}

fn tag_with_count(tag: &str, count: usize) -> String {
    match tag {
        "INSERT" => format!("INSERT 0 {count}"),
        "SELECT" | "UPDATE" | "DELETE" | "COPY" | "SHOW TABLES" => format!("{tag} {count}"),
        _ => tag.to_owned(),
    }
}
