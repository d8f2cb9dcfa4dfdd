//! One client's life: startup, login, then message after message.
//!
//! Read this first; the steps are in `login`, `extended`, `execute`,
//! `transaction` and `copy`.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::Connection;

use crate::error::{Failure, PgError};
use crate::execute::{Sink, purpose};
use crate::extended::Portal;
use crate::handle::Handle;
use crate::output::{Output, Purpose};
use crate::pod::Inner;
use crate::prepared::Prepared;
use crate::settings::Settings;
use crate::state::State;
use crate::statement::{Statement, statements};
use crate::wire::{Message, empty, error_response};

/// Where the session stands in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Txn {
    Idle,
    /// The one that the statements of one Query share.
    Implicit,
    Open,
    Failed,
}

pub(crate) struct Session {
    pub(crate) pod: Arc<Inner>,
    pub(crate) handle: Arc<Handle>,
    pub(crate) output: Output,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) user: String,
    pub(crate) remote_addr: String,
    /// Opened by the first statement that needs it.
    pub(crate) db: Option<Connection>,
    pub(crate) txn: Txn,
    /// Whether SQLite has savepoints to come back to.
    pub(crate) savepoints: bool,
    /// Settings before the transaction, and what is local to it.
    pub(crate) saved: Option<(Settings, Vec<String>)>,
    pub(crate) portals: BTreeMap<String, Portal>,
    /// What the client was told of the settings.
    pub(crate) reported: Vec<(&'static str, String)>,
    /// What the next ReadyForQuery belongs to.
    pub(crate) purpose: Purpose,
    /// After an error in the extended protocol: up to Sync nothing counts.
    skipping: bool,
}

impl Session {
    pub(crate) fn new(pod: Arc<Inner>, handle: Arc<Handle>, output: Output) -> Self {
        let settings = Settings::new("", &pod.config.server_version);
        Self {
            pod,
            handle,
            output,
            state: Arc::new(Mutex::new(State::new("", settings))),
            user: String::new(),
            remote_addr: String::new(),
            db: None,
            txn: Txn::Idle,
            savepoints: false,
            saved: None,
            portals: BTreeMap::new(),
            reported: Vec::new(),
            purpose: Purpose::Plain,
            skipping: false,
        }
    }

    /// Serves the client until either side ends it; tells the client why.
    pub(crate) fn serve(mut self) {
        let ended = self
            .login()
            .and_then(|stays| if stays { self.converse() } else { Ok(()) });
        let Err(failure) = ended else {
            self.output.wire.end();
            return;
        };
        let error = match failure {
            Failure::Sql(error) => PgError {
                fatal: true,
                ..error
            },
            // The pod has ended the reading side itself.
            Failure::Gone(_) if self.handle.closing() => PgError::shutdown(),
            Failure::Gone(error) => {
                log::debug!(pid = self.handle.pid; "connection gone: {error}");
                return;
            }
        };
        log::debug!(pid = self.handle.pid; "session ended: {error}");
        // The client may be gone by now; there is nobody else to tell.
        let _ = self.output.wire.send(&error_response(&error));
        let _ = self.output.wire.flush();
        self.output.wire.end();
        let _ = self.handle.socket.shutdown(Shutdown::Write);
    }

    /// Reads the next message.
    pub(crate) fn receive(&mut self) -> Result<(u8, Vec<u8>), Failure> {
        let received = self.output.wire.read();
        if self.handle.closing() {
            return Err(PgError::shutdown().into());
        }
        received
    }

    fn converse(&mut self) -> Result<(), Failure> {
        loop {
            let (tag, body) = self.receive()?;
            match tag {
                b'X' => return Ok(()),
                b'S' => self.sync()?,
                _ if self.skipping => {}
                b'Q' => self.query(&body)?,
                b'F' => {
                    self.fail(PgError::unsupported("FunctionCall"))?;
                    self.ready()?;
                }
                b'P' | b'B' | b'D' | b'E' | b'C' | b'H' => self.extended(tag, &body)?,
                // The rest of a COPY that has already failed.
                b'd' | b'c' | b'f' => {}
                other => {
                    let text = format!("invalid frontend message type {other}");
                    return Err(PgError::protocol(text).into());
                }
            }
        }
    }

    fn extended(&mut self, tag: u8, body: &[u8]) -> Result<(), Failure> {
        self.handle.begin();
        let result = match tag {
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe_message(body),
            b'E' => self.execute_message(body),
            b'C' => self.close(body),
            _ => self.output.wire.flush().map_err(Failure::from),
        };
        self.handle.finish();
        match result {
            Err(Failure::Sql(error)) if !error.fatal => {
                self.skipping = true;
                self.fail(error)
            }
            other => other,
        }
    }

    fn sync(&mut self) -> Result<(), Failure> {
        self.skipping = false;
        if self.txn == Txn::Idle {
            self.portals.clear();
        }
        self.ready()
    }

    /// The simple protocol: all statements of the text, up to the first error.
    fn query(&mut self, body: &[u8]) -> Result<(), Failure> {
        self.state.lock().statements.remove("");
        self.portals.remove("");
        self.handle.begin();
        let result = crate::wire::Fields(body)
            .text()
            .map_err(Failure::from)
            .and_then(|sql| self.run_all(sql));
        self.handle.finish();
        match result {
            Err(Failure::Sql(error)) if !error.fatal => self.fail(error)?,
            other => other?,
        }
        self.ready()
    }

    fn run_all(&mut self, sql: &str) -> Result<(), Failure> {
        let texts = statements(sql)?;
        if texts.is_empty() {
            return Ok(self.output.wire.send(&empty(b'I'))?);
        }
        let several = texts.len() > 1;
        let parse = |text: &String| Prepared::simple(text);
        let all = texts.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let writes = all.iter().any(|prepared| match &prepared.statement {
            Statement::Sql(sql) => sql.writes(),
            Statement::CopyIn { .. } => true,
            _ => false,
        });
        for prepared in &all {
            let statement = &prepared.statement;
            let shared = matches!(
                statement,
                Statement::Sql(_) | Statement::CopyIn { .. } | Statement::Execute { .. }
            );
            if several && shared && self.txn == Txn::Idle {
                self.begin_implicit(writes)?;
            }
            let purpose = purpose(statement);
            if purpose != Purpose::Plain {
                self.purpose = purpose;
            }
            let answer = self.output.answer(purpose, true, Vec::new());
            let tag = self.run(prepared, &[], &mut Sink::Send(&answer))?;
            self.complete(&answer, &tag)?;
        }
        if self.txn == Txn::Implicit {
            self.commit()?;
        }
        Ok(())
    }

    /// CommandComplete, or EmptyQueryResponse for an empty tag.
    pub(crate) fn complete(
        &mut self,
        answer: &crate::output::Answer,
        tag: &str,
    ) -> Result<(), Failure> {
        match tag {
            "" => Ok(self.output.wire.send(&empty(b'I'))?),
            tag => self.output.complete(answer, tag),
        }
    }

    /// Tells the client of an error; the transaction, if any, has failed.
    fn fail(&mut self, error: PgError) -> Result<(), Failure> {
        // Whatever a function left behind belongs to the failed statement.
        self.state.lock().error = None;
        if self.handle.closing() {
            return Err(PgError::shutdown().into());
        }
        self.fail_transaction();
        self.report_settings(false)?;
        self.output.wire.send(&error_response(&error))?;
        Ok(self.output.wire.flush()?)
    }

    /// ReadyForQuery.
    pub(crate) fn ready(&mut self) -> Result<(), Failure> {
        let status = match self.txn {
            Txn::Idle | Txn::Implicit => b'I',
            Txn::Open => b'T',
            Txn::Failed => b'E',
        };
        let step = std::mem::take(&mut self.purpose)
            .steps()
            .map(|steps| steps[3]);
        self.output
            .step(step, &Message::new(b'Z').u8(status).finish())?;
        Ok(self.output.wire.flush()?)
    }
}
