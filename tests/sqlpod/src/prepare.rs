//! Prepared statements of a session: made, described, found, called.

use std::sync::Arc;

use rusqlite::types::Value;

use crate::error::PgError;
use crate::execute::transfer_columns;
use crate::prepared::{Column, Prepared};
use crate::session::Session;
use crate::state::duplicate;
use crate::statement::Statement;
use crate::types;

impl Session {
    /// The columns that a statement will answer with; none for most of the
    /// session's own.
    pub(crate) fn describe(&mut self, prepared: &Prepared) -> Result<Vec<Column>, PgError> {
        match &prepared.statement {
            Statement::Show(name) => Ok(vec![Column::text(name)]),
            Statement::ShowTransferState { key } => Ok(transfer_columns(key.is_some())),
            Statement::Execute { name, .. } => {
                let inner = self.statement(name)?;
                self.describe(&inner)
            }
            Statement::Sql(sql) => {
                if let Some(columns) = prepared.described.get() {
                    return Ok(columns.clone());
                }
                self.db()?;
                let Some(db) = &self.db else {
                    return Ok(Vec::new());
                };
                let statement = db
                    .prepare_cached(&sql.text)
                    .map_err(|e| self.sql_error(&e))?;
                Ok(prepared.columns(&statement, Some(db)))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Adds a named statement, or replaces the unnamed one.
    pub(crate) fn prepare(&mut self, name: &str, sql: &str, types: &[u32]) -> Result<(), PgError> {
        if !name.is_empty() && self.state.lock().statements.contains_key(name) {
            return Err(duplicate(name));
        }
        let simple = Prepared::simple(sql)?;
        self.check_allowed(&simple.statement)?;
        let prepared = match &simple.statement {
            Statement::Sql(inner) => {
                let prepared = Prepared::typed(sql, types, self.db()?)?;
                let checked = self.db()?.prepare_cached(&inner.text).map(|_| ());
                checked.map_err(|error| self.sql_error(&error))?;
                prepared
            }
            _ => simple,
        };
        self.state
            .lock()
            .statements
            .insert(name.to_owned(), Arc::new(prepared));
        Ok(())
    }

    pub(crate) fn statement(&self, name: &str) -> Result<Arc<Prepared>, PgError> {
        self.state
            .lock()
            .statements
            .get(name)
            .cloned()
            .ok_or_else(|| unknown_statement(name))
    }

    /// The arguments of EXECUTE, which are expressions, as typed values.
    pub(crate) fn evaluate(
        &mut self,
        prepared: &Prepared,
        args: &[String],
    ) -> Result<Vec<Value>, PgError> {
        if args.len() != prepared.params.len() {
            let text = format!(
                "wrong number of parameters: expected {}, got {}",
                prepared.params.len(),
                args.len()
            );
            return Err(PgError::new("42601", text));
        }
        if args.is_empty() {
            return Ok(Vec::new());
        }
        self.db()?;
        let Some(db) = &self.db else {
            return Ok(Vec::new());
        };
        let query = format!("SELECT {}", args.join(", "));
        let values: Result<Vec<Value>, _> = db.query_row(&query, [], |row| {
            (0..args.len()).map(|at| row.get(at)).collect()
        });
        let values = values.map_err(|error| self.sql_error(&error))?;
        let typed = values
            .into_iter()
            .zip(&prepared.params)
            .map(|(value, oid)| match value {
                Value::Text(text) => types::from_text(*oid, &text),
                other => Ok(other),
            });
        typed.collect()
    }
}

/// 26000.
pub(crate) fn unknown_statement(name: &str) -> PgError {
    PgError::new(
        "26000",
        format!("prepared statement \"{name}\" does not exist"),
    )
}
