//! Transactions and the settings that follow them.

use crate::error::{Failure, PgError};
use crate::session::{Session, Txn};
use crate::wire::parameter_status;

impl Session {
    pub(crate) fn batch(&mut self, sql: &str) -> Result<(), PgError> {
        let done = self.db()?.execute_batch(sql);
        done.map_err(|error| self.sql_error(&error))
    }

    pub(crate) fn begin(&mut self) -> Result<String, Failure> {
        match self.txn {
            Txn::Idle => self.batch("BEGIN")?,
            Txn::Implicit => {}
            Txn::Open | Txn::Failed => self.notice("there is already a transaction in progress")?,
        }
        self.txn = Txn::Open;
        Ok("BEGIN".to_owned())
    }

    pub(crate) fn commit(&mut self) -> Result<String, Failure> {
        if self.txn == Txn::Idle {
            self.notice("there is no transaction in progress")?;
            return Ok("COMMIT".to_owned());
        }
        if let Err(error) = self.batch("COMMIT") {
            self.rollback()?;
            return Err(error.into());
        }
        if let Some((saved, locals)) = self.saved.take() {
            let mut state = self.state.lock();
            for name in locals {
                if let Ok(value) = saved.get(&name) {
                    state.settings.set(&name, &value)?;
                } else {
                    state.settings.reset(&name)?;
                }
            }
        }
        self.end_transaction();
        Ok("COMMIT".to_owned())
    }

    pub(crate) fn rollback(&mut self) -> Result<String, Failure> {
        if self.txn == Txn::Idle {
            self.notice("there is no transaction in progress")?;
        }
        self.undo()?;
        if let Some((saved, _)) = self.saved.take() {
            self.state.lock().settings = saved;
        }
        self.end_transaction();
        Ok("ROLLBACK".to_owned())
    }

    /// Rolls SQLite's transaction back, unless it has done so itself.
    fn undo(&mut self) -> Result<(), PgError> {
        match &self.db {
            Some(db) if !db.is_autocommit() => self.batch("ROLLBACK"),
            _ => Ok(()),
        }
    }

    fn end_transaction(&mut self) {
        self.txn = Txn::Idle;
        self.savepoints = false;
        self.portals.clear();
    }

    pub(crate) fn savepoint(&mut self, sql: &str, tag: &str) -> Result<String, PgError> {
        if matches!(self.txn, Txn::Idle | Txn::Implicit) {
            let text = format!("{tag} can only be used in transaction blocks");
            return Err(PgError::new("25P01", text));
        }
        self.batch(sql).map_err(|error| match error {
            error if error.message.contains("no such savepoint") => {
                PgError::new("3B001", error.message)
            }
            error => error,
        })?;
        self.savepoints = true;
        self.txn = Txn::Open;
        Ok(tag.to_owned())
    }

    /// Opens the transaction that the statements of one Query share.
    pub(crate) fn begin_implicit(&mut self, writes: bool) -> Result<(), PgError> {
        // Taking the lock first spares a writer the restart of its snapshot.
        self.batch(if writes { "BEGIN IMMEDIATE" } else { "BEGIN" })?;
        self.txn = Txn::Implicit;
        Ok(())
    }

    /// After an error: the transaction has failed. Its locks are given back at
    /// once where no savepoint may bring it back.
    pub(crate) fn fail_transaction(&mut self) {
        match self.txn {
            Txn::Idle | Txn::Failed => {}
            Txn::Implicit => {
                // The error that led here is the one to tell.
                let _ = self.rollback();
            }
            Txn::Open => {
                if !self.savepoints {
                    let _ = self.undo();
                }
                self.txn = Txn::Failed;
            }
        }
    }

    fn notice(&mut self, text: &str) -> Result<(), Failure> {
        Ok(self.output.wire.send(&crate::wire::notice_response(text))?)
    }

    /// Remembers the settings, in case the transaction is rolled back.
    pub(crate) fn keep_settings(&mut self) {
        if self.txn != Txn::Idle && self.saved.is_none() {
            self.saved = Some((self.state.lock().settings.clone(), Vec::new()));
        }
    }

    pub(crate) fn set(
        &mut self,
        name: &str,
        value: Option<&str>,
        local: bool,
    ) -> Result<(), PgError> {
        match (name, value) {
            ("sqlpod.fault", None | Some("" | "clear")) => {
                self.pod.faults.clear();
                return Ok(());
            }
            ("sqlpod.fault", Some(rule)) => {
                let rule = rule
                    .parse()
                    .map_err(|why: String| PgError::new("22023", why))?;
                self.pod.faults.add(rule);
                return Ok(());
            }
            ("sqlpod.max_state_size", Some(size)) => {
                let size = size
                    .parse()
                    .map_err(|_| PgError::new("22023", "expected bytes"))?;
                self.pod.set_max_state_size(size);
                return Ok(());
            }
            (name, _) if READ_ONLY.contains(&name) => {
                let text = format!("parameter \"{name}\" cannot be changed");
                return Err(PgError::new("55P02", text));
            }
            _ => {}
        }
        if local && self.txn == Txn::Idle {
            return Ok(());
        }
        self.keep_settings();
        let mut state = self.state.lock();
        match value {
            Some(value) => state.settings.set(name, value)?,
            None => state.settings.reset(name)?,
        }
        if let Some((_, locals)) = self.saved.as_mut().filter(|_| local) {
            locals.push(name.to_owned());
        }
        Ok(())
    }

    pub(crate) fn show(&self, name: &str) -> Result<String, PgError> {
        match name {
            "sqlpod.name" | "node" => Ok(self.pod.config.name.clone()),
            "crdb.remote_addr" => Ok(self.remote_addr.clone()),
            "sqlpod.token_login" => Ok(if self.output.token_login == Some(true) {
                "on"
            } else {
                "off"
            }
            .to_owned()),
            "is_superuser" => Ok(if self.user == "root" { "on" } else { "off" }.to_owned()),
            "session_authorization" => Ok(self.user.clone()),
            "sqlpod.max_state_size" => Ok(self.pod.max_state_size().to_string()),
            name => self.state.lock().settings.get(name),
        }
    }

    /// Sends ParameterStatus for what has changed; `silent` only takes note.
    pub(crate) fn report_settings(&mut self, silent: bool) -> Result<(), Failure> {
        let current = self.state.lock().settings.reported();
        if !silent {
            for pair in current.iter().filter(|pair| !self.reported.contains(pair)) {
                self.output.wire.send(&parameter_status(pair.0, &pair.1))?;
            }
        }
        self.reported = current;
        Ok(())
    }
}

/// What a session shows and nobody sets.
const READ_ONLY: &[&str] = &[
    "sqlpod.name",
    "crdb.remote_addr",
    "sqlpod.token_login",
    "is_superuser",
    "session_authorization",
];
