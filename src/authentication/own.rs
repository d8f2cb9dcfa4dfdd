//! The proxy's own login on a session's new server.

use std::net::IpAddr;
use std::time::Instant;

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use zeroize::Zeroizing;

use super::{Budget, LOGIN, LOGIN_BYTES, Login, Step, request, send, step};
use crate::error::{Error, Peer};
use crate::frame::{Frame, FrameReader};
use crate::message::{BackendTag, ErrorFields, FrontendTag, put_cstr, put_message, split_cstr};

/// What the proxy may answer when a server asks.
pub(crate) struct OwnLogin<'a> {
    /// What the server should have let it in by already, for the error.
    pub given: &'a str,
    /// From the startup packet.
    pub user: &'a [u8],
    /// Its password, where the proxy has one.
    pub password: Option<&'a str>,
}

/// A SCRAM exchange under way.
enum Exchange {
    None,
    Begun(Box<ScramSha256>),
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
    let mut login = Login::default();
    let mut budget = Budget(LOGIN_BYTES);
    let mut exchange = Exchange::None;
    let mut frame = first.clone();
    loop {
        budget.take(Peer::Server, &frame, deadline)?;
        if frame.backend_tag() == BackendTag::AUTHENTICATION {
            exchange.check(&frame)?;
        }
        match step(&frame, &mut login)? {
            Step::Continue => {}
            Step::ClientAnswers => {
                let Some(password) = own.password else {
                    let given = own.given;
                    return Err(refused(format!(
                        "it asks for a password although it was given {given}"
                    )));
                };
                let clear = may_send_in_clear(server);
                let answer = exchange.answer(&frame, own.user, password, clear)?;
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
            Step::Ready => return Ok(login),
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

impl Exchange {
    /// Looks at what a server says of itself: where it has begun a SCRAM exchange it lets
    /// nobody in before it has proved that it knows the password (RFC 5802, section 3).
    fn check(&mut self, frame: &Frame) -> Result<(), Error> {
        let (code, data) = code_of(frame)?;
        match (code, &mut *self) {
            (request::SASL_FINAL, Self::Begun(scram)) => {
                scram
                    .finish(data)
                    .map_err(|_| refused("it does not know the password"))?;
                *self = Self::Proved;
                Ok(())
            }
            (request::OK, Self::Begun(_)) | (request::SASL_FINAL, _) => {
                Err(refused("it ends a SCRAM exchange before its end"))
            }
            _ => Ok(()),
        }
    }

    /// The answer to a request that wants one.
    fn answer(
        &mut self,
        frame: &Frame,
        user: &[u8],
        password: &str,
        may_send_in_clear: bool,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (code, data) = code_of(frame)?;
        let mut answer = Vec::new();
        match (code, &mut *self) {
            (request::CLEARTEXT, _) if !may_send_in_clear => {
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
                if !mechanisms(data).any(|name| name == SCRAM_SHA_256.as_bytes()) {
                    return Err(refused("it offers no SCRAM-SHA-256"));
                }
                let binding = ChannelBinding::unsupported();
                let scram = ScramSha256::new(password.as_bytes(), binding);
                let first = scram.message();
                let length = i32::try_from(first.len()).unwrap_or(i32::MAX);
                put_message(&mut answer, FrontendTag::PASSWORD.0, |out| {
                    put_cstr(out, SCRAM_SHA_256.as_bytes());
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(first);
                });
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
            _ => {
                return Err(refused(format!(
                    "Authentication request {code} out of place"
                )));
            }
        }
        Ok(Zeroizing::new(answer))
    }
}

/// The names of an AuthenticationSASL.
fn mechanisms(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (name, after) = split_cstr(rest)?;
        rest = after;
        (!name.is_empty()).then_some(name)
    })
}
