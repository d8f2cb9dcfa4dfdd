//! What a session sends, with the faults that strike it on the way.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::types::Value;
use socket2::SockRef;

use crate::error::{Failure, PgError};
use crate::faults::{Fault, Faults, Hit, Step};
use crate::handle::Handle;
use crate::prepared::Column;
use crate::types;
use crate::wire::{Message, Wire, command_complete, error_response};

/// How often a stalled message looks for its peer's end.
const STALL_LOOK: Duration = Duration::from_millis(10);

/// What is being answered: faults strike the transfer's answers only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Purpose {
    #[default]
    Plain,
    State,
    Restore,
}

impl Purpose {
    /// The steps of RowDescription, DataRow, CommandComplete, ReadyForQuery.
    pub(crate) fn steps(self) -> Option<[Step; 4]> {
        use Step::{
            RestoreCommandComplete, RestoreDataRow, RestoreReady, RestoreRowDescription,
            StateCommandComplete, StateDataRow, StateReady, StateRowDescription,
        };
        match self {
            Self::Plain => None,
            Self::State => Some([
                StateRowDescription,
                StateDataRow,
                StateCommandComplete,
                StateReady,
            ]),
            Self::Restore => Some([
                RestoreRowDescription,
                RestoreDataRow,
                RestoreCommandComplete,
                RestoreReady,
            ]),
        }
    }
}

/// One statement's answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) purpose: Purpose,
    /// Whether a RowDescription comes first; not in the extended protocol.
    pub(crate) describe: bool,
    /// Result formats as in Bind: none, one for all, or one a column.
    pub(crate) formats: Vec<i16>,
    shape: Option<Fault>,
}

pub(crate) struct Output {
    pub(crate) wire: Wire,
    faults: Faults,
    handle: Arc<Handle>,
    /// Whether the login was with a token; `None` until that is known.
    pub(crate) token_login: Option<bool>,
    /// Empty until the startup packet was read.
    pub(crate) user: String,
}

impl Output {
    pub(crate) fn new(wire: Wire, faults: Faults, handle: Arc<Handle>) -> Self {
        Self {
            wire,
            faults,
            handle,
            token_login: None,
            user: String::new(),
        }
    }

    pub(crate) fn answer(&self, purpose: Purpose, describe: bool, formats: Vec<i16>) -> Answer {
        let token = self.token_login.unwrap_or(false);
        let shape = purpose
            .steps()
            .and_then(|[step, ..]| self.faults.shape(step, token, &self.user));
        Answer {
            purpose,
            describe,
            formats,
            shape,
        }
    }

    /// RowDescription, or NoData where there are no columns.
    pub(crate) fn describe(&mut self, answer: &Answer, columns: &[Column]) -> Result<(), Failure> {
        let mut shown: Vec<Column> = columns.to_vec();
        match answer.shape {
            Some(Fault::WrongColumnCount) => shown.truncate(shown.len().saturating_sub(1)),
            Some(Fault::WrongColumnNames) => {
                shown
                    .iter_mut()
                    .for_each(|column| column.name.insert(0, 'x'));
            }
            _ => {}
        }
        if shown.is_empty() && columns.is_empty() {
            return Ok(self.wire.send(&Message::new(b'n').finish())?);
        }
        let mut message = Message::new(b'T').count(shown.len());
        for (at, column) in shown.iter().enumerate() {
            let oid = if column.oid == types::UNKNOWN {
                types::TEXT
            } else {
                column.oid
            };
            message = message
                .text(&column.name)
                .i32(0)
                .i16(0)
                .u32(oid)
                .i16(types::size(oid))
                .i32(-1)
                .i16(format(&answer.formats, at));
        }
        self.step(
            answer.purpose.steps().map(|steps| steps[0]),
            &message.finish(),
        )
    }

    /// DataRow.
    pub(crate) fn row(
        &mut self,
        answer: &Answer,
        columns: &[Column],
        values: &[Value],
    ) -> Result<(), Failure> {
        let mut values = values.to_vec();
        let mut times = 1;
        match answer.shape {
            Some(Fault::WrongColumnCount) => values.truncate(values.len().saturating_sub(1)),
            Some(Fault::WrongKey) => {
                if let Some(last) = values.last_mut() {
                    *last = Value::Text("wrong".to_owned());
                }
            }
            Some(Fault::EmptyStringInsteadOfNull) => values
                .iter_mut()
                .filter(|value| **value == Value::Null)
                .for_each(|value| *value = Value::Text(String::new())),
            Some(Fault::MissingRow) => times = 0,
            Some(Fault::ExtraRow) => times = 2,
            _ => {}
        }
        let mut message = Message::new(b'D').count(values.len());
        for (at, (value, column)) in values.iter().zip(columns).enumerate() {
            let bytes = match format(&answer.formats, at) {
                0 => types::to_text(value, column.oid),
                1 => types::to_binary(value, column.oid)?,
                other => {
                    return Err(PgError::new("08P01", format!("bad format code {other}")).into());
                }
            };
            message = message.field(bytes.as_deref());
        }
        let message = message.finish();
        for _ in 0..times {
            self.step(answer.purpose.steps().map(|steps| steps[1]), &message)?;
        }
        Ok(())
    }

    /// CommandComplete.
    pub(crate) fn complete(&mut self, answer: &Answer, tag: &str) -> Result<(), Failure> {
        let tag = if answer.shape == Some(Fault::WrongTag) {
            "SELECT 0"
        } else {
            tag
        };
        self.step(
            answer.purpose.steps().map(|steps| steps[2]),
            &command_complete(tag),
        )
    }

    /// Sends a message of a step at which a fault may strike.
    pub(crate) fn step(&mut self, step: Option<Step>, message: &[u8]) -> Result<(), Failure> {
        let strikes = |step| self.faults.at(step, self.token_login, &self.user);
        let hit = step.and_then(|step| Some((step, strikes(step)?)));
        match hit {
            Some((step, hit)) => self.strike(step, &hit, message),
            None => Ok(self.wire.send(message)?),
        }
    }

    fn strike(&mut self, step: Step, hit: &Hit, message: &[u8]) -> Result<(), Failure> {
        self.wire.flush()?;
        let socket = Arc::clone(&self.handle.socket);
        let end = |what: &str| Failure::Gone(io::Error::other(format!("fault: {what}")));
        match &hit.fault {
            Fault::Delay(time) => self.hold(hit, Some(Instant::now() + *time))?,
            Fault::Stall => self.hold(hit, None)?,
            Fault::Refuse(code, text) if matches!(step, Step::StateReady | Step::RestoreReady) => {
                self.wire.send(&error_response(&PgError::new(code, text)))?;
            }
            Fault::Refuse(code, text) => {
                let fatal = step.is_login();
                return Err(PgError {
                    fatal,
                    ..PgError::new(code, text)
                }
                .into());
            }
            Fault::Die(code, text) => return Err(PgError::fatal(code, text).into()),
            Fault::Cut => {
                socket.shutdown(Shutdown::Write)?;
                return Err(end("cut"));
            }
            Fault::Reset => {
                SockRef::from(&*socket).set_linger(Some(Duration::ZERO))?;
                return Err(end("reset"));
            }
            Fault::Garble => {
                let garbled: Vec<u8> = message.iter().map(|byte| byte ^ 0xa5).collect();
                self.wire.send(&garbled)?;
                return Ok(self.wire.flush()?);
            }
            Fault::OneByteAtATime => {
                for byte in message {
                    self.wire.send(std::slice::from_ref(byte))?;
                    self.wire.flush()?;
                }
                return Ok(());
            }
            Fault::CloseAfter | Fault::Truncate => {
                let whole = hit.fault == Fault::CloseAfter;
                let length = if whole {
                    message.len()
                } else {
                    message.len() / 2
                };
                self.wire.send(message.get(..length).unwrap_or_default())?;
                self.wire.flush()?;
                socket.shutdown(Shutdown::Write)?;
                return Err(end("closed after"));
            }
            _ => {}
        }
        self.wire.send(message)?;
        Ok(self.wire.flush()?)
    }

    /// Holds a message back until its time, the rule's end, or the peer's.
    fn hold(&self, hit: &Hit, until: Option<Instant>) -> Result<(), Failure> {
        while self.faults.holds(hit) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            if self.handle.closing() {
                return Err(PgError::shutdown().into());
            }
            if self.handle.peer_gone() {
                return Err(Failure::Gone(io::ErrorKind::ConnectionReset.into()));
            }
            // A cancel does not lift a fault: only time passes here.
            let _ = self
                .handle
                .pause(left.map_or(STALL_LOOK, |left| left.min(STALL_LOOK)));
        }
        Ok(())
    }
}

/// The format of a column, by the rules of Bind.
fn format(formats: &[i16], at: usize) -> i16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(at).copied().unwrap_or(0),
    }
}
