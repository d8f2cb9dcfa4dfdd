//! Moves a session as a transfer does, over two bare connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sqlproxy::internal::{
    Answer, BadAnswer, Conversation, Dialect, Frame, LoginMethod, Parameters, SessionNames,
    SessionState, SessionTransfer, StartupPacket, Turn,
};

use crate::support::message::frame;
use crate::support::wire::Wire;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// A client's connection.
pub(super) struct Session {
    pub(super) wire: Wire,
    login: Parameters,
    startup: Vec<(&'static str, &'static str)>,
    /// Custom settings that its proxy knows of.
    custom: Arc<SessionNames>,
    /// The client's last Parse without a name.
    unnamed: Option<Vec<u8>>,
}

impl Session {
    pub(super) fn login(address: SocketAddr, user: &'static str) -> Self {
        Self::start(address, vec![("user", user), ("database", "postgres")])
    }

    pub(super) fn start(address: SocketAddr, startup: Vec<(&'static str, &'static str)>) -> Self {
        let (wire, login) = wire(address, &startup);
        let custom = Arc::new(SessionNames::default());
        for name in ["app.tenant", "plpgsql.check_asserts"] {
            custom.learn(name.as_bytes());
        }
        Self {
            wire,
            login,
            startup,
            custom,
            unnamed: None,
        }
    }

    /// Sends each statement in a Query of its own; none may fail.
    pub(super) fn run(&mut self, statements: &[&str]) {
        for sql in statements {
            self.wire.rows(sql);
            self.unnamed = None;
        }
    }

    /// Prepares by Parse.
    pub(super) fn parse(&mut self, name: &str, sql: &[u8], types: &[u32]) {
        let parse = parse(name, sql, types);
        self.wire.send(&parse);
        self.wire.send(&frame(b'S', b""));
        self.wire.expect(b'1');
        self.wire.receive_through(b'Z');
        if name.is_empty() {
            self.unnamed = Some(parse);
        }
    }

    /// Asks for its state.
    pub(super) fn capture(&mut self) -> Result<Box<dyn SessionState>, String> {
        let mut question = self.transfer().capture(&self.login, None);
        converse(&mut self.wire, &mut *question).map_err(|bad| bad.to_string())
    }

    /// Moves it, or says why it stays.
    pub(super) fn move_to(&mut self, address: SocketAddr) -> Result<(), String> {
        let state = self.capture()?;
        let (mut new, login) = wire(address, &self.startup);
        let mut rebuilding = state.restore(&login, self.unnamed.as_deref());
        converse(&mut new, &mut *rebuilding).map_err(|bad| bad.to_string())?;
        drop(rebuilding);
        self.wire = new;
        self.login = login;
        Ok(())
    }

    fn transfer(&self) -> Box<dyn SessionTransfer> {
        let parameters = self.startup.iter();
        let startup = StartupPacket {
            minor: 0,
            parameters: parameters
                .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
                .collect(),
        };
        Dialect::PostgreSql
            .session_transfer(&startup, Some(LoginMethod::Trust), &self.custom)
            .unwrap()
    }
}

fn wire(address: SocketAddr, startup: &[(&'static str, &'static str)]) -> (Wire, Parameters) {
    let mut wire = Wire::connect(address);
    let mut login = Parameters::default();
    for (name, value) in wire.start(startup).parameters {
        login.set(name.as_bytes(), value.as_bytes());
    }
    (wire, login)
}

/// Asks what the conversation wants to be asked, up to its end.
fn converse<T>(wire: &mut Wire, conversation: &mut dyn Conversation<T>) -> Result<T, BadAnswer> {
    let mut request = conversation.begin(TIMEOUT)?;
    loop {
        wire.send(&request.bytes);
        let mut answer = Answer::new(request.ready_for_queries, MAX_ANSWER_BYTES);
        loop {
            let message = wire.receive();
            let frame = Frame::new(message.tag, &message.body);
            if !frame.backend_tag().is_asynchronous() && answer.push(frame) {
                break;
            }
        }
        if answer.is_too_long() {
            return Err(BadAnswer::Obstacle("too long".to_owned()));
        }
        match conversation.answered(&answer, TIMEOUT)? {
            Turn::Ask(next) => request = next,
            Turn::Done(done) => return Ok(done),
        }
    }
}

pub(super) fn parse(name: &str, sql: &[u8], types: &[u32]) -> Vec<u8> {
    let mut body = [name.as_bytes(), b"\0", sql, b"\0"].concat();
    body.extend(u16::try_from(types.len()).unwrap().to_be_bytes());
    for oid in types {
        body.extend(oid.to_be_bytes());
    }
    frame(b'P', &body)
}
