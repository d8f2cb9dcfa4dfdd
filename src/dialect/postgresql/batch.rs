//! Statements of the proxy's own in one batch of the extended protocol, and the
//! check of its answer.
//!
//! A batch ends in one Sync, so that an error undoes all of it.  Statements and
//! portals carry a name of the proxy's own and are closed again: a simple Query,
//! or a Parse without a name, would take the client's unnamed statement away
//! (postgres.c, `drop_unnamed_stmt`).  A prepared statement outlives an error,
//! which also skips the Close behind it, so a Close behind the Sync and a second
//! Sync follow.
//!
//! Nothing here does I/O or knows what the statements say.

use std::fmt;

use super::super::{BadAnswer, Request};
use crate::frame::Frame;
use crate::message::{
    BackendTag, ErrorFields, FrontendTag, TransactionStatus, data_row, put_cstr, put_message,
    split_cstr,
};

/// Type OID of `text` (pg_type.dat).
const TEXT_OID: u32 = 25;
/// Format code of a value in the type's binary form (protocol document, Bind).
const BINARY: u16 = 1;

/// One row; `None` is NULL.
pub(super) type Row = Vec<Option<Vec<u8>>>;

/// A message that a step is answered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Parse,
    Bind,
    Execute,
    Close,
}

/// A batch that is being written.  `S` says what a statement is for.
#[derive(Debug)]
pub(super) struct Batch<S> {
    name: String,
    bytes: Vec<u8>,
    steps: Vec<(S, &'static [Expected])>,
}

impl<S> Batch<S> {
    /// `name` is that of the statements and portals: one that no client has.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            bytes: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Adds a statement that is prepared, executed once and closed.  `parameters`
    /// are texts in the client's encoding; each result has its type's binary form.
    pub(super) fn execute(&mut self, step: S, sql: &[u8], parameters: &[&[u8]]) {
        let name = self.name.clone().into_bytes();
        let types = vec![TEXT_OID; parameters.len()];
        put_parse(&mut self.bytes, &name, sql, &types);
        put_message(&mut self.bytes, FrontendTag::BIND.0, |out| {
            put_cstr(out, &name);
            put_cstr(out, &name);
            // All parameters are in text format.
            out.extend(0u16.to_be_bytes());
            out.extend(count(parameters.len()));
            for parameter in parameters {
                out.extend(u32::try_from(parameter.len()).unwrap_or(0).to_be_bytes());
                out.extend_from_slice(parameter);
            }
            out.extend(1u16.to_be_bytes());
            out.extend(BINARY.to_be_bytes());
        });
        put_message(&mut self.bytes, FrontendTag::EXECUTE.0, |out| {
            put_cstr(out, &name);
            // All rows.
            out.extend(0u32.to_be_bytes());
        });
        for kind in *b"PS" {
            put_close(&mut self.bytes, kind, &name);
        }
        self.steps.push((
            step,
            &[
                Expected::Parse,
                Expected::Bind,
                Expected::Execute,
                Expected::Close,
                Expected::Close,
            ],
        ));
    }

    /// Adds the Parse of a statement that stays.
    pub(super) fn parse(&mut self, step: S, name: &[u8], sql: &[u8], types: &[u32]) {
        put_parse(&mut self.bytes, name, sql, types);
        self.steps.push((step, &[Expected::Parse]));
    }

    /// Adds a whole Parse message as a client sent it.
    pub(super) fn parse_frame(&mut self, step: S, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.steps.push((step, &[Expected::Parse]));
    }

    /// What to send, and the reader of what it is answered by.
    pub(super) fn finish(mut self) -> (Request, BatchAnswer<S>) {
        put_message(&mut self.bytes, FrontendTag::SYNC.0, |_| {});
        put_close(&mut self.bytes, b'S', self.name.as_bytes());
        put_message(&mut self.bytes, FrontendTag::SYNC.0, |_| {});
        let request = Request {
            bytes: self.bytes,
            ready_for_queries: 2,
        };
        let answer = BatchAnswer {
            steps: self.steps,
            position: (0, 0),
            rows: Vec::new(),
            failure: None,
        };
        (request, answer)
    }
}

fn put_close(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    put_message(out, FrontendTag::CLOSE.0, |out| {
        out.push(kind);
        put_cstr(out, name);
    });
}

fn put_parse(out: &mut Vec<u8>, name: &[u8], sql: &[u8], types: &[u32]) {
    put_message(out, FrontendTag::PARSE.0, |out| {
        put_cstr(out, name);
        put_cstr(out, sql);
        out.extend(count(types.len()));
        for oid in types {
            out.extend(oid.to_be_bytes());
        }
    });
}

/// A count of the protocol's; no statement has more than 65535 parameters.
fn count(count: usize) -> [u8; 2] {
    u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes()
}

/// Why a batch did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum BatchFailure<S> {
    /// The server answered this step with an ErrorResponse.
    Error {
        /// What the statement was for.
        step: S,
        /// Its SQLSTATE.
        sqlstate: String,
        /// Its message.
        message: String,
    },
    /// The answer is not the one that the batch has.
    Malformed(&'static str),
}

impl<S: fmt::Display> From<BatchFailure<S>> for BadAnswer {
    fn from(failure: BatchFailure<S>) -> Self {
        match failure {
            BatchFailure::Error {
                step,
                sqlstate,
                message,
            } => Self::Error {
                sqlstate,
                message: format!("{step}: {message}"),
            },
            BatchFailure::Malformed(what) => Self::Malformed(what),
        }
    }
}

/// The answer to a batch, as it comes.
#[derive(Debug)]
pub(super) struct BatchAnswer<S> {
    steps: Vec<(S, &'static [Expected])>,
    /// The step and its message that come next.
    position: (usize, usize),
    /// The rows of the steps that are behind, and of this one.
    rows: Vec<Vec<Row>>,
    failure: Option<BatchFailure<S>>,
}

impl<S: Clone> BatchAnswer<S> {
    /// Each step with its rows, in order: takes the batch's messages from
    /// `frames`, which have none of those that a server may send at any time.
    ///
    /// # Errors
    /// The first thing that was wrong with the answer.
    pub(super) fn read<'a>(
        mut self,
        frames: &mut impl Iterator<Item = &'a Frame>,
    ) -> Result<Vec<(S, Vec<Row>)>, BatchFailure<S>> {
        loop {
            let Some(frame) = frames.next() else {
                self.fail(BatchFailure::Malformed("it has not ended"));
                break;
            };
            if frame.backend_tag() == BackendTag::READY_FOR_QUERY {
                self.check_idle(frame);
                if self.expected().is_some() {
                    self.fail(BatchFailure::Malformed("it ends too early"));
                }
                break;
            }
            // The server skips what follows an error.
            if self.failure.is_none() {
                self.take(frame.backend_tag(), frame.body());
            }
        }
        for expected in [BackendTag::CLOSE_COMPLETE, BackendTag::READY_FOR_QUERY] {
            match frames.next() {
                Some(frame) if frame.backend_tag() == expected => {
                    if expected == BackendTag::READY_FOR_QUERY {
                        self.check_idle(frame);
                    }
                }
                Some(_) => self.fail(BatchFailure::Malformed("unexpected messages")),
                None => self.fail(BatchFailure::Malformed("it has not ended")),
            }
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let steps = self.steps.into_iter().map(|(step, _)| step);
        Ok(steps.zip(self.rows).collect())
    }

    fn check_idle(&mut self, ready: &Frame) {
        let idle = match ready.body() {
            &[byte] => TransactionStatus::from_byte(byte) == Some(TransactionStatus::Idle),
            _ => false,
        };
        if !idle {
            self.fail(BatchFailure::Malformed("the session is not idle after it"));
        }
    }

    fn take(&mut self, tag: BackendTag, body: &[u8]) {
        let Some((step, expected)) = self.expected() else {
            return self.fail(BatchFailure::Malformed(
                "it has more messages than asked for",
            ));
        };
        if tag == BackendTag::ERROR_RESPONSE {
            let ErrorFields {
                sqlstate, message, ..
            } = ErrorFields::parse(body);
            let step = step.clone();
            return self.fail(BatchFailure::Error {
                step,
                sqlstate,
                message,
            });
        }
        while self.rows.len() <= self.position.0 {
            self.rows.push(Vec::new());
        }
        match (expected, tag) {
            (Expected::Execute, BackendTag::DATA_ROW) => {
                let Some(values) = data_row(body) else {
                    return self.fail(BatchFailure::Malformed("DataRow is broken"));
                };
                let values = values.into_iter().map(|value| value.map(<[u8]>::to_vec));
                if let Some(rows) = self.rows.last_mut() {
                    rows.push(values.collect());
                }
            }
            (Expected::Execute, BackendTag::COMMAND_COMPLETE) if split_cstr(body).is_some() => {
                self.advance();
            }
            (Expected::Parse, BackendTag::PARSE_COMPLETE)
            | (Expected::Bind, BackendTag::BIND_COMPLETE)
            | (Expected::Close, BackendTag::CLOSE_COMPLETE) => self.advance(),
            _ => self.fail(BatchFailure::Malformed("unexpected messages")),
        }
    }

    fn expected(&self) -> Option<(&S, Expected)> {
        let (step, messages) = self.steps.get(self.position.0)?;
        Some((step, *messages.get(self.position.1)?))
    }

    fn advance(&mut self) {
        self.position.1 += 1;
        let messages = self
            .steps
            .get(self.position.0)
            .map(|(_, messages)| messages);
        if messages.is_some_and(|messages| self.position.1 >= messages.len()) {
            self.position = (self.position.0 + 1, 0);
        }
    }

    fn fail(&mut self, failure: BatchFailure<S>) {
        self.failure.get_or_insert(failure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> BatchAnswer<&'static str> {
        let mut batch = Batch::new("own");
        batch.execute("first", b"SELECT 1", &[]);
        batch.parse("second", b"theirs", b"SELECT 2", &[23]);
        batch.finish().1
    }

    fn answer(
        messages: &[(u8, &[u8])],
    ) -> Result<Vec<(&'static str, Vec<Row>)>, BatchFailure<&'static str>> {
        let frames: Vec<_> = messages
            .iter()
            .map(|(tag, body)| Frame::new(*tag, body))
            .collect();
        batch().read(&mut frames.iter())
    }

    /// One column, `x`.
    const ROW: &[u8] = b"\0\x01\0\0\0\x01x";
    const DONE: &[u8] = b"SELECT 1\0";
    /// What every batch ends with.
    const END: [(u8, &[u8]); 3] = [(b'Z', b"I"), (b'3', b""), (b'Z', b"I")];

    #[test]
    fn a_batch_goes_out_in_one_piece_with_one_sync() {
        let mut batch = Batch::new("own");
        batch.execute("first", b"SELECT $1", &[b"x"]);
        batch.parse("second", b"theirs", b"SELECT 2", &[23]);
        let expected = [
            b"P\0\0\0\x18own\0SELECT $1\0\0\x01\0\0\0\x19".as_slice(),
            b"B\0\0\0\x19own\0own\0\0\0\0\x01\0\0\0\x01x\0\x01\0\x01",
            b"E\0\0\0\x0cown\0\0\0\0\0",
            b"C\0\0\0\x09Pown\0",
            b"C\0\0\0\x09Sown\0",
            b"P\0\0\0\x1atheirs\0SELECT 2\0\0\x01\0\0\0\x17",
            b"S\0\0\0\x04",
            b"C\0\0\0\x09Sown\0",
            b"S\0\0\0\x04",
        ];
        assert_eq!(
            batch.finish().0.bytes.escape_ascii().to_string(),
            expected.concat().escape_ascii().to_string()
        );
    }

    #[test]
    fn the_rows_belong_to_their_step() {
        let rows = answer(&[
            (b'1', b""),
            (b'2', b""),
            (b'D', ROW),
            (b'C', DONE),
            (b'3', b""),
            (b'3', b""),
            (b'1', b""),
            END[0],
            END[1],
            END[2],
        ]);
        let x = vec![Some(b"x".to_vec())];
        assert_eq!(rows, Ok(vec![("first", vec![x]), ("second", vec![])]));
    }

    #[test]
    fn an_error_names_its_step() {
        let error = (b'E', b"VERROR\0C42601\0Mno\0\0".as_slice());
        let first = [(b'1', b"".as_slice()), error, END[0], END[1], END[2]];
        let second = [
            (b'1', b"".as_slice()),
            (b'2', b""),
            (b'C', DONE),
            (b'3', b""),
            (b'3', b""),
            error,
            END[0],
            END[1],
            END[2],
        ];
        for (messages, step) in [(first.as_slice(), "first"), (&second, "second")] {
            let failure = BatchFailure::Error {
                step,
                sqlstate: "42601".to_owned(),
                message: "no".to_owned(),
            };
            assert_eq!(answer(messages), Err(failure));
        }
    }

    #[test]
    fn nothing_but_the_batchs_own_answer_is_believed() {
        let begun = [(b'1', b"".as_slice()), (b'2', b"")];
        type Messages<'a> = &'a [(u8, &'a [u8])];
        let cases: &[(&str, Messages<'_>)] = &[
            ("it has not ended", &[]),
            ("it ends too early", &[(b'Z', b"I")]),
            ("it ends too early", &[begun[0], begun[1], (b'Z', b"I")]),
            ("the session is not idle after it", &[(b'Z', b"T")]),
            ("the session is not idle after it", &[(b'Z', b"")]),
            ("unexpected messages", &[(b'2', b""), (b'Z', b"I")]),
            (
                "DataRow is broken",
                &[begun[0], begun[1], (b'D', b"\0"), (b'Z', b"I")],
            ),
        ];
        for (what, messages) in cases {
            assert_eq!(
                answer(messages),
                Err(BatchFailure::Malformed(what)),
                "{messages:?}"
            );
        }
    }
}
