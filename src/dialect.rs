//! What the proxy has to know of the servers' dialect.
//!
//! A dialect is one file below `dialect/` and one line in each match of
//! [`Dialect`].  It says how the server skips after an error, what belongs into a
//! startup packet and what does not, and how a session's state is captured on one
//! server and restored on another.  Nothing else in the proxy knows any SQL.
//! No I/O happens here: requests are bytes, answers are whole messages.

mod answer;
mod cockroachdb;
mod custom_names;
mod postgresql;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Refusal};
use crate::message::FrontendTag;
use crate::parameters::Parameters;
use crate::startup::StartupPacket;
pub use answer::Answer;
use custom_names::MOST_OWN as MOST_OWN_NAMES;
pub use custom_names::{CustomNames, SessionNames};

/// Which kind of server the backends are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// SQL pods of a CockroachDB tenant.
    CockroachDb,
    /// PostgreSQL.
    PostgreSql,
}

/// Where a server resumes after an error of an extended-protocol message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SkipRule {
    /// At the next Sync; a Query or FunctionCall before it is dropped without
    /// an answer (PostgreSQL).
    #[default]
    ToSync,
    /// At the next Sync, or at a Query or FunctionCall before it, which is
    /// dropped but may be answered by a lone ReadyForQuery. CockroachDB does
    /// one or the other, depending on where the error arose.
    Unknown,
}

impl Dialect {
    /// How its servers skip after an error.
    #[must_use]
    pub const fn skip_rule(self) -> SkipRule {
        match self {
            Self::CockroachDb => SkipRule::Unknown,
            Self::PostgreSql => SkipRule::ToSync,
        }
    }

    /// How long a session's state may wait for its server, which the proxy gets into by
    /// `login`; `None`: for ever.
    #[must_use]
    pub(crate) const fn longest_hold(self, login: Option<LoginMethod>) -> Option<Duration> {
        match (self, login) {
            (Self::CockroachDb, None) => Some(cockroachdb::TOKEN_LIFETIME),
            (Self::CockroachDb, Some(_)) | (Self::PostgreSql, _) => None,
        }
    }

    /// Who looks at a client's requests, where its server does not tell all that they
    /// leave in the session: for `custom_names`.
    #[must_use]
    pub fn request_watcher(
        self,
        custom_names: &Arc<SessionNames>,
    ) -> Option<Box<dyn RequestWatcher>> {
        match self {
            Self::CockroachDb => None,
            Self::PostgreSql => Some(Box::new(postgresql::NameWatcher::new(custom_names))),
        }
    }

    /// How a session that began with `startup` moves to another server.  `login`: how the proxy gets in
    /// there.  `custom_names`: what it knows of settings that no server lists.
    ///
    /// # Errors
    /// It does not.
    pub fn session_transfer(
        self,
        startup: &StartupPacket,
        login: Option<LoginMethod>,
        custom_names: &Arc<SessionNames>,
    ) -> Result<Box<dyn SessionTransfer>, Immovable> {
        match (self, login) {
            (Self::CockroachDb, login) => Ok(Box::new(cockroachdb::Transfer { login })),
            (Self::PostgreSql, Some(_)) if postgresql::is_replication(startup) => {
                Err(Immovable::Replication)
            }
            (Self::PostgreSql, Some(login)) => {
                Ok(Box::new(postgresql::Transfer::new(custom_names, login)))
            }
            (Self::PostgreSql, None) => Err(Immovable::NoLogin),
        }
    }

    /// The user and the database that a server takes a startup packet for, as it knows
    /// them itself.
    #[must_use]
    pub(crate) fn who_and_where(self, startup: &StartupPacket) -> (Vec<u8>, Vec<u8>) {
        /// PostgreSQL cuts longer names (NAMEDATALEN, less its terminator).
        const NAME_BYTES: usize = 63;
        let user = startup.get(b"user").unwrap_or_default();
        let database = startup.get(b"database").filter(|name| !name.is_empty());
        match self {
            Self::PostgreSql => {
                let cut = |name: &[u8]| name.get(..NAME_BYTES).unwrap_or(name).to_vec();
                (cut(user), cut(database.unwrap_or(user)))
            }
            // It folds the case of users' names, and has a default of its own.
            Self::CockroachDb => {
                let user = String::from_utf8_lossy(user).to_lowercase();
                (user.into_bytes(), database.unwrap_or(b"defaultdb").to_vec())
            }
        }
    }

    /// Refuses what no client may send and puts in what a server has to know of
    /// the client at `client`.
    ///
    /// # Errors
    /// [`Error::Refused`], for the client.
    pub fn check_startup(
        self,
        startup: &mut StartupPacket,
        client: SocketAddr,
    ) -> Result<(), Error> {
        cockroachdb::refuse_token(startup)?;
        if let Some(name) = startup.ambiguous_name() {
            return Err(Refusal::parameter(name).into());
        }
        if startup.get(b"user").is_none_or(<[u8]>::is_empty) {
            return Err(Refusal::NoUser.into());
        }
        match self {
            Self::CockroachDb => cockroachdb::prepare_startup(startup, client),
            Self::PostgreSql => {}
        }
        Ok(())
    }
}

/// Why a session moves nowhere, whatever its state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Immovable {
    /// The proxy has no way to log in for it.
    #[error("dialect postgresql has no session transfer")]
    NoLogin,
    /// It is a WAL sender's.
    #[error("replication connection")]
    Replication,
}

/// `[login]`: how the proxy logs in for a session on another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginMethod {
    /// The server lets it in without a question (pg_hba.conf).
    Trust,
    /// The server maps the proxy's own certificate to the session's user (pg_ident.conf).
    Cert,
    /// By the user's password, from a file.
    Passfile,
    /// By SCRAM, with what the session's own client has proved to the proxy.
    Scram,
}

/// By what the proxy shows that it may log in as a session's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// By nothing that a server asks for.
    None,
    /// By the user's password, where the proxy's file has it.
    Passfile,
    /// By what the session's client has proved.
    Proven,
}

impl LoginMethod {
    /// What a server should let a session in by, for the error where it asks for something
    /// else.
    const fn lets_in_by(self) -> &'static str {
        match self {
            Self::Trust => "nothing, as [login] method = \"trust\" says",
            Self::Cert => "the proxy's certificate, as [login] method = \"cert\" says",
            Self::Passfile => "none that the file of [login] has for it",
            Self::Scram => "its client's proof",
        }
    }

    /// What the proxy answers with where a server asks who the session's user is.
    const fn credentials(self) -> Credentials {
        match self {
            Self::Trust | Self::Cert => Credentials::None,
            Self::Passfile => Credentials::Passfile,
            Self::Scram => Credentials::Proven,
        }
    }
}

/// Looks at what a client sends, before its server gets it.
pub trait RequestWatcher {
    /// A message, of which `body` is there.
    fn message(&mut self, tag: FrontendTag, body: Piece<'_>) -> Watch;

    /// More of the last message that was passed on before it was whole.
    fn more(&mut self, body: &[u8]);
}

/// As much of a message's body as has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Its beginning.
    Begun(&'a [u8]),
}

impl<'a> Piece<'a> {
    /// What is there.
    const fn bytes(self) -> &'a [u8] {
        match self {
            Self::Whole(bytes) | Self::Begun(bytes) => bytes,
        }
    }
}

/// What becomes of a message that has not come whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// It may go on as it comes.
    Pass,
    /// It is to be looked at again when there is more of it, if it is short enough to
    /// wait for that.
    Wait,
}

/// A dialect's way to move a session.
pub trait SessionTransfer {
    /// The question for the state of one session, asked of its old server, which
    /// told `login` at the session's login.  `unnamed` is the client's last Parse
    /// without a name, where its statement is still there: whoever asks in a way that
    /// takes it from the client sends it again.
    fn capture(
        &self,
        login: &Parameters,
        unnamed: Option<&[u8]>,
    ) -> Box<dyn Conversation<Box<dyn SessionState>>>;
}

/// A session's state between two servers.  Secret: never logged, kept no longer than
/// its transfer and its hold or, captured ahead, than until the session is used again.
pub trait SessionState: Send {
    /// Its size, as the log and `max_state_size` count it.
    fn state_bytes(&self) -> usize;

    /// Puts into the session's startup packet what the new server lets it in by.
    fn prepare_login(&self, startup: &mut StartupPacket);

    /// Whether it hears what other sessions of its server send it.
    fn listens(&self) -> bool {
        false
    }

    /// What the new server should let it in by, for the error where it asks for
    /// a password instead.
    fn login_by(&self) -> &'static str;

    /// What the proxy answers with where the new server asks who the session's user is.
    fn credentials(&self) -> Credentials {
        Credentials::None
    }

    /// The session's rebuilding on the new server, which told `login` just now.
    /// `unnamed` is the client's last Parse without a name, where its statement
    /// is still there.
    fn restore<'a>(
        &'a self,
        login: &Parameters,
        unnamed: Option<&'a [u8]>,
    ) -> Box<dyn Conversation<()> + 'a>;

    /// What is said to the old server last: what it sends unasked until it has
    /// answered is the client's.
    fn last_request(&self) -> Option<Request> {
        None
    }
}

/// Requests of the proxy's own to a server, and what comes of them.
pub trait Conversation<T> {
    /// The first request, where `left` is all the time that there is.
    ///
    /// # Errors
    /// There is nothing to ask for.
    fn begin(&mut self, left: Duration) -> Result<Request, BadAnswer>;

    /// Reads the answer to the last request.
    ///
    /// # Errors
    /// [`BadAnswer`]: nothing comes of it, whatever else the answer holds.
    fn answered(&mut self, answer: &Answer, left: Duration) -> Result<Turn<T>, BadAnswer>;
}

/// Messages for a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The messages.
    pub bytes: Vec<u8>,
    /// How many ReadyForQuery they are answered by; the last one ends the answer.
    pub ready_for_queries: usize,
}

/// What follows an answer.
#[derive(Debug)]
pub enum Turn<T> {
    /// A further request.
    Ask(Request),
    /// The end.
    Done(T),
}

/// Why no session of a cluster can move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported {
    /// The server's text.
    pub refusal: &'static str,
    /// The server's setting that would change it.
    pub setting: &'static str,
    /// What the operator can do, for the log.
    pub advice: &'static str,
}

/// Why an answer gave no state, or no restored session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// The server says so in the answer's own column.
    #[error("server refused: {0}")]
    Refused(String),
    /// The same, of the whole cluster.
    #[error("server refused: {}", .0.refusal)]
    Unsupported(Unsupported),
    /// The server answered with an ErrorResponse.
    #[error("{message} ({sqlstate})")]
    Error {
        /// Its SQLSTATE.
        sqlstate: String,
        /// Its message.
        message: String,
    },
    /// Something ties the session to its server.
    #[error("{0}")]
    Obstacle(String),
    /// No session of that server may come to this one.
    #[error("{0}")]
    WrongTarget(String),
    /// The answer is not the one that the statement has.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
}
