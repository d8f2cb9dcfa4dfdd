//! The proxy's own login on a session's new server.

use std::net::IpAddr;
use std::time::Instant;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use zeroize::Zeroizing;

use super::{Budget, LOGIN, LOGIN_BYTES, Login, Step, request, send, step};
use crate::error::{Error, Peer};
use crate::frame::{Frame, FrameReader};
use crate::message::{BackendTag, ErrorFields, FrontendTag, put_cstr, put_message, split_cstr};
use crate::scram::{
    BadServer, Binding, ClientExchange, Expected, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, Secret,
};
use crate::tls::end_point_digest;

/// What the proxy may answer when a server asks.
pub(crate) struct OwnLogin<'a> {
    /// What the server should have let it in by already, for the error.
    pub given: &'a str,
    /// From the startup packet.
    pub user: &'a [u8],
    /// What the proxy has to answer with.
    pub answer: OwnAnswer<'a>,
}

/// What the proxy has to answer a server's question with.
#[derive(Clone, Copy)]
pub(crate) enum OwnAnswer<'a> {
    /// Nothing.
    None,
    /// The user's password, by whichever method.
    Password(&'a str),
    /// Proofs for the user, by SCRAM alone: a server that asks for anything else, or for
    /// nothing, has not shown that it knows the user.
    Scram(&'a Secret),
}

/// A SCRAM exchange under way.
enum Exchange {
    None,
    Begun(Box<ScramSha256>),
    /// By proofs of the proxy's own making.
    Opened(Box<ClientExchange>),
    /// The server is to show this.
    Answered(Expected),
    /// The server has proved that it knows the password as well.
    Proved,
}

/// Logs in on a server whose first answer is `first`.
///
/// # Errors
/// The server's own refusal, that it asks for more than the proxy has, or that it does not
/// know the password that it asks for.
pub(crate) fn log_in(
    server: &mut FrameReader,
    first: &Frame,
    own: &OwnLogin<'_>,
    deadline: Instant,
) -> Result<Login, Error> {
    log_in_watched(server, first, own, deadline, &mut |_| Ok(()))
}

/// The same; `watch` sees each of the server's messages that the login goes on by, or ends
/// with.
///
/// # Errors
/// As [`log_in`], and those of `watch`.
pub(super) fn log_in_watched(
    server: &mut FrameReader,
    first: &Frame,
    own: &OwnLogin<'_>,
    deadline: Instant,
    watch: &mut dyn FnMut(&Frame) -> Result<(), Error>,
) -> Result<Login, Error> {
    let mut login = Login::default();
    let mut budget = Budget(LOGIN_BYTES);
    let mut exchange = Exchange::None;
    let mut frame = first.clone();
    loop {
        budget.take(Peer::Server, &frame, deadline)?;
        if frame.backend_tag() == BackendTag::AUTHENTICATION {
            exchange.check(&frame, own)?;
        }
        let step = step(&frame, &mut login)?;
        watch(&frame)?;
        match step {
            Step::Continue => {}
            Step::ClientAnswers => {
                let answer = exchange.answer(&frame, own, server)?;
                send(server, &answer, deadline)?;
            }
            Step::Refused(ErrorFields {
                sqlstate, message, ..
            }) => {
                return Err(Error::ServerRefused {
                    operation: "the login",
                    sqlstate,
                    message,
                });
            }
            Step::Ready => {
                exchange.check_end(own)?;
                return Ok(login);
            }
        }
        frame = server.read(LOGIN_BYTES, deadline, LOGIN)?;
    }
}

fn refused(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::protocol(Peer::Server, LOGIN, what)
}

/// Whether nobody on the way can read a password.
fn may_send_in_clear(server: &FrameReader) -> bool {
    let stream = server.stream();
    let is_loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    stream.is_encrypted()
        || stream
            .peer_address()
            .is_ok_and(|address| is_loopback(address.ip()))
}

fn code_of(frame: &Frame) -> Result<(i32, &[u8]), Error> {
    let parts = frame.body().split_first_chunk::<4>();
    parts
        .map(|(code, rest)| (i32::from_be_bytes(*code), rest))
        .ok_or_else(|| refused("an Authentication request without a code"))
}

/// What a server that asks for no SCRAM is told of, where the proxy has nothing else.
const NO_SCRAM: Error = Error::ServerPassword(
    "it asks for another method than SCRAM-SHA-256, by which alone the proxy knows the user",
);

impl Exchange {
    /// Looks at what a server says of itself.
    fn check(&mut self, frame: &Frame, own: &OwnLogin<'_>) -> Result<(), Error> {
        let (code, data) = code_of(frame)?;
        match (code, &mut *self) {
            (request::SASL_FINAL, Self::Begun(scram)) => {
                scram
                    .finish(data)
                    .map_err(|_| refused("it does not know the password"))?;
                *self = Self::Proved;
                Ok(())
            }
            (request::SASL_FINAL, Self::Answered(expected)) => {
                expected.check(data).map_err(told)?;
                *self = Self::Proved;
                Ok(())
            }
            (request::SASL_FINAL, _) => Err(early_end()),
            (request::OK, _) => self.check_end(own),
            _ => Ok(()),
        }
    }

    /// A server lets the user in.  Where it has begun a SCRAM exchange it may not do so
    /// before it has proved that it knows the password (RFC 5802, section 3).
    fn check_end(&self, own: &OwnLogin<'_>) -> Result<(), Error> {
        match (self, own.answer) {
            (Self::Proved, _) => Ok(()),
            (Self::None, OwnAnswer::None | OwnAnswer::Password(_)) => Ok(()),
            (Self::None, OwnAnswer::Scram(_)) => Err(Error::ServerPassword(
                "it lets the user in without SCRAM-SHA-256, and so has not shown which server it is",
            )),
            _ => Err(early_end()),
        }
    }

    /// The answer to a request that wants one.
    fn answer(
        &mut self,
        frame: &Frame,
        own: &OwnLogin<'_>,
        server: &FrameReader,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (code, data) = code_of(frame)?;
        let answer = match own.answer {
            OwnAnswer::None => {
                let given = own.given;
                return Err(refused(format!(
                    "it asks for a password although it was given {given}"
                )));
            }
            OwnAnswer::Password(password) => {
                self.answer_by_password((code, data), own.user, password, server)?
            }
            OwnAnswer::Scram(secret) => self.answer_by_proof((code, data), secret, server)?,
        };
        Ok(Zeroizing::new(answer))
    }

    fn answer_by_password(
        &mut self,
        (code, data): (i32, &[u8]),
        user: &[u8],
        password: &str,
        server: &FrameReader,
    ) -> Result<Vec<u8>, Error> {
        let mut answer = Vec::new();
        match (code, &mut *self) {
            (request::CLEARTEXT, _) if !may_send_in_clear(server) => {
                return Err(refused(
                    "it asks for a password in clear, without TLS and over a network",
                ));
            }
            (request::CLEARTEXT, _) => put_message(&mut answer, FrontendTag::PASSWORD.0, |out| {
                put_cstr(out, password.as_bytes());
            }),
            (request::MD5, _) => {
                let salt = data.first_chunk::<4>();
                let salt = salt.ok_or_else(|| refused("an MD5 request without a salt"))?;
                let hash = md5_hash(user, password.as_bytes(), *salt);
                put_message(&mut answer, FrontendTag::PASSWORD.0, |out| {
                    put_cstr(out, hash.as_bytes());
                });
            }
            (request::SASL, Self::None) => {
                if !offers(data, SCRAM_SHA_256) {
                    return Err(refused("it offers no SCRAM-SHA-256"));
                }
                let binding = ChannelBinding::unsupported();
                let scram = ScramSha256::new(password.as_bytes(), binding);
                put_initial_response(&mut answer, SCRAM_SHA_256, scram.message());
                *self = Self::Begun(Box::new(scram));
            }
            (request::SASL_CONTINUE, Self::Begun(scram)) => {
                scram
                    .update(data)
                    .map_err(|_| refused("a malformed SCRAM message"))?;
                put_message(&mut answer, FrontendTag::PASSWORD.0, |out| {
                    out.extend_from_slice(scram.message());
                });
            }
            _ => return Err(out_of_place(code)),
        }
        Ok(answer)
    }

    fn answer_by_proof(
        &mut self,
        (code, data): (i32, &[u8]),
        secret: &Secret,
        server: &FrameReader,
    ) -> Result<Vec<u8>, Error> {
        let mut answer = Vec::new();
        match (code, std::mem::replace(self, Self::None)) {
            (request::CLEARTEXT | request::MD5, Self::None) => return Err(NO_SCRAM),
            (request::SASL, Self::None) => {
                if !offers(data, SCRAM_SHA_256) {
                    return Err(NO_SCRAM);
                }
                let certificate = server.stream().server_certificate();
                let end_point = certificate.and_then(|it| end_point_digest(&it));
                let binding = Binding::new(offers(data, SCRAM_SHA_256_PLUS), end_point);
                let exchange = ClientExchange::new(binding).map_err(|bad| told(bad.into()))?;
                let message = exchange.first_message();
                put_initial_response(&mut answer, exchange.mechanism(), &message);
                *self = Self::Opened(Box::new(exchange));
            }
            (request::SASL_CONTINUE, Self::Opened(exchange)) => {
                let (message, expected) = exchange.answer(secret, data).map_err(told)?;
                put_message(&mut answer, FrontendTag::PASSWORD.0, |out| {
                    out.extend_from_slice(&message);
                });
                *self = Self::Answered(expected);
            }
            _ => return Err(out_of_place(code)),
        }
        Ok(answer)
    }
}

fn early_end() -> Error {
    refused("it ends a SCRAM exchange before its end")
}

fn out_of_place(code: i32) -> Error {
    refused(format!("Authentication request {code} out of place"))
}

/// What has become of an exchange by proofs.
fn told(bad: BadServer) -> Error {
    match bad {
        BadServer::OtherVerifier => Error::ServerPassword(
            "it holds another verifier of the user, by salt or iterations, or has no such user",
        ),
        bad => refused(bad.to_string()),
    }
}

fn put_initial_response(out: &mut Vec<u8>, mechanism: &str, message: &[u8]) {
    let length = i32::try_from(message.len()).unwrap_or(i32::MAX);
    put_message(out, FrontendTag::PASSWORD.0, |out| {
        put_cstr(out, mechanism.as_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(message);
    });
}

/// Whether `mechanism` is among the names of an AuthenticationSASL.
fn offers(mut rest: &[u8], mechanism: &str) -> bool {
    let names = std::iter::from_fn(|| {
        let (name, after) = split_cstr(rest)?;
        rest = after;
        (!name.is_empty()).then_some(name)
    });
    names.into_iter().any(|name| name == mechanism.as_bytes())
}
