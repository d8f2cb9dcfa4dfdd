//! The two conversations of a transfer: with the session's old server, and with
//! the new one, up to the proof that both sessions are the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::super::{
    Answer, BadAnswer, Conversation, Credentials, LoginMethod, MOST_OWN_NAMES, Request,
    SessionNames, SessionState, SessionTransfer, Turn,
};
use super::Step;
use super::batch::{BatchAnswer, BatchFailure};
use super::capture::{
    CaptureOptions, Extent, capture, is_worth_asking_again, is_worth_retrying, read_state,
};
use super::restore::{restore, restore_unnamed};
use super::state::State;
use super::target::{WrongTarget, check};
use crate::message::{FrontendTag, put_message};
use crate::parameters::Parameters;
use crate::startup::StartupPacket;

/// How often a batch is sent that its session's own statement_timeout or its client's late
/// cancel has cut short: at 1 ms hardly one of a hundred needs a second time.
const ATTEMPTS: usize = 10;

/// Between two looks at a server that has not replayed everything yet.
const BEHIND_INTERVAL: Duration = Duration::from_millis(5);
/// What is left of the transfer's time when it gives up on such a server: enough
/// to say so in time.
const BEHIND_RESERVE: Duration = Duration::from_millis(100);

const UNASKED: BadAnswer = BadAnswer::Malformed("an answer to nothing");

/// Moves sessions between servers that know nothing of it.
pub(in super::super) struct Transfer {
    custom_names: Arc<SessionNames>,
    login: LoginMethod,
}

impl Transfer {
    /// Asks the session for the custom settings of these names, and adds what
    /// it finds to them.
    pub(in super::super) fn new(custom_names: &Arc<SessionNames>, login: LoginMethod) -> Self {
        Self {
            custom_names: Arc::clone(custom_names),
            login,
        }
    }
}

impl SessionTransfer for Transfer {
    fn capture(
        &self,
        login: &Parameters,
        _unnamed: Option<&[u8]>,
    ) -> Box<dyn Conversation<Box<dyn SessionState>>> {
        Box::new(Question {
            server: Server::of(login),
            custom_names: Arc::clone(&self.custom_names),
            asked: BTreeSet::new(),
            login: self.login,
            pending: None,
            attempts: 0,
        })
    }
}

/// Whether a session is a WAL sender's (postmaster.c, `ProcessStartupPacket`): its
/// statements are other ones.
pub(in super::super) fn is_replication(startup: &StartupPacket) -> bool {
    let value = startup.get(b"replication").unwrap_or(b"off");
    // What PostgreSQL takes for false (bool.c, `parse_bool`).
    let is_false = [
        "0", "f", "fa", "fal", "fals", "false", "n", "no", "of", "off",
    ]
    .iter()
    .any(|word| value.eq_ignore_ascii_case(word.as_bytes()));
    !is_false
}

/// What has to be known of a server before it is asked.
struct Server {
    /// For the statements: unique, so that no client has it.
    name: String,
    major_version: u32,
}

impl Server {
    fn of(login: &Parameters) -> Self {
        // `15.8 (Debian 15.8-0+deb12u1)`, `17beta1`.
        let version = login.get(b"server_version").unwrap_or_default();
        let digits = version.iter().take_while(|byte| byte.is_ascii_digit());
        let number = digits.fold(0_u32, |number, digit| {
            number
                .saturating_mul(10)
                .saturating_add(u32::from(digit - b'0'))
        });
        Self {
            name: format!("sqlproxy_{}", Uuid::new_v4().simple()),
            major_version: number,
        }
    }

    fn capture(
        &self,
        extent: Extent,
        custom_names: &BTreeSet<Vec<u8>>,
        timeout: Duration,
        wait: Duration,
    ) -> (Request, BatchAnswer<Step>) {
        capture(&CaptureOptions {
            extent,
            name: &self.name,
            version: self.major_version,
            timeout,
            custom_names,
            wait,
        })
    }
}

/// The question for the state, asked of the old server.
struct Question {
    server: Server,
    custom_names: Arc<SessionNames>,
    /// Those it was asked for last.
    asked: BTreeSet<Vec<u8>>,
    login: LoginMethod,
    pending: Option<BatchAnswer<Step>>,
    attempts: usize,
}

impl Conversation<Box<dyn SessionState>> for Question {
    fn begin(&mut self, left: Duration) -> Result<Request, BadAnswer> {
        let Some(names) = self.custom_names.known() else {
            let what = format!("more than {MOST_OWN_NAMES} custom settings");
            return Err(BadAnswer::Obstacle(what));
        };
        self.asked = names;
        let (request, answer) =
            self.server
                .capture(Extent::Session, &self.asked, left, Duration::ZERO);
        self.pending = Some(answer);
        self.attempts += 1;
        Ok(request)
    }

    fn answered(
        &mut self,
        answer: &Answer,
        left: Duration,
    ) -> Result<Turn<Box<dyn SessionState>>, BadAnswer> {
        let pending = self.pending.take().ok_or(UNASKED)?;
        let state = match read_state(pending, &mut answer.frames()) {
            Err(failure) if is_worth_asking_again(&failure, left) && self.attempts < ATTEMPTS => {
                return self.begin(left).map(Turn::Ask);
            }
            state => state?,
        };
        if let Some(obstacle) = &state.obstacle {
            return Err(BadAnswer::Obstacle(obstacle.to_string()));
        }
        let mut custom_names = std::mem::take(&mut self.asked);
        for name in state.custom_names() {
            // Once restored, nothing but its name leads to an extension's setting.
            self.custom_names.learn(&name);
            custom_names.insert(name);
        }
        Ok(Turn::Done(Box::new(Captured {
            custom_names,
            login: self.login,
            state,
        })))
    }
}

/// What the old server told.
struct Captured {
    state: State,
    /// What the new server is asked for.
    custom_names: BTreeSet<Vec<u8>>,
    login: LoginMethod,
}

impl SessionState for Captured {
    fn state_bytes(&self) -> usize {
        self.state.bytes
    }

    fn prepare_login(&self, _startup: &mut StartupPacket) {}

    fn listens(&self) -> bool {
        !self.state.channels.is_empty()
    }

    fn login_by(&self) -> &'static str {
        self.login.lets_in_by()
    }

    fn credentials(&self) -> Credentials {
        self.login.credentials()
    }

    fn restore<'a>(
        &'a self,
        login: &Parameters,
        unnamed: Option<&'a [u8]>,
    ) -> Box<dyn Conversation<()> + 'a> {
        Box::new(Rebuilding {
            server: Server::of(login),
            captured: self,
            unnamed,
            login: None,
            pending: Pending::Nothing,
            attempts: 0,
        })
    }

    fn last_request(&self) -> Option<Request> {
        // Notifications that came before the new session listened: the server
        // sends them before it answers.
        (!self.state.channels.is_empty()).then(|| {
            let mut bytes = Vec::new();
            put_message(&mut bytes, FrontendTag::SYNC.0, |_| {});
            Request {
                bytes,
                ready_for_queries: 1,
            }
        })
    }
}

/// What the new server is asked at the moment.
enum Pending {
    Nothing,
    /// What the login has brought, and whether it is the right server.
    Login(BatchAnswer<Step>),
    /// All that remains, in one round trip.
    Pieces(Vec<(Piece, BatchAnswer<Step>)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// Everything but the unnamed statement.
    Restore,
    /// Asks for everything again.
    Verify,
    /// After everything that would take it away.
    Unnamed,
}

/// The session's rebuilding on the new server.
struct Rebuilding<'a> {
    server: Server,
    captured: &'a Captured,
    /// The client's last Parse without a name, as it came.
    unnamed: Option<&'a [u8]>,
    login: Option<State>,
    pending: Pending,
    attempts: usize,
}

impl Rebuilding<'_> {
    fn ask_login(&mut self, left: Duration, wait: Duration) -> Request {
        let names = &self.captured.custom_names;
        let (request, answer) = self.server.capture(Extent::Login, names, left, wait);
        self.pending = Pending::Login(answer);
        request
    }

    /// This piece and those behind it.
    fn ask_from(&mut self, first: Piece, left: Duration) -> Result<Request, BadAnswer> {
        self.attempts += 1;
        let (server, wanted) = (&self.server, &self.captured.state);
        let login = self.login.as_ref().ok_or(UNASKED)?;
        let mut all = Request {
            bytes: Vec::new(),
            ready_for_queries: 0,
        };
        let mut pieces = Vec::new();
        let mut add = |piece, (request, answer): (Request, _)| {
            all.bytes.extend(request.bytes);
            all.ready_for_queries += request.ready_for_queries;
            pieces.push((piece, answer));
        };
        if first == Piece::Restore {
            let batch = restore(&server.name, left, wanted, login)
                .map_err(|reason| BadAnswer::Obstacle(reason.to_string()))?;
            add(Piece::Restore, batch);
        }
        if first != Piece::Unnamed {
            let names = &self.captured.custom_names;
            let wait = Duration::ZERO;
            add(
                Piece::Verify,
                server.capture(Extent::Restored, names, left, wait),
            );
        }
        if let Some(frame) = self.unnamed {
            add(Piece::Unnamed, restore_unnamed(&server.name, frame));
        }
        self.pending = Pending::Pieces(pieces);
        Ok(all)
    }

    fn may_retry(&self, failure: &BatchFailure<Step>) -> bool {
        is_worth_retrying(failure) && self.attempts < ATTEMPTS
    }

    fn login_answered(
        &mut self,
        pending: BatchAnswer<Step>,
        answer: &Answer,
        left: Duration,
    ) -> Result<Request, BadAnswer> {
        let login = match read_state(pending, &mut answer.frames()) {
            Err(failure) if self.may_retry(&failure) => return self.begin(left),
            login => login?,
        };
        match check(&self.captured.state.place, &login.place, false) {
            Ok(()) => {
                self.login = Some(login);
                self.attempts = 0;
                self.ask_from(Piece::Restore, left)
            }
            Err(WrongTarget::Behind { .. }) if left > BEHIND_RESERVE => {
                self.attempts = 0;
                Ok(self.ask_login(left, BEHIND_INTERVAL))
            }
            Err(wrong) => Err(BadAnswer::WrongTarget(wrong.to_string())),
        }
    }

    fn pieces_answered(
        &mut self,
        pieces: Vec<(Piece, BatchAnswer<Step>)>,
        answer: &Answer,
        left: Duration,
    ) -> Result<Turn<()>, BadAnswer> {
        let mut frames = answer.frames();
        for (piece, pending) in pieces {
            let result = match piece {
                Piece::Restore | Piece::Unnamed => pending.read(&mut frames).map(|_| None),
                Piece::Verify => read_state(pending, &mut frames).map(Some),
            };
            match result {
                Err(failure) if self.may_retry(&failure) => {
                    return self.ask_from(piece, left).map(Turn::Ask);
                }
                Err(failure) => return Err(failure.into()),
                Ok(None) => {}
                Ok(Some(restored)) => {
                    if let Some(difference) = self.captured.state.difference(&restored) {
                        return Err(BadAnswer::Obstacle(difference.to_string()));
                    }
                }
            }
        }
        Ok(Turn::Done(()))
    }
}

impl Conversation<()> for Rebuilding<'_> {
    fn begin(&mut self, left: Duration) -> Result<Request, BadAnswer> {
        self.attempts += 1;
        Ok(self.ask_login(left, Duration::ZERO))
    }

    fn answered(&mut self, answer: &Answer, left: Duration) -> Result<Turn<()>, BadAnswer> {
        match std::mem::replace(&mut self.pending, Pending::Nothing) {
            Pending::Nothing => Err(UNASKED),
            Pending::Login(pending) => self.login_answered(pending, answer, left).map(Turn::Ask),
            Pending::Pieces(pieces) => self.pieces_answered(pieces, answer, left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_what_the_server_says_first() {
        for (said, major) in [
            ("15.8 (Debian 15.8-0+deb12u1)", 15),
            ("17beta1", 17),
            ("9.6.24", 9),
            ("", 0),
        ] {
            let mut login = Parameters::default();
            login.set(b"server_version", said.as_bytes());
            assert_eq!(Server::of(&login).major_version, major, "{said}");
        }
        assert_eq!(Server::of(&Parameters::default()).major_version, 0);
    }
}
