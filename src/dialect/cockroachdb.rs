//! CockroachDB: a session's state is the server's own to give and to take back.
//!
//! Two statements: `SHOW TRANSFER STATE WITH '<key>'` on the old server and
//! `SELECT crdb_internal.deserialize_session(...)` on the new one, which lets the
//! session in by a revival token in the startup packet.  Where the proxy can log in
//! (`[login]`), `crdb_internal.serialize_session()` on the old one, and no token: only a
//! tenant's cluster has those.  The answers are looked at to the letter before anything
//! is believed: columns, key, tag, ReadyForQuery.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use uuid::Uuid;

use super::{
    Answer, BadAnswer, Conversation, Credentials, LoginMethod, Request, SessionState,
    SessionTransfer, Turn, Unsupported,
};
use crate::error::{Error, Refusal, shown};
use crate::message::{BackendTag, ErrorFields, FrontendTag, put_message, query};
use crate::parameters::Parameters;
use crate::startup::StartupPacket;

const STATE_COLUMNS: [&[u8]; 4] = [
    b"error",
    b"session_state_base64",
    b"session_revival_token_base64",
    b"transfer_key",
];
const STATE_COLUMN: &[u8] = b"session_state_base64";
const RESTORE_COLUMN: &[u8] = b"crdb_internal.deserialize_session";

/// The token of a transferred session.  Whoever sends it logs in without any
/// other check, so no client may.
const REVIVAL_TOKEN: &[u8] = b"crdb:session_revival_token_base64";

/// How long a token lets its session in (CockroachDB's `pkg/ccl/securityccl`, its issue
/// and expiry are ten minutes apart).
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

/// Tells a node the client's address behind the proxy.
const REMOTE_ADDRESS: &[u8] = b"crdb:remote_addr";

/// The refusal of a cluster that cannot transfer any session.
const TOKENS_UNSUPPORTED: Unsupported = Unsupported {
    refusal: "session revival tokens are not supported on this cluster",
    setting: "server.user_login.session_revival_token.enabled",
    advice: "enable the setting on the SQL servers, which only a tenant's cluster has; elsewhere \
             let the proxy log in: [login]",
};

/// Refuses a startup packet with a revival token, whatever the dialect: a node of
/// CockroachDB may stand behind a file that says otherwise.
pub(super) fn refuse_token(startup: &StartupPacket) -> Result<(), Error> {
    if startup.has_ignoring_case(REVIVAL_TOKEN) {
        return Err(Refusal::parameter(REVIVAL_TOKEN).into());
    }
    Ok(())
}

/// Puts in the client's address in place of what the client may have sent.
pub(super) fn prepare_startup(startup: &mut StartupPacket, client: SocketAddr) {
    startup.set_ignoring_case(REMOTE_ADDRESS, client.to_string().as_bytes());
}

/// Transfers sessions by the server's own two statements.
pub(super) struct Transfer {
    /// How the proxy logs in on the new server; `None`: by a token of the old one.
    pub(super) login: Option<LoginMethod>,
}

impl SessionTransfer for Transfer {
    fn capture(
        &self,
        _login: &Parameters,
        unnamed: Option<&[u8]>,
    ) -> Box<dyn Conversation<Box<dyn SessionState>>> {
        let unnamed = unnamed.map(<[u8]>::to_vec);
        match self.login {
            None => Box::new(StateQuery {
                key: Uuid::new_v4(),
                unnamed,
            }),
            Some(login) => Box::new(Serialization { login, unnamed }),
        }
    }
}

/// `SHOW TRANSFER STATE` with a key that its answer has to echo.
struct StateQuery {
    key: Uuid,
    unnamed: Option<Vec<u8>>,
}

impl Conversation<Box<dyn SessionState>> for StateQuery {
    fn begin(&mut self, _left: Duration) -> Result<Request, BadAnswer> {
        let sql = format!("SHOW TRANSFER STATE WITH '{}'", self.key);
        Ok(with_unnamed(query(&sql), self.unnamed.as_deref()))
    }

    fn answered(
        &mut self,
        answer: &Answer,
        _left: Duration,
    ) -> Result<Turn<Box<dyn SessionState>>, BadAnswer> {
        let malformed = |what| Err(BadAnswer::Malformed(what));
        let row = answer.single_row(&STATE_COLUMNS, "SHOW TRANSFER STATE 1")?;
        let &[error, state, token, echoed] = row.as_slice() else {
            return malformed("row of the wrong width");
        };
        if echoed != Some(self.key.to_string().as_bytes()) {
            return malformed("wrong transfer key");
        }
        // NULL means no error: an empty text would be an error without words.
        if let Some(error) = error {
            let text = shown(&String::from_utf8_lossy(error));
            return Err(if text == TOKENS_UNSUPPORTED.refusal {
                BadAnswer::Unsupported(TOKENS_UNSUPPORTED)
            } else {
                BadAnswer::Refused(text)
            });
        }
        let (Some(state), Some(token)) = (state, token) else {
            return malformed("neither an error nor a state");
        };
        if token.is_empty() || BASE64.decode(token).is_err() {
            return malformed("the token is not base64");
        }
        SerializedSession::read(state, Entry::Token(token.to_vec()))
    }
}

/// `crdb_internal.serialize_session`, for a new server that the proxy logs in on.  Its
/// refusals are errors.
struct Serialization {
    login: LoginMethod,
    unnamed: Option<Vec<u8>>,
}

impl Conversation<Box<dyn SessionState>> for Serialization {
    fn begin(&mut self, _left: Duration) -> Result<Request, BadAnswer> {
        // In a form that no setting of the session changes, as bytea_output would.
        let sql = "SELECT encode(crdb_internal.serialize_session(), 'base64') AS \
                   session_state_base64";
        Ok(with_unnamed(query(sql), self.unnamed.as_deref()))
    }

    fn answered(
        &mut self,
        answer: &Answer,
        _left: Duration,
    ) -> Result<Turn<Box<dyn SessionState>>, BadAnswer> {
        let row = answer.single_row(&[STATE_COLUMN], "SELECT 1")?;
        match row.as_slice() {
            [Some(state)] => SerializedSession::read(state, Entry::Login(self.login)),
            _ => Err(BadAnswer::Malformed("no state")),
        }
    }
}

/// How the session gets into its new server.
enum Entry {
    /// By the old one's token.
    Token(Vec<u8>),
    /// As `[login]` says.
    Login(LoginMethod),
}

/// What the old server gave out, and what to log in with.
struct SerializedSession {
    state_base64: String,
    entry: Entry,
    state_bytes: usize,
}

impl SerializedSession {
    fn read(state: &[u8], entry: Entry) -> Result<Turn<Box<dyn SessionState>>, BadAnswer> {
        // Decoded for two reasons: its length, and that nothing but base64 gets
        // into the text of the restoring statement.
        let (Ok(decoded), Ok(text)) = (BASE64.decode(state), std::str::from_utf8(state)) else {
            return Err(BadAnswer::Malformed("the state is not base64"));
        };
        Ok(Turn::Done(Box::new(Self {
            state_base64: text.to_owned(),
            entry,
            state_bytes: decoded.len(),
        })))
    }
}

impl SessionState for SerializedSession {
    fn state_bytes(&self) -> usize {
        self.state_bytes
    }

    fn prepare_login(&self, startup: &mut StartupPacket) {
        if let Entry::Token(token) = &self.entry {
            startup.set_ignoring_case(REVIVAL_TOKEN, token);
        }
    }

    fn login_by(&self) -> &'static str {
        match self.entry {
            Entry::Token(_) => "a revival token",
            Entry::Login(login) => login.lets_in_by(),
        }
    }

    fn credentials(&self) -> Credentials {
        match self.entry {
            Entry::Token(_) => Credentials::None,
            Entry::Login(login) => login.credentials(),
        }
    }

    fn restore<'a>(
        &'a self,
        _login: &Parameters,
        unnamed: Option<&'a [u8]>,
    ) -> Box<dyn Conversation<()> + 'a> {
        Box::new(Deserialization {
            session: self,
            unnamed,
        })
    }
}

/// `crdb_internal.deserialize_session` with the state.
struct Deserialization<'a> {
    session: &'a SerializedSession,
    unnamed: Option<&'a [u8]>,
}

/// A Query, and behind it the client's unnamed statement, which the Query takes away
/// (conn_executor.go: a simple query deletes the prepared statement "").
fn with_unnamed(query: Vec<u8>, unnamed: Option<&[u8]>) -> Request {
    let mut bytes = query;
    let Some(parse) = unnamed else {
        return Request {
            bytes,
            ready_for_queries: 1,
        };
    };
    bytes.extend_from_slice(parse);
    put_message(&mut bytes, FrontendTag::SYNC.0, |_| {});
    Request {
        bytes,
        ready_for_queries: 2,
    }
}

/// Looks at what followed the answer to the Query.
fn check_unnamed(answer: &Answer, unnamed: Option<&[u8]>) -> Result<(), BadAnswer> {
    if unnamed.is_none() {
        return Ok(());
    }
    let (_, frames) = answer.split_query();
    match frames {
        [complete, ready]
            if complete.backend_tag() == BackendTag::PARSE_COMPLETE && ready.body() == b"I" =>
        {
            Ok(())
        }
        [error, ..] if error.backend_tag() == BackendTag::ERROR_RESPONSE => {
            let message = ErrorFields::parse(error.body()).message;
            Err(BadAnswer::Refused(format!("unnamed statement: {message}")))
        }
        _ => Err(BadAnswer::Malformed("the unnamed statement was not parsed")),
    }
}

impl Conversation<()> for Deserialization<'_> {
    fn begin(&mut self, _left: Duration) -> Result<Request, BadAnswer> {
        let state = &self.session.state_base64;
        let sql = format!("SELECT crdb_internal.deserialize_session(decode('{state}', 'base64'))");
        Ok(with_unnamed(query(&sql), self.unnamed))
    }

    fn answered(&mut self, answer: &Answer, _left: Duration) -> Result<Turn<()>, BadAnswer> {
        let row = answer.single_row(&[RESTORE_COLUMN], "SELECT 1")?;
        match row.as_slice() {
            // A boolean in text format (protocol document: true is `t`).
            [Some(b"t")] => {
                check_unnamed(answer, self.unnamed)?;
                Ok(Turn::Done(()))
            }
            _ => Err(BadAnswer::Malformed("the restore did not say true")),
        }
    }
}
