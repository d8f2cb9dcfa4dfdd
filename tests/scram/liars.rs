//! Servers that do not know the user's verifier, and say that they do.

use super::{PASSWORD, Site, connect, refusal, user_line, who};
use crate::support::message::{authentication, error_response, ready};
use crate::support::proxy::{Outcome, Setup};
use crate::support::server::{Server, ServerEnd};

/// What a server says instead of the truth; `salt` is the verifier's.
type Lie = fn(&mut ServerEnd, salt: &str);

/// Begins an exchange as the right server would.
fn challenge(end: &mut ServerEnd, salt: &str) {
    end.wire.send(&authentication(10, b"SCRAM-SHA-256\0\0"));
    let first = end.next().unwrap();
    let text = String::from_utf8(first.body).unwrap();
    let (_, nonce) = text.rsplit_once("r=").unwrap();
    let message = format!("r={nonce}more,s={salt},i=4096");
    end.wire.send(&authentication(11, message.as_bytes()));
}

/// Says so and lets the proxy in, all at once: it may hang up in between.
fn say(end: &mut ServerEnd, code: i32, data: &[u8]) {
    let all = [
        authentication(code, data),
        authentication(0, &[]),
        ready(b'I'),
    ];
    end.wire.send(&all.concat());
}

/// Takes the proof.
fn take_proof(end: &mut ServerEnd, salt: &str) {
    challenge(end, salt);
    let last = end.next().unwrap();
    assert!(last.body.starts_with(b"c="), "{last:?}");
}

const WRONG_SIGNATURE: &[u8] = b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

const OTHER_METHOD: &str = "it asks for another method than SCRAM-SHA-256, by which alone the \
                            proxy knows the user";
const OTHER_VERIFIER: &str = "it holds another verifier of the user, by salt or iterations, or has \
                              no such user";
const LETS_IN: &str = "it lets the user in without SCRAM-SHA-256, and so has not shown which \
                       server it is";
const EARLY: &str = "it ends a SCRAM exchange before its end";
const SIGNATURE: &str = "its signature is wrong: it does not know the user's verifier";

/// Each with what it is told from, and whether the client is told of its password.
const LIES: [(&str, &str, Lie); 12] = [
    (LETS_IN, "28P01", |end, _| end.welcome()),
    (LETS_IN, "28P01", |end, _| end.wire.send(&ready(b'I'))),
    (OTHER_METHOD, "28P01", |end, _| {
        end.wire.send(&authentication(3, &[]))
    }),
    (OTHER_METHOD, "28P01", |end, _| {
        end.wire.send(&authentication(5, b"salt"))
    }),
    (OTHER_METHOD, "28P01", |end, _| {
        end.wire.send(&authentication(10, b"SCRAM-SHA-1\0\0"));
    }),
    (OTHER_VERIFIER, "28P01", |end, _| {
        challenge(end, "b3RoZXI=");
        // No proof is given to it.
        assert!(end.next().is_none());
    }),
    (EARLY, "08006", |end, salt| {
        take_proof(end, salt);
        end.welcome();
    }),
    (EARLY, "08006", |end, salt| {
        take_proof(end, salt);
        end.wire.send(&ready(b'I'));
    }),
    (EARLY, "08006", |end, _| {
        say(end, 12, WRONG_SIGNATURE);
    }),
    (SIGNATURE, "08006", |end, salt| {
        take_proof(end, salt);
        say(end, 12, WRONG_SIGNATURE);
    }),
    (
        "a malformed SCRAM message: no signature",
        "08006",
        |end, salt| {
            take_proof(end, salt);
            say(end, 12, b"e=other-error");
        },
    ),
    (
        "a malformed SCRAM message: another nonce",
        "08006",
        |end, _| {
            end.wire.send(&authentication(10, b"SCRAM-SHA-256\0\0"));
            let _ = end.next();
            end.wire
                .send(&authentication(11, b"r=other,s=c2FsdA==,i=4096"));
        },
    ),
];

#[test]
fn a_server_that_lies_gets_no_session() {
    let site = Site::new();
    let verifier = site.verifier("anna");
    let file = site.write("userlist.txt", &user_line("anna", &verifier));
    let salt = verifier.split(['$', ':']).nth(2).unwrap().to_owned();
    for (words, code, lie) in LIES {
        let salt = salt.clone();
        let liar = Server::start(move |mut end| lie(&mut end, &salt));
        // At its first login.
        let login = format!(
            "[login]\nmethod = \"scram\"\nauth_file = \"{}\"",
            file.display()
        );
        let alone = Setup::new(&[liar.address()])
            .top("dialect = \"postgresql\"")
            .section(&login);
        let proxy = alone.start();
        assert_eq!(refusal(&proxy, "anna", PASSWORD).0, code, "{words}");
        let line = proxy.wait_log(0, |line| line.is("connection refused"));
        assert!(line.get("reason").ends_with(words), "{}", line.raw);
        // In a move.
        let setup = Setup::new(&[site.cluster.address()])
            .top("dialect = \"postgresql\"")
            .section(&login)
            .backend("liar", liar.address(), "draining");
        let proxy = setup.start();
        let mut client = connect(&proxy, "anna");
        let position = proxy.log().position();
        proxy.reconfigure(&setup.clone().state(0, "draining").state(1, "active").text());
        let round = proxy.wait_round(position);
        assert_eq!(round.only().outcome, Outcome::Recoverable);
        let reason = round.only().reason();
        assert!(reason.ends_with(words), "{reason}");
        assert_eq!(who(&mut client), "anna");
        liar.join();
    }
}

/// A server has other reasons to refuse, and its own words for them.
#[test]
fn what_a_server_says_at_the_login_is_the_clients_to_hear() {
    let site = Site::new();
    let proxy = site.by_file().start();
    site.execute("ALTER ROLE anna CONNECTION LIMIT 0");
    let told = refusal(&proxy, "anna", PASSWORD);
    let words = "too many connections for role \"anna\"";
    assert_eq!(told, ("53300".to_owned(), words.to_owned()));
    let line = proxy.wait_log(0, |line| line.is("login refused by server"));
    assert_eq!(line.get("reason"), words);

    let file = site.write_users(&["bert"]);
    let liar = Server::start(|mut end| {
        let text = "no pg_hba.conf entry for host";
        end.wire.send(&error_response("FATAL", "28000", text));
    });
    let proxy = Setup::new(&[liar.address()])
        .top("dialect = \"postgresql\"")
        .section(&format!(
            "[login]\nmethod = \"scram\"\nauth_file = \"{}\"",
            file.display()
        ))
        .start();
    let told = refusal(&proxy, "bert", PASSWORD);
    assert_eq!(told.0, "28000");
}
