//! Clients that send without waiting: the server owes them something all the
//! time, so that only a held-back batch brings them to a safe transfer point.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

use crate::client::{Client, keep};
use crate::wire::{self, Result, Wire, wrong};

/// Batches sent ahead. Their answers fit into the sockets' buffers, so that
/// nobody blocks on a write while the other does too.
const AHEAD: usize = 12;
/// Batches of one operation, at the end of which everything is answered once.
const BATCHES: usize = 3000;

/// What one batch must bring.
struct Expected {
    tags: &'static str,
    values: Vec<String>,
    status: char,
    error: &'static str,
    sent: Instant,
}

impl Client {
    /// Thousands of batches without a pause.
    pub(crate) fn pipeline(&mut self, wire: &mut Wire) -> Result<()> {
        let mut owed = VecDeque::with_capacity(AHEAD + 3);
        let mut left = BATCHES;
        loop {
            if self.board.stopping() {
                left = 0;
            }
            let mut buffer = BytesMut::new();
            while left > 0 && owed.len() < AHEAD {
                left -= 1;
                if let Err(error) = self.batch(&mut buffer, &mut owed) {
                    return wrong(error);
                }
            }
            wire.send_bytes(&buffer)?;
            let Some(expected) = owed.pop_front() else {
                return Ok(());
            };
            let answer = wire.answer()?;
            expected.check(&answer)?;
            self.done(expected.sent);
        }
    }

    /// Writes one batch, or a whole transaction, and what it must bring.
    fn batch(
        &mut self,
        buffer: &mut BytesMut,
        owed: &mut VecDeque<Expected>,
    ) -> std::result::Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let mut owe = |tags, values, status| {
            owed.push_back(Expected {
                tags,
                values,
                status,
                error: if tags == "E" { "42601" } else { "" },
                sent: Instant::now(),
            });
        };
        let value = self.text();
        match fastrand::u8(0..12) {
            0..4 => {
                wire::parse(buffer, "", "SELECT $1").map_err(failed)?;
                wire::bind(buffer, "", &[&value])?;
                frontend::describe(b'P', "", buffer).map_err(failed)?;
                frontend::execute("", 0, buffer).map_err(failed)?;
                frontend::sync(buffer);
                owe("12TDC", vec![value], 'I');
            }
            4..6 => {
                keep(buffer, &value)?;
                owe("2DC", vec![self.kept(&value)], 'I');
            }
            6 => {
                // A Flush in the middle brings half of the answer early.
                wire::bind(buffer, "keep", &[&value])?;
                frontend::execute("", 0, buffer).map_err(failed)?;
                frontend::flush(buffer);
                let second = self.text();
                keep(buffer, &second)?;
                let values = vec![self.kept(&value), self.kept(&second)];
                owe("2DC2DC", values, 'I');
            }
            7 | 8 => {
                frontend::query(&format!("SELECT '{value}'"), buffer).map_err(failed)?;
                owe("TDC", vec![value], 'I');
            }
            9 => {
                // What stands between an error and Sync is passed over.
                wire::parse(buffer, "", "SELEC 1").map_err(failed)?;
                wire::bind(buffer, "keep", &[&value])?;
                frontend::execute("", 0, buffer).map_err(failed)?;
                frontend::sync(buffer);
                owe("E", vec![], 'I');
            }
            10 => {
                frontend::query("BEGIN", buffer).map_err(failed)?;
                owe("C", vec![], 'T');
                keep(buffer, &value)?;
                owe("2DC", vec![self.kept(&value)], 'T');
                frontend::query("COMMIT", buffer).map_err(failed)?;
                owe("C", vec![], 'I');
            }
            _ => {
                let sql = format!("SELECT 1; SELECT '{value}'");
                frontend::query(&sql, buffer).map_err(failed)?;
                owe("TDCTDC", vec!["1".to_owned(), value], 'I');
            }
        }
        Ok(())
    }
}

impl Expected {
    fn check(&self, answer: &wire::Answer) -> Result<()> {
        answer.must_be(self.tags, self.status, "a pipelined batch")?;
        let values = answer.rows.iter().flatten().map(Option::as_deref);
        let same = values.eq(self.values.iter().map(|value| Some(value.as_str())));
        let code = answer.error.as_ref().map_or("", |(code, _)| code);
        if same && code == self.error {
            return Ok(());
        }
        wrong(format!("not {:?}: {}", self.values, answer.shown()))
    }
}
