//! The extended protocol: Parse, Bind, Describe, Execute, Close.

use std::collections::VecDeque;
use std::sync::Arc;

use rusqlite::types::Value;

use crate::error::{Failure, PgError};
use crate::execute::{Sink, purpose};
use crate::output::Purpose;
use crate::prepared::{Column, Prepared};
use crate::session::Session;
use crate::statement::Statement;
use crate::types;
use crate::wire::{Fields, Message, empty, utf8};

/// A statement with its parameters, ready to run.
pub(crate) struct Portal {
    prepared: Arc<Prepared>,
    params: Vec<Value>,
    formats: Vec<i16>,
    /// As told to the client, once it has asked.
    columns: Option<Vec<Column>>,
    /// What an earlier Execute has left, and the command's tag.
    pending: Option<(VecDeque<Vec<Value>>, String)>,
}

impl Session {
    pub(crate) fn parse(&mut self, body: &[u8]) -> Result<(), Failure> {
        let mut fields = Fields(body);
        let (name, sql) = (fields.text()?, fields.text()?);
        let count = fields.count()?;
        let declared = (0..count)
            .map(|_| fields.u32())
            .collect::<Result<Vec<_>, _>>()?;
        if crate::statement::statements(sql)?.len() > 1 {
            let text = "cannot insert multiple commands into a prepared statement";
            return Err(PgError::syntax(text).into());
        }
        // 705 is the type of a literal that nobody has typed.
        let declared: Vec<_> = declared
            .iter()
            .map(|oid| if *oid == 705 { types::UNKNOWN } else { *oid })
            .collect();
        self.prepare(name, sql, &declared)?;
        Ok(self.output.wire.send(&empty(b'1'))?)
    }

    pub(crate) fn bind(&mut self, body: &[u8]) -> Result<(), Failure> {
        let mut fields = Fields(body);
        let (portal, name) = (fields.text()?.to_owned(), fields.text()?);
        let prepared = self.statement(name)?;
        let formats = shorts(&mut fields)?;
        let count = fields.count()?;
        if count != prepared.params.len() {
            let text = format!(
                "bind message supplies {count} parameters, but prepared statement \"{name}\" requires {}",
                prepared.params.len()
            );
            return Err(PgError::new("08P01", text).into());
        }
        let mut params = Vec::with_capacity(count.min(body.len()));
        for (at, oid) in prepared.params.iter().enumerate() {
            let format = match formats.as_slice() {
                [] => 0,
                [all] => *all,
                each => each.get(at).copied().unwrap_or(0),
            };
            params.push(match (fields.field()?, format) {
                (None, _) => Value::Null,
                (Some(bytes), 0) => types::from_text(*oid, utf8(bytes)?)?,
                (Some(bytes), _) => types::from_binary(*oid, bytes)?,
            });
        }
        let formats = shorts(&mut fields)?;
        if !portal.is_empty() && self.portals.contains_key(&portal) {
            return Err(
                PgError::new("42P03", format!("portal \"{portal}\" already exists")).into(),
            );
        }
        let opened = Portal {
            prepared,
            params,
            formats,
            columns: None,
            pending: None,
        };
        self.portals.insert(portal, opened);
        Ok(self.output.wire.send(&empty(b'2'))?)
    }

    pub(crate) fn describe_message(&mut self, body: &[u8]) -> Result<(), Failure> {
        let mut fields = Fields(body);
        let (kind, name) = (fields.u8()?, fields.text()?.to_owned());
        if kind == b'S' {
            let prepared = self.statement(&name)?;
            let columns = self.describe(&prepared)?;
            // What was told once must stay: results in binary depend on it.
            let columns = prepared.described.get_or_init(|| told(columns)).clone();
            let mut message = Message::new(b't').count(prepared.params.len());
            for oid in &prepared.params {
                message = message.u32(*oid);
            }
            self.output.wire.send(&message.finish())?;
            let answer = self
                .output
                .answer(purpose(&prepared.statement), true, Vec::new());
            return self.output.describe(&answer, &columns);
        }
        let mut portal = self.take_portal(&name)?;
        let result = self.describe_portal(&mut portal);
        self.portals.insert(name, portal);
        let (answer, columns) = result?;
        self.output.describe(&answer, &columns)
    }

    /// A portal has its parameters: where the text does not tell a column's
    /// type, its first row does. Only what writes nothing is run ahead.
    fn describe_portal(
        &mut self,
        portal: &mut Portal,
    ) -> Result<(crate::output::Answer, Vec<Column>), Failure> {
        let mut columns = self.describe(&portal.prepared)?;
        let open = columns.iter().any(|column| column.oid == types::UNKNOWN);
        let reads = matches!(&portal.prepared.statement, Statement::Sql(sql)
            if sql.tag == "SELECT" && !sql.restores && !sql.serializes);
        if open && reads && portal.pending.is_none() {
            let found = self.collect(portal)?;
            for (column, found) in columns.iter_mut().zip(found) {
                if column.oid == types::UNKNOWN {
                    column.oid = found.oid;
                }
            }
        }
        let columns = told(columns);
        portal.columns = Some(columns.clone());
        let purpose = purpose(&portal.prepared.statement);
        Ok((
            self.output.answer(purpose, true, portal.formats.clone()),
            columns,
        ))
    }

    /// Runs a portal to its end and keeps the rows.
    fn collect(&mut self, portal: &mut Portal) -> Result<Vec<Column>, Failure> {
        let mut sink = Sink::Collect {
            columns: Vec::new(),
            rows: Vec::new(),
        };
        let tag = self.run(&portal.prepared, &portal.params, &mut sink)?;
        let Sink::Collect { columns, rows } = sink else {
            return Ok(Vec::new());
        };
        portal.pending = Some((rows.into(), tag));
        Ok(columns)
    }

    pub(crate) fn execute_message(&mut self, body: &[u8]) -> Result<(), Failure> {
        let mut fields = Fields(body);
        let (name, limit) = (fields.text()?.to_owned(), fields.i32()?);
        let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
        // While it runs it is not there: an active portal is another one.
        let mut portal = self.take_portal(&name)?;
        let result = self.execute_portal(&mut portal, limit);
        // A transaction's end has closed all portals, this one too.
        if !portal.prepared.statement.ends_transaction() {
            self.portals.insert(name, portal);
        }
        result
    }

    fn execute_portal(&mut self, portal: &mut Portal, limit: Option<usize>) -> Result<(), Failure> {
        let purpose = purpose(&portal.prepared.statement);
        if purpose != Purpose::Plain {
            self.purpose = purpose;
        }
        let answer = self.output.answer(purpose, false, portal.formats.clone());
        if portal.pending.is_none() {
            if limit.is_none() {
                let described = portal.prepared.described.get().is_some();
                let columns = match (&portal.columns, described) {
                    (Some(columns), false) => columns.clone(),
                    _ => Vec::new(),
                };
                let tag = self.run_as(portal, &columns, &answer)?;
                let left = tag.starts_with("SELECT").then(|| "SELECT".to_owned());
                portal.pending = Some((VecDeque::new(), left.unwrap_or_else(|| tag.clone())));
                return self.complete(&answer, &tag);
            }
            let columns = self.collect(portal)?;
            portal.columns.get_or_insert(columns);
        }
        let described = portal.prepared.described.get().cloned();
        let columns = described
            .or_else(|| portal.columns.clone())
            .unwrap_or_default();
        let Some((rows, tag)) = &mut portal.pending else {
            return Ok(());
        };
        let count = limit.unwrap_or(rows.len()).min(rows.len());
        for row in rows.drain(..count) {
            self.output.row(&answer, &columns, &row)?;
        }
        if Some(count) == limit {
            return Ok(self.output.wire.send(&empty(b's'))?);
        }
        let tag = match tag.as_str() {
            tag if tag.starts_with("SELECT") => format!("SELECT {count}"),
            tag => tag.to_owned(),
        };
        self.complete(&answer, &tag)
    }

    /// Runs a portal straight to the client, in the types it was told.
    fn run_as(
        &mut self,
        portal: &Portal,
        columns: &[Column],
        answer: &crate::output::Answer,
    ) -> Result<String, Failure> {
        if !columns.is_empty() && matches!(portal.prepared.statement, Statement::Sql(_)) {
            let told = Prepared::restored(&portal.prepared.sql, portal.prepared.params.clone())?;
            let _ = told.described.set(columns.to_vec());
            return self.run(&told, &portal.params, &mut Sink::Send(answer));
        }
        self.run(&portal.prepared, &portal.params, &mut Sink::Send(answer))
    }

    pub(crate) fn close(&mut self, body: &[u8]) -> Result<(), Failure> {
        let mut fields = Fields(body);
        let (kind, name) = (fields.u8()?, fields.text()?);
        if kind == b'S' {
            self.state.lock().statements.remove(name);
        } else {
            self.portals.remove(name);
        }
        Ok(self.output.wire.send(&empty(b'3'))?)
    }

    fn take_portal(&mut self, name: &str) -> Result<Portal, PgError> {
        let unknown = || PgError::new("34000", format!("portal \"{name}\" does not exist"));
        self.portals.remove(name).ok_or_else(unknown)
    }
}

/// A list of 16-bit numbers with its length.
fn shorts(fields: &mut Fields<'_>) -> Result<Vec<i16>, PgError> {
    let count = fields.count()?;
    (0..count).map(|_| fields.i16()).collect()
}

/// Columns as a client is told: what is not known is text.
fn told(mut columns: Vec<Column>) -> Vec<Column> {
    for column in &mut columns {
        if column.oid == types::UNKNOWN {
            column.oid = types::TEXT;
        }
    }
    columns
}
