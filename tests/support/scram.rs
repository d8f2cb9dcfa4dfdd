//! A client's side of SCRAM, step by step.

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;

use super::message::{self, Message, VERSION_3_0, built};
use super::wire::{Channel, Wire};

/// A SASLInitialResponse.
pub(crate) fn initial_response(mechanism: &str, data: &[u8]) -> Vec<u8> {
    built(|buffer| frontend::sasl_initial_response(mechanism, data, buffer))
}

/// A SASLResponse.
pub(crate) fn response(data: &[u8]) -> Vec<u8> {
    built(|buffer| frontend::sasl_response(data, buffer))
}

/// The data of an Authentication request with that code.
pub(crate) fn expect_request<S: Channel>(wire: &mut Wire<S>, code: i32) -> Vec<u8> {
    let request = wire.expect(b'R');
    assert_eq!(request.body[..4], code.to_be_bytes(), "{request:?}");
    request.body[4..].to_vec()
}

/// Sends a startup packet; the mechanisms that are offered.
pub(crate) fn ask<S: Channel>(wire: &mut Wire<S>, user: &str) -> String {
    let parameters = [("user", user), ("database", "postgres")];
    wire.send(&message::startup(VERSION_3_0, &parameters));
    String::from_utf8(expect_request(wire, 10)).unwrap()
}

/// Answers the question for SCRAM; the server-first-message, and the answer to the proof.
fn exchange<S: Channel>(wire: &mut Wire<S>, password: &str) -> (String, Message) {
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    wire.send(&initial_response(SCRAM_SHA_256, scram.message()));
    let challenge = expect_request(wire, 11);
    scram.update(&challenge).unwrap();
    wire.send(&response(scram.message()));
    let answer = wire.receive();
    if answer.tag == b'R' {
        assert_eq!(answer.body[..4], 12_i32.to_be_bytes(), "{answer:?}");
        scram.finish(&answer.body[4..]).unwrap();
    }
    (String::from_utf8(challenge).unwrap(), answer)
}

/// A login up to the answer to its proof.
pub(crate) fn prove<S: Channel>(
    wire: &mut Wire<S>,
    user: &str,
    password: &str,
) -> (String, Message) {
    ask(wire, user);
    exchange(wire, password)
}

/// What remains of a login where the mechanisms have been offered.
pub(crate) fn answer<S: Channel>(wire: &mut Wire<S>, password: &str) {
    let (_, answer) = exchange(wire, password);
    assert_eq!(answer.tag as char, 'R', "{answer:?}");
    assert_eq!(expect_request(wire, 0), b"");
    wire.receive_greeting();
}

/// A whole login.
pub(crate) fn log_in<S: Channel>(wire: &mut Wire<S>, user: &str, password: &str) {
    ask(wire, user);
    answer(wire, password);
}
