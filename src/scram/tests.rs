//! Both sides against each other, against RFC 7677's example and against another
//! client; and what is no message of the protocol.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test says that something is wrong by panicking"
)]

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::password::scram_sha_256;
use proptest::prelude::*;

use super::client::{Binding, Expected};
use super::server::{Answered, Challenged};
use super::*;

const PASSWORD: &str = "pencil";
const SALT: &[u8] = b"0123456789abcdef";

fn verifier() -> Verifier {
    Verifier::derive(PASSWORD, SALT, 4096).unwrap()
}

fn password(text: &str) -> Secret {
    Secret::Password(std::sync::Arc::new(Password::new(text)))
}

/// A SASLInitialResponse.
fn response(mechanism: &str, message: &[u8]) -> Vec<u8> {
    let mut body = mechanism.as_bytes().to_vec();
    body.push(0);
    body.extend((message.len() as i32).to_be_bytes());
    body.extend(message);
    body
}

/// One whole exchange; what the server has learnt.
fn exchange(
    binding: Binding,
    offer: Offer,
    secret: &Secret,
    verifier: &Verifier,
) -> Result<Option<Secret>, BadClient> {
    let client = ClientExchange::new(binding).unwrap();
    let begun = offer.begin(&response(client.mechanism(), &client.first_message()))?;
    let challenged = begun
        .challenge(&verifier.salt, verifier.iterations)
        .unwrap();
    let (last, expected) = client.answer(secret, challenged.message()).unwrap();
    let Some((client_key, server_final)) = challenged.answered(&last)?.check(verifier)? else {
        return Ok(None);
    };
    assert_eq!(expected.check(&server_final), Ok(()));
    let lie = server_final.to_ascii_uppercase();
    assert!(expected.check(&lie).is_err());
    let verifier = std::sync::Arc::new(Verifier::derive(PASSWORD, SALT, 4096).unwrap());
    Ok(Some(Secret::Keys {
        verifier,
        client_key,
    }))
}

/// RFC 7677, section 3.
#[test]
fn the_rfcs_own_example() {
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let verifier = Verifier::derive(PASSWORD, &salt, 4096).unwrap();
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let auth_message = format!(
        "n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    );
    let answered = |proof: &[u8]| Answered {
        auth_message: auth_message.clone().into_bytes(),
        proof: decode_digest(proof).unwrap(),
    };
    let right = answered(b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    let (_, last) = right.check(&verifier).unwrap().unwrap();
    assert_eq!(last, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    let wrong = answered(b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVA=");
    assert!(wrong.check(&verifier).unwrap().is_none());
}

#[test]
fn what_a_proof_has_told_gives_proofs() {
    let bound = || Binding::EndPoint(b"digest".to_vec());
    let plus = || Offer::new(Some(b"digest".to_vec()));
    let verifier = verifier();
    let cases = [
        (Binding::Unable, Offer::new(None)),
        (Binding::Unable, plus()),
        (Binding::NotOffered, Offer::new(None)),
        (bound(), plus()),
    ];
    for (binding, offer) in cases {
        let known = exchange(binding, offer, &password(PASSWORD), &verifier);
        let known = known.unwrap().unwrap();
        // The same again, without the password.
        let again = exchange(bound(), plus(), &known, &verifier);
        assert!(again.unwrap().is_some());
    }
    let wrong = exchange(bound(), plus(), &password("pencils"), &verifier);
    assert!(wrong.unwrap().is_none());
    let elsewhere = Offer::new(Some(b"another".to_vec()));
    let moved = exchange(bound(), elsewhere, &password(PASSWORD), &verifier);
    assert_eq!(moved.err(), Some(BadClient::OtherCertificate));
    let stripped = exchange(Binding::NotOffered, plus(), &password(PASSWORD), &verifier);
    assert_eq!(stripped.err(), Some(BadClient::Downgraded));
}

#[test]
fn keys_of_another_verifier_give_no_proof() {
    let known = exchange(
        Binding::Unable,
        Offer::new(None),
        &password(PASSWORD),
        &verifier(),
    );
    let known = known.unwrap().unwrap();
    for (salt, iterations) in [(&b"another salt"[..], 4096), (SALT, 4097)] {
        let other = Verifier::derive(PASSWORD, salt, iterations).unwrap();
        let client = ClientExchange::new(Binding::Unable).unwrap();
        let first = response(client.mechanism(), &client.first_message());
        let begun = Offer::new(None).begin(&first).unwrap();
        let challenged = begun.challenge(&other.salt, other.iterations).unwrap();
        let answer = client.answer(&known, challenged.message());
        assert_eq!(answer.err(), Some(BadServer::OtherVerifier));
    }
}

/// Another's client and another's verifier, of passwords that SASLprep changes, takes as
/// they are, or does not take.
#[test]
fn another_client_and_its_verifier() {
    for text in [
        "pencil",
        "p\u{ad}encil",
        "ﬁ Ⅸ",
        "pass\u{a0}word",
        "\u{7}bell",
        "ä",
    ] {
        let verifier = Verifier::parse(&scram_sha_256(text.as_bytes())).unwrap();
        let derived = Verifier::derive(text, &verifier.salt, verifier.iterations).unwrap();
        assert!(derived == verifier, "{text:?}");
        let mut client = ScramSha256::new(
            text.as_bytes(),
            ChannelBinding::tls_server_end_point(b"cert".into()),
        );
        let first = response(SCRAM_SHA_256_PLUS, client.message());
        let begun = Offer::new(Some(b"cert".into())).begin(&first).unwrap();
        let challenged = begun
            .challenge(&verifier.salt, verifier.iterations)
            .unwrap();
        client.update(challenged.message()).unwrap();
        let answered = challenged.answered(client.message()).unwrap();
        let (_, last) = answered.check(&verifier).unwrap().unwrap();
        client.finish(&last).unwrap();
    }
}

#[test]
fn what_is_no_first_message() {
    use BadClient::{Malformed, OtherMechanism, Unsupported};
    let plain = |message: &str| response(SCRAM_SHA_256, message.as_bytes());
    let plus = |message: &str| response(SCRAM_SHA_256_PLUS, message.as_bytes());
    let mut short = plain("n,,n=,r=x");
    short.pop();
    let mut none = b"SCRAM-SHA-256\0".to_vec();
    none.extend((-1_i32).to_be_bytes());
    let table = [
        (b"".to_vec(), Malformed("no name of a mechanism")),
        (
            b"SCRAM-SHA-256".to_vec(),
            Malformed("no name of a mechanism"),
        ),
        (b"SCRAM-SHA-256\0".to_vec(), Malformed("no length")),
        (none, Malformed("its length is not the one it says")),
        (short, Malformed("its length is not the one it says")),
        // What an old driver sends.
        (b"open sesame\0".to_vec(), OtherMechanism),
        (response("SCRAM-SHA-1", b"n,,n=,r=x"), OtherMechanism),
        (plain(""), Malformed("no gs2 header")),
        (plain("n,"), Malformed("no gs2 header")),
        (plain("n,,n=,r=\0"), Malformed("a zero byte")),
        (plain("x,,n=,r=x"), Malformed("an unexpected gs2 flag")),
        (
            plain("p=tls-server-end-point,,n=,r=x"),
            Malformed("an unexpected gs2 flag"),
        ),
        (
            plus("n,,n=,r=x"),
            Malformed("channel binding chosen and not used"),
        ),
        (
            plus("y,,n=,r=x"),
            Malformed("channel binding chosen and not used"),
        ),
        (
            plus("p=tls-unique,,n=,r=x"),
            Malformed("an unknown type of channel binding"),
        ),
        (plain("y,,n=,r=x"), BadClient::Downgraded),
        (
            plain("n,a=root,n=,r=x"),
            Unsupported("an authorization identity in SCRAM is not supported"),
        ),
        (plain("n,b,n=,r=x"), Malformed("an unexpected gs2 header")),
        (
            plain("n,,m=x,n=,r=x"),
            Unsupported("a mandatory SCRAM extension is not supported"),
        ),
        (plain("n,,r=x"), Malformed("no user name")),
        (plain("n,,n="), Malformed("no user name")),
        (plain("n,,n=,x=r"), Malformed("no nonce")),
        (
            plain("n,,n=,r="),
            Malformed("a nonce that is not printable"),
        ),
        (
            plain("n,,n=,r=\u{7f}"),
            Malformed("a nonce that is not printable"),
        ),
        (
            plain("n,,n=,r=x,"),
            Malformed("an extension without name or value"),
        ),
        (
            plain("n,,n=,r=x,1=y"),
            Malformed("an extension without name or value"),
        ),
    ];
    for (body, expected) in table {
        let begun = Offer::new(Some(b"digest".to_vec())).begin(&body);
        assert_eq!(begun.err(), Some(expected), "{}", body.escape_ascii());
    }
    let good = Offer::new(None).begin(&plain("n,,n=somebody,r=x,e=extension"));
    assert!(good.is_ok());
    // Nothing to bind to, and so nothing has been lost.
    assert!(Offer::new(None).begin(&plain("y,,n=,r=x")).is_ok());
    let not_offered = Offer::new(None).begin(&plus("p=tls-server-end-point,,n=,r=x"));
    assert_eq!(not_offered.err(), Some(OtherMechanism));
}

fn challenged() -> Challenged {
    let first = response(SCRAM_SHA_256, b"n,,n=,r=client");
    let begun = Offer::new(None).begin(&first).unwrap();
    begun.challenge(SALT, 4096).unwrap()
}

/// Of the challenge.
fn nonce(challenged: &Challenged) -> String {
    let (nonce, _) = attribute(challenged.message(), b'r').unwrap();
    String::from_utf8(nonce.to_vec()).unwrap()
}

#[test]
fn what_is_no_final_message() {
    let proof = STANDARD.encode([7; DIGEST_BYTES]);
    let table = [
        ("", "no channel binding"),
        ("r=NONCE,p=PROOF", "no channel binding"),
        ("c=biws", "no channel binding"),
        ("c=eSws,r=NONCE,p=PROOF", "unexpected channel binding"),
        ("c=,r=NONCE,p=PROOF", "unexpected channel binding"),
        ("c=biws,r=NONCE", "no nonce"),
        ("c=biws,p=PROOF", "no nonce"),
        ("c=biws,r=client,p=PROOF", "another nonce"),
        ("c=biws,r=NONCEx,p=PROOF", "another nonce"),
        ("c=biws,r=NONCE,x=y", "no proof"),
        ("c=biws,r=NONCE,", "an extension without name or value"),
        (
            "c=biws,r=NONCE,pPROOF",
            "an extension without name or value",
        ),
        ("c=biws,r=NONCE,p=", "a proof that is none"),
        ("c=biws,r=NONCE,p=AAAA", "a proof that is none"),
        ("c=biws,r=NONCE,p=!PROOF", "a proof that is none"),
        ("c=biws,r=NONCE,p=PROOF,x=y", "bytes behind its proof"),
        ("c=biws,r=NONCE,p=PROOF\0", "a zero byte"),
    ];
    for (text, expected) in table {
        let challenged = challenged();
        let text = text
            .replace("NONCE", &nonce(&challenged))
            .replace("PROOF", &proof);
        let answered = challenged.answered(text.as_bytes());
        assert_eq!(
            answered.err(),
            Some(BadClient::Malformed(expected)),
            "{text}"
        );
    }
}

#[test]
fn what_is_no_challenge() {
    let secret = password(PASSWORD);
    let malformed = BadServer::Malformed;
    let table = [
        ("", malformed("no nonce")),
        ("m=x,r=NONCEx,s=c2FsdA==,i=4096", malformed("no nonce")),
        ("r=NONCEx", malformed("no nonce")),
        (
            "r=,s=c2FsdA==,i=4096",
            malformed("a nonce that is not printable"),
        ),
        ("r=NONCE,s=c2FsdA==,i=4096", malformed("another nonce")),
        ("r=other,s=c2FsdA==,i=4096", malformed("another nonce")),
        ("r=NONCEx,i=4096", malformed("no salt")),
        ("r=NONCEx,s=c2FsdA==", malformed("no salt")),
        ("r=NONCEx,s=!,i=4096", malformed("a salt that is none")),
        ("r=NONCEx,s=c2FsdA==,x=1", malformed("no iterations")),
        (
            "r=NONCEx,s=c2FsdA==,i=",
            malformed("iterations that are no number"),
        ),
        (
            "r=NONCEx,s=c2FsdA==,i=0",
            malformed("iterations that are no number"),
        ),
        (
            "r=NONCEx,s=c2FsdA==,i=+1",
            malformed("iterations that are no number"),
        ),
        (
            "r=NONCEx,s=c2FsdA==,i=4294967296",
            malformed("iterations that are no number"),
        ),
        (
            "r=NONCEx,s=c2FsdA==,i=1000001",
            BadServer::TooManyIterations,
        ),
    ];
    for (text, expected) in table {
        let client = ClientExchange::new(Binding::Unable).unwrap();
        let first = client.first_message();
        let (_, nonce) = std::str::from_utf8(&first)
            .unwrap()
            .rsplit_once('=')
            .unwrap();
        // Base64 ends with an equals sign, which is no part of an 18 byte nonce.
        let text = text.replace("NONCE", nonce);
        let answer = client.answer(&secret, text.as_bytes());
        assert_eq!(answer.err(), Some(expected), "{text}");
    }
}

#[test]
fn what_is_no_verifier() {
    let good = scram_sha_256(b"pencil");
    assert!(matches!(
        Credential::parse(&good),
        Ok(Credential::Verifier(_))
    ));
    let changed = |from: &str, to: &str| good.replacen(from, to, 1);
    for bad in [
        changed("$4096:", "$0:"),
        changed("$4096:", "$+4096:"),
        changed("$4096:", "$2147483648:"),
        changed("$4096:", "$"),
        changed("$4096:", "$4096:!"),
        good[..good.len() - 4].to_owned(),
        format!("{good}AAAA"),
        "SCRAM-SHA-256$4096:$a:b".to_owned(),
        "SCRAM-SHA-256$".to_owned(),
    ] {
        assert_eq!(
            Credential::parse(&bad),
            Err(BadCredential::Malformed),
            "{bad}"
        );
    }
    let md5 = "md5c4ca4238a0b923820dcc509a6f75849b";
    assert_eq!(Credential::parse(md5), Err(BadCredential::Md5));
    assert_eq!(Credential::parse(""), Err(BadCredential::Empty));
    for text in ["md5", "md5c4ca", "SCRAM-SHA-1$x", "open sesame"] {
        assert!(matches!(
            Credential::parse(text),
            Ok(Credential::Password(_))
        ));
    }
    let shown = format!(
        "{:?} {:?}",
        Credential::parse(&good),
        Credential::parse("sesame")
    );
    assert!(
        !shown.contains("sesame") && !shown.contains("4096"),
        "{shown}"
    );
}

/// A message with one piece of it replaced.
fn damaged(message: &[u8], at: usize, length: usize, by: &[u8]) -> Vec<u8> {
    let at = at % (message.len() + 1);
    let end = (at + length).min(message.len());
    [&message[..at], by, &message[end..]].concat()
}

proptest! {
    // As elsewhere: a case that it finds becomes a test.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = Offer::new(None).begin(&bytes);
        let _ = Offer::new(Some(vec![1])).begin(&response(SCRAM_SHA_256_PLUS, &bytes));
        let _ = challenged().answered(&bytes);
        let client = ClientExchange::new(Binding::Unable).unwrap();
        let _ = client.answer(&password(PASSWORD), &bytes);
        let _ = Expected(Key::default()).check(&bytes);
        let _ = Credential::parse(&String::from_utf8_lossy(&bytes));
    }

    /// Whatever is changed on the way: no proof holds but the one that was given.
    #[test]
    fn a_damaged_message_proves_nothing(
        which in 0..3, at: usize, length in 0..4_usize, by in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        // Few rounds: it is not the password that is to be guarded here.
        let verifier = Verifier::derive(PASSWORD, SALT, 1).unwrap();
        let client = ClientExchange::new(Binding::EndPoint(b"digest".to_vec())).unwrap();
        let pass = |message: &[u8], place: i32| match which == place {
            true => damaged(message, at, length, &by),
            false => message.to_vec(),
        };
        let sent = response(client.mechanism(), &client.first_message());
        let first = pass(&sent, 0);
        let mut same = first == sent;
        let Ok(begun) = Offer::new(Some(b"digest".to_vec())).begin(&first) else {
            return Ok(());
        };
        let challenged = begun.challenge(SALT, 1).unwrap();
        let challenge = pass(challenged.message(), 1);
        same &= challenge == challenged.message();
        let Ok((sent, _)) = client.answer(&password(PASSWORD), &challenge) else {
            return Ok(());
        };
        let last = pass(&sent, 2);
        same &= last == sent;
        let held = challenged
            .answered(&last)
            .is_ok_and(|answered| answered.check(&verifier).unwrap().is_some());
        prop_assert_eq!(held, same);
    }
}
