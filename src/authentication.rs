//! Logins: relayed between client and server, the proxy's own ([`own`]), or ended at the
//! proxy and made by it anew ([`terminated`]).
//!
//! The relay does not know the methods; it knows which Authentication requests
//! want an answer of the client.  It is bounded by one deadline and by bytes,
//! never by a count of messages.

mod own;
mod terminated;

use std::borrow::Cow;
use std::time::Instant;

use crate::error::{Error, Peer, Refusal};
use crate::frame::{Frame, FrameReader};
use crate::message::{
    BackendTag, ErrorFields, FrontendTag, TransactionStatus, parameter_status, put_cstr,
    put_message, split_cstr,
};
use crate::parameters::Parameters;
use crate::tls::same_certificate;
pub(crate) use own::{OwnAnswer, OwnLogin, log_in};
pub(crate) use terminated::{Question, let_in, prove};

/// All that one side may send during a login.  A real one takes about 1 KiB;
/// notices and long parameters have room.
const LOGIN_BYTES: usize = 1024 * 1024;
/// PostgreSQL's limit of an authentication token (auth.c,
/// `PG_MAX_AUTH_TOKEN_LENGTH`).
const CLIENT_ANSWER_BYTES: usize = 65_535;

const LOGIN: &str = "logging in";

/// Codes of Authentication requests (protocol document, "Message Formats").
mod request {
    pub(super) const OK: i32 = 0;
    pub(super) const CLEARTEXT: i32 = 3;
    pub(super) const MD5: i32 = 5;
    pub(super) const GSS: i32 = 7;
    pub(super) const SSPI: i32 = 9;
    pub(super) const SASL: i32 = 10;
    pub(super) const SASL_CONTINUE: i32 = 11;
    pub(super) const SASL_FINAL: i32 = 12;
}

/// What a server told at login.
#[derive(Debug, Default)]
pub(crate) struct Login {
    /// Process id and secret, for CancelRequest; some servers send none.
    pub key: Option<Vec<u8>>,
    /// Its ParameterStatus values.
    pub parameters: Parameters,
}

/// How a client that took part in SCRAM was told of channel binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    /// The proxy shows the client the very certificate that the server shows,
    /// so a login bound to it is good on both legs.
    Relayed,
    /// SCRAM-SHA-256-PLUS was taken off the server's list.
    Withheld,
}

/// The hint for an operator whose clients are refused for their gs2 flag: a
/// client that could have bound the channel says so, and a server that could
/// have as well takes that for an attack (RFC 5802, section 6).
pub(crate) const WITHHELD_HINT: &str = "the client speaks TLS to sqlproxy and the server TLS as well, \
     so neither finds channel binding where it expects it: set channel_binding=disable at the \
     client, or give [client_tls] the server's own certificate, or set sslmode = \"disable\" in \
     [server_tls]";

/// How a client's login on its server ended.
#[derive(Debug)]
pub(crate) enum Relayed {
    /// The client has its ReadyForQuery.
    LoggedIn(Login),
    /// The server refused it; the client has been told in the server's words.
    Refused {
        /// Those words.
        fields: ErrorFields,
        /// For the log, where the proxy's own part may be the reason.
        hint: Option<&'static str>,
    },
}

/// What whoever relays a login has a word in.
pub(crate) trait LoginObserver {
    /// The proxy begins, or ends, to wait for an answer of the client.
    fn client_answers(&mut self, waiting: bool);

    /// The client is refused in a moment, and waits only for that.
    fn refused(&mut self);

    /// The cancel key that the client gets in place of the server's own, which has
    /// that many bytes.
    ///
    /// # Errors
    /// There is none, which ends the login.
    fn client_key(&mut self, bytes: usize) -> Result<Vec<u8>, Error>;

    /// The server has let the client in, which does not know it yet.
    ///
    /// # Errors
    /// It is refused all the same.
    fn logged_in(&mut self) -> Result<(), Error>;
}

/// Relays a login until ReadyForQuery.
///
/// `first` is the server's first message.
///
/// # Errors
/// Names the side that failed; the client has not been told.
pub(crate) fn relay(
    client: &mut FrameReader,
    server: &mut FrameReader,
    first: Frame,
    deadline: Instant,
    observer: &mut dyn LoginObserver,
) -> Result<Relayed, Error> {
    let mut login = Login::default();
    let mut budget = Budget(LOGIN_BYTES);
    let mut to_client = Vec::new();
    let binding = if same_certificate(client.stream(), server.stream()) {
        ChannelBinding::Relayed
    } else {
        ChannelBinding::Withheld
    };
    let mut withheld = false;
    let mut could_bind = false;
    let mut frame = first;
    loop {
        budget.take(Peer::Server, &frame, deadline)?;
        match frame.backend_tag() {
            BackendTag::BACKEND_KEY_DATA => {
                let key = observer.client_key(frame.body().len())?;
                put_message(&mut to_client, BackendTag::BACKEND_KEY_DATA.0, |out| {
                    out.extend_from_slice(&key);
                });
            }
            BackendTag::AUTHENTICATION => match without_channel_binding(&frame, binding) {
                Some(offer) => {
                    withheld = true;
                    to_client.extend_from_slice(&offer);
                }
                None => to_client.extend_from_slice(frame.as_bytes()),
            },
            _ => to_client.extend_from_slice(frame.as_bytes()),
        }
        match step(&frame, &mut login)? {
            Step::Continue => {}
            Step::ClientAnswers => {
                send(client, &to_client, deadline)?;
                to_client.clear();
                observer.client_answers(true);
                let answer = client.read(CLIENT_ANSWER_BYTES, deadline, LOGIN)?;
                observer.client_answers(false);
                if FrontendTag(answer.tag) != FrontendTag::PASSWORD {
                    let what = format!(
                        "expected a password message, got {:?}",
                        char::from(answer.tag)
                    );
                    return Err(Error::protocol(Peer::Client, LOGIN, what));
                }
                budget.take(Peer::Client, &answer, deadline)?;
                could_bind |= withheld && says_it_could_bind(answer.body());
                send(server, answer.as_bytes(), deadline)?;
            }
            Step::Refused(fields) => {
                send(client, &to_client, deadline)?;
                let hint = could_bind.then_some(WITHHELD_HINT);
                return Ok(Relayed::Refused { fields, hint });
            }
            Step::Ready => {
                observer.logged_in()?;
                send(client, &to_client, deadline)?;
                return Ok(Relayed::LoggedIn(login));
            }
        }
        frame = server.read(LOGIN_BYTES, deadline, LOGIN)?;
    }
}

/// The server's list of SASL mechanisms without those that bind the channel;
/// `None` where the message is another or may stay as it is.
fn without_channel_binding(frame: &Frame, binding: ChannelBinding) -> Option<Vec<u8>> {
    const SASL: [u8; 4] = request::SASL.to_be_bytes();
    if binding == ChannelBinding::Relayed {
        return None;
    }
    let mut rest = frame.body().strip_prefix(&SASL)?;
    let mut offer = Vec::new();
    let mut found = false;
    put_message(&mut offer, BackendTag::AUTHENTICATION.0, |out| {
        out.extend_from_slice(&SASL);
        while let Some((mechanism, after)) = split_cstr(rest) {
            rest = after;
            if mechanism.ends_with(b"-PLUS") {
                found = true;
            } else {
                put_cstr(out, mechanism);
            }
        }
    });
    found.then_some(offer)
}

/// Whether a SASLInitialResponse carries the gs2 flag `y` (RFC 5802, section 7).
fn says_it_could_bind(body: &[u8]) -> bool {
    split_cstr(body).is_some_and(|(_, rest)| rest.get(4..).is_some_and(|r| r.starts_with(b"y,")))
}

enum Step {
    Continue,
    ClientAnswers,
    Refused(ErrorFields),
    Ready,
}

/// Takes what one of the server's messages tells into `login`, and says what
/// follows.
fn step(frame: &Frame, login: &mut Login) -> Result<Step, Error> {
    let out_of_place = |what: Cow<'static, str>| Err(Error::protocol(Peer::Server, LOGIN, what));
    match frame.backend_tag() {
        BackendTag::AUTHENTICATION => {
            let Some((code, _)) = frame.body().split_first_chunk::<4>() else {
                return out_of_place("an Authentication request without a code".into());
            };
            match i32::from_be_bytes(*code) {
                request::OK | request::SASL_FINAL => Ok(Step::Continue),
                request::CLEARTEXT | request::MD5 | request::SASL | request::SASL_CONTINUE => {
                    Ok(Step::ClientAnswers)
                }
                // With GSSContinue: bound to the host name that the client dialed, which is
                // the proxy's.
                request::GSS..=request::SSPI => Err(Refusal::GssApi.into()),
                code => out_of_place(format!("unknown Authentication request {code}").into()),
            }
        }
        BackendTag::PARAMETER_STATUS => {
            if let Some((name, value)) = parameter_status(frame.body()) {
                login.parameters.set(name, value);
            }
            Ok(Step::Continue)
        }
        BackendTag::BACKEND_KEY_DATA => {
            login.key = Some(frame.body().to_vec());
            Ok(Step::Continue)
        }
        BackendTag::NOTICE_RESPONSE | BackendTag::NEGOTIATE_PROTOCOL_VERSION => Ok(Step::Continue),
        BackendTag::ERROR_RESPONSE => Ok(Step::Refused(ErrorFields::parse(frame.body()))),
        BackendTag::READY_FOR_QUERY => match frame.body() {
            &[status] if TransactionStatus::from_byte(status) == Some(TransactionStatus::Idle) => {
                Ok(Step::Ready)
            }
            _ => out_of_place("ReadyForQuery that is not idle".into()),
        },
        BackendTag(tag) => out_of_place(format!("unexpected message {:?}", char::from(tag)).into()),
    }
}

/// Bytes a login may still take.
struct Budget(usize);

impl Budget {
    fn take(&mut self, peer: Peer, frame: &Frame, deadline: Instant) -> Result<(), Error> {
        // A peer that never stops sending is never waited for.
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                peer,
                operation: LOGIN,
            });
        }
        match self.0.checked_sub(frame.as_bytes().len()) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err(Error::protocol(
                peer,
                LOGIN,
                format!("more than {LOGIN_BYTES} bytes"),
            )),
        }
    }
}

fn send(to: &FrameReader, bytes: &[u8], deadline: Instant) -> Result<(), Error> {
    to.stream()
        .write_all(bytes, Some(deadline))
        .map_err(|source| Error::io(to.peer(), LOGIN, source))
}
