//! Logins that end at the proxy: it asks the client for its password by SCRAM, and logs
//! in on the server by what the client's answer tells.
//!
//! A user that is not there is asked as others are, so that nobody learns which are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::own::log_in_watched;
use super::{LOGIN, LoginObserver, OwnAnswer, OwnLogin, Relayed, request, send};
use crate::error::{Error, Peer, Refusal, shown};
use crate::frame::{Frame, FrameReader};
use crate::message::{BackendTag, ErrorFields, FrontendTag, put_message};
use crate::scram::{BadClient, Credential, LibraryFailed, Offer, Secret};
use crate::socket::{Received, Wait};
use crate::stream::Stream;
use crate::tls::end_point_digest;

/// PostgreSQL's limit of a client's SCRAM message (auth-sasl.h,
/// `PG_MAX_SASL_MESSAGE_LENGTH`).
const SASL_MESSAGE_BYTES: usize = 1024;

/// From a wrong proof to the refusal.  It makes guessing slow where it is one
/// connection's, and hides for how long the proxy has calculated.
const REFUSAL_DELAY: Duration = Duration::from_millis(250);

/// What the proxy asks a client by.
pub(crate) struct Question {
    /// What is known of its password, or why nothing is, for the log.
    pub known: Result<Credential, &'static str>,
    /// Of the verifier, or of the one that there might be.
    pub salt: Vec<u8>,
    /// The same.
    pub iterations: u32,
}

/// A client that has proved to know its password.
pub(crate) struct Proven {
    /// By what the proxy proves the same to a server.
    pub secret: Secret,
    /// The last message of the exchange with it.
    last_message: Vec<u8>,
}

/// Asks a client for its password.  `question` is called when the client has begun to
/// answer; `greeting` goes in front of all.
///
/// # Errors
/// The client is not let in.
pub(crate) fn prove(
    client: &mut FrameReader,
    user: &[u8],
    greeting: Vec<u8>,
    deadline: Instant,
    observer: &mut dyn LoginObserver,
    question: impl FnOnce() -> Result<Question, Error>,
) -> Result<Proven, Error> {
    let certificate = client.stream().server_certificate();
    let offer = Offer::new(certificate.and_then(|it| end_point_digest(&it)));
    let mut to_client = greeting;
    put_request(&mut to_client, request::SASL, &offer.mechanisms());
    let response = ask(client, &to_client, deadline, observer)?;
    let begun = offer.begin(response.body()).map_err(told)?;
    let Question {
        known,
        salt,
        iterations,
    } = question()?;
    let challenged = begun.challenge(&salt, iterations).map_err(failed)?;
    let mut to_client = Vec::new();
    put_request(&mut to_client, request::SASL_CONTINUE, challenged.message());
    let response = ask(client, &to_client, deadline, observer)?;
    let answered_at = Instant::now();
    let answered = challenged.answered(response.body()).map_err(told)?;
    let proven = |credential: &Credential| {
        let verifier = match credential {
            Credential::Verifier(verifier) => Arc::clone(verifier),
            Credential::Password(password) => {
                password.verifier(&salt, iterations).map_err(failed)?
            }
        };
        let checked = answered.check(&verifier).map_err(failed)?;
        Ok::<_, Error>(checked.map(|(client_key, last_message)| Proven {
            secret: match credential {
                Credential::Verifier(_) => Secret::Keys {
                    verifier,
                    client_key,
                },
                Credential::Password(password) => Secret::Password(Arc::clone(password)),
            },
            last_message,
        }))
    };
    let cause = match known {
        Ok(credential) => match proven(&credential)? {
            Some(proven) => return Ok(proven),
            None => "wrong password",
        },
        Err(cause) => cause,
    };
    observer.refused();
    wait_out(client.stream(), deadline.min(answered_at + REFUSAL_DELAY));
    Err(Error::Password {
        user: shown(&String::from_utf8_lossy(user)),
        cause,
    })
}

/// Logs a client in on a server whose first answer is `first`, and lets it in.
///
/// # Errors
/// As [`super::relay`].
pub(crate) fn let_in(
    client: &FrameReader,
    user: &[u8],
    server: &mut FrameReader,
    first: &Frame,
    proven: &Proven,
    deadline: Instant,
    observer: &mut dyn LoginObserver,
) -> Result<Relayed, Error> {
    let own = OwnLogin {
        given: "",
        user,
        answer: OwnAnswer::Scram(&proven.secret),
    };
    let mut told = Vec::new();
    put_request(&mut told, request::SASL_FINAL, &proven.last_message);
    put_request(&mut told, request::OK, &[]);
    let mut refusal = None;
    let mut watch = |frame: &Frame| {
        match frame.backend_tag() {
            // Between the two legs nothing of these is common.
            BackendTag::AUTHENTICATION | BackendTag::NEGOTIATE_PROTOCOL_VERSION => {}
            BackendTag::BACKEND_KEY_DATA => {
                let key = observer.client_key(frame.body().len())?;
                put_message(&mut told, BackendTag::BACKEND_KEY_DATA.0, |out| {
                    out.extend_from_slice(&key);
                });
            }
            BackendTag::ERROR_RESPONSE => refusal = Some(frame.clone()),
            _ => told.extend_from_slice(frame.as_bytes()),
        }
        Ok(())
    };
    let logged_in = log_in_watched(server, first, &own, deadline, &mut watch);
    match (logged_in, refusal) {
        (Ok(login), _) => {
            observer.logged_in()?;
            send(client, &told, deadline)?;
            Ok(Relayed::LoggedIn(login))
        }
        (Err(_), Some(refusal)) => {
            send(client, refusal.as_bytes(), deadline)?;
            let fields = ErrorFields::parse(refusal.body());
            Ok(Relayed::Refused { fields, hint: None })
        }
        (Err(error), None) => Err(error),
    }
}

fn put_request(out: &mut Vec<u8>, code: i32, data: &[u8]) {
    put_message(out, BackendTag::AUTHENTICATION.0, |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(data);
    });
}

fn ask(
    client: &mut FrameReader,
    question: &[u8],
    deadline: Instant,
    observer: &mut dyn LoginObserver,
) -> Result<Frame, Error> {
    send(client, question, deadline)?;
    observer.client_answers(true);
    let answer = client.read_tagged(FrontendTag::PASSWORD, SASL_MESSAGE_BYTES, deadline, LOGIN);
    observer.client_answers(false);
    answer
}

/// Lets time pass for a client that is about to be refused, unless it leaves or its place
/// is needed.
fn wait_out(client: &Stream, until: Instant) {
    let mut ignored = Vec::with_capacity(SASL_MESSAGE_BYTES);
    while let Ok(Received::Bytes(_)) = client.read(&mut ignored, Wait::Until(until)) {
        ignored.clear();
        if Instant::now() >= until {
            return;
        }
    }
}

fn told(bad: BadClient) -> Error {
    match bad {
        BadClient::Malformed(_) => Error::protocol(Peer::Client, LOGIN, bad.to_string()),
        BadClient::Unsupported(what) => Refusal::ScramExtension(what).into(),
        BadClient::OtherMechanism => Refusal::NoScram.into(),
        BadClient::Downgraded => Refusal::ChannelBinding(
            "the client supports it and has not seen that sqlproxy offers it",
        )
        .into(),
        BadClient::OtherCertificate => {
            Refusal::ChannelBinding("the client has been shown another certificate").into()
        }
        BadClient::Library(failure) => failed(failure),
    }
}

fn failed(failure: LibraryFailed) -> Error {
    Error::io(Peer::Client, LOGIN, std::io::Error::other(failure))
}
