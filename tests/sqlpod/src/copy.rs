//! COPY in text format: lines of tab-separated columns, `\N` for NULL.

use rusqlite::types::Value;

use crate::engine::translate_error;
use crate::error::{Failure, PgError};
use crate::prepared::Column;
use crate::scope::table_columns;
use crate::session::{Session, Txn};
use crate::statement::quote;
use crate::types;
use crate::wire::{Message, utf8};

/// A row as CopyData.
pub(crate) fn line(columns: &[Column], values: &[Value]) -> Vec<u8> {
    let mut line = Vec::new();
    for (at, (column, value)) in columns.iter().zip(values).enumerate() {
        if at > 0 {
            line.push(b'\t');
        }
        match types::to_text(value, column.oid) {
            None => line.extend_from_slice(b"\\N"),
            Some(text) => text.iter().for_each(|byte| match byte {
                b'\\' => line.extend_from_slice(b"\\\\"),
                b'\t' => line.extend_from_slice(b"\\t"),
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                other => line.push(*other),
            }),
        }
    }
    line.push(b'\n');
    Message::new(b'd').bytes(&line).finish()
}

impl Session {
    /// COPY FROM STDIN: all rows or none.
    pub(crate) fn copy_in(&mut self, table: &str, names: &[String]) -> Result<String, Failure> {
        let known = table_columns(self.db()?, table).map_err(|error| self.sql_error(&error))?;
        if known.is_empty() {
            return Err(
                PgError::new("42P01", format!("relation \"{table}\" does not exist")).into(),
            );
        }
        let find = |name: &String| {
            let found = known
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.cloned().ok_or_else(|| {
                PgError::new(
                    "42703",
                    format!("column \"{name}\" of relation \"{table}\" does not exist"),
                )
            })
        };
        let columns: Vec<(String, u32)> = match names {
            [] => known.clone(),
            names => names.iter().map(find).collect::<Result<_, _>>()?,
        };
        let message = Message::new(b'G').u8(0).count(columns.len());
        let message = columns.iter().fold(message, |message, _| message.i16(0));
        self.output.wire.send(&message.finish())?;
        self.output.wire.flush()?;
        let alone = self.txn == Txn::Idle;
        let mut begun = false;
        let mut rest = Vec::new();
        let mut count = 0_usize;
        loop {
            let (tag, body) = self.receive()?;
            let done = match tag {
                b'd' => {
                    rest.extend_from_slice(&body);
                    false
                }
                b'c' => true,
                // Sync and Flush have no meaning here.
                b'S' | b'H' => continue,
                b'f' => {
                    let why = crate::wire::Fields(&body).text()?.to_owned();
                    self.abandon(begun)?;
                    return Err(
                        PgError::new("57014", format!("COPY from stdin failed: {why}")).into(),
                    );
                }
                other => {
                    self.abandon(begun)?;
                    let text =
                        format!("unexpected message type 0x{other:02X} during COPY from stdin");
                    return Err(PgError::protocol(text).into());
                }
            };
            if alone && !begun && (done || !rest.is_empty()) {
                self.batch("BEGIN IMMEDIATE")?;
                begun = true;
            }
            match self.copy_lines(table, &columns, &mut rest, done) {
                Ok(more) => count += more,
                Err(error) => {
                    self.abandon(begun)?;
                    return Err(error.into());
                }
            }
            if done {
                break;
            }
        }
        if begun {
            self.batch("COMMIT")?;
        }
        Ok(format!("COPY {count}"))
    }

    fn abandon(&mut self, begun: bool) -> Result<(), PgError> {
        if begun {
            self.batch("ROLLBACK")
        } else {
            Ok(())
        }
    }

    /// Inserts the whole lines that have come, and takes them away.
    fn copy_lines(
        &mut self,
        table: &str,
        columns: &[(String, u32)],
        data: &mut Vec<u8>,
        done: bool,
    ) -> Result<usize, PgError> {
        if let Some(error) = self.handle.interrupted() {
            return Err(error);
        }
        let end = data
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let end = if done { data.len() } else { end };
        let lines: Vec<u8> = data.drain(..end).collect();
        let names: Vec<_> = columns.iter().map(|(name, _)| quote(name)).collect();
        let marks = vec!["?"; columns.len()].join(", ");
        let sql = format!(
            "INSERT INTO {} ({}) VALUES ({marks})",
            quote(table),
            names.join(", ")
        );
        let Self {
            db: Some(db),
            handle,
            state,
            ..
        } = self
        else {
            return Ok(0);
        };
        let fail = |error: rusqlite::Error| translate_error(&error, handle, state);
        let mut insert = db.prepare_cached(&sql).map_err(fail)?;
        let mut count = 0;
        for line in utf8(&lines)?.split_terminator('\n') {
            if line == "\\." {
                break;
            }
            let fields: Vec<&str> = line.split('\t').collect();
            if fields.len() != columns.len() {
                let what = if fields.len() < columns.len() {
                    "missing data"
                } else {
                    "extra data"
                };
                return Err(PgError::new(
                    "22P04",
                    format!("{what} in COPY line {}", count + 1),
                ));
            }
            let values = fields
                .iter()
                .zip(columns)
                .map(|(field, (_, oid))| match *field {
                    "\\N" => Ok(Value::Null),
                    field => types::from_text(*oid, &unescape(field)),
                });
            let values: Vec<Value> = values.collect::<Result<_, _>>()?;
            insert
                .execute(rusqlite::params_from_iter(values))
                .map_err(fail)?;
            count += 1;
        }
        Ok(count)
    }
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            },
            c => c,
        });
    }
    text
}
