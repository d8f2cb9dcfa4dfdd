//! Clients that send what no client should, and crowds of them.

use std::time::{Duration, Instant};

use super::{PASSWORD, Site, connect, who};
use crate::support::message::{VERSION_3_0, frame, password, query, startup};
use crate::support::proxy::Proxy;
use crate::support::scram::{ask, expect_request, initial_response, log_in, prove, response};
use crate::support::soon;
use crate::support::wire::Wire;

/// As in `limits.rs`: connections beyond `max_connections`.
const EXTRA_CONNECTIONS: usize = 64;

fn asked(proxy: &Proxy) -> Wire {
    let mut wire = Wire::connect(proxy.address());
    assert_eq!(ask(&mut wire, "anna"), "SCRAM-SHA-256\0\0");
    wire
}

fn plain(message: &str) -> Vec<u8> {
    initial_response("SCRAM-SHA-256", message.as_bytes())
}

#[test]
fn what_is_no_answer_is_refused_at_once() {
    let site = Site::new();
    // Whoever waited for the rest of it would wait for this.
    let proxy = site.by_file().top("handshake_timeout = \"10m\"").start();
    let long = plain(&format!("n,,n=,r={}", "x".repeat(2000)));
    let mut minus_one = b"SCRAM-SHA-256\0".to_vec();
    minus_one.extend((-1_i32).to_be_bytes());
    let table = [
        (
            "a second startup packet",
            startup(VERSION_3_0, &[("user", "anna")]),
            "08P01",
        ),
        ("a query", query("SELECT 1"), "08P01"),
        (
            "a message longer than all memory",
            b"p\x7f\xff\xff\xff".to_vec(),
            "08P01",
        ),
        ("a negative length", b"p\xff\xff\xff\xff".to_vec(), "08P01"),
        ("nothing", frame(b'p', b""), "08P01"),
        ("a message that is too long", long, "08P01"),
        ("no first message", frame(b'p', &minus_one), "08P01"),
        ("a password", password(PASSWORD), "28000"),
        (
            "an md5 hash",
            password("md5c4ca4238a0b923820dcc509a6f75849b"),
            "28000",
        ),
        (
            "another mechanism",
            initial_response("SCRAM-SHA-1", b"n,,n=,r=x"),
            "28000",
        ),
        (
            "channel binding without a channel",
            initial_response("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=x"),
            "28000",
        ),
        ("no gs2 header", plain("n=,r=x"), "08P01"),
        ("an identity", plain("n,a=postgres,n=,r=x"), "0A000"),
        ("an extension", plain("n,,m=x,n=,r=x"), "0A000"),
        ("no nonce", plain("n,,n="), "08P01"),
    ];
    for (what, bytes, code) in table {
        let mut wire = asked(&proxy);
        wire.send(&bytes);
        let error = wire.receive();
        assert_eq!(error.field('C'), code, "{what}: {error:?}");
        wire.expect_gone();
    }
    for (what, bytes, code) in [
        ("a query", query("SELECT 1"), "08P01"),
        (
            "a second startup packet",
            startup(VERSION_3_0, &[("user", "anna")]),
            "08P01",
        ),
        ("the first message again", plain("n,,n=,r=x"), "08P01"),
        ("nothing", response(b""), "08P01"),
        ("another nonce", response(b"c=biws,r=x,p=AAAA"), "08P01"),
        ("bytes", response(&[0, 255, 13]), "08P01"),
    ] {
        let mut wire = asked(&proxy);
        wire.send(&plain("n,,n=,r=x"));
        expect_request(&mut wire, 11);
        wire.send(&bytes);
        let error = wire.receive();
        assert_eq!(error.field('C'), code, "{what}: {error:?}");
        wire.expect_gone();
    }
    // Sent ahead: what follows a startup packet is the answer.
    let mut wire = Wire::connect(proxy.address());
    let packet = startup(VERSION_3_0, &[("user", "anna")]);
    wire.send(&[packet.clone(), packet].concat());
    wire.expect(b'R');
    wire.expect_error("FATAL", "08P01");
    assert!(!proxy.log().text().contains("sesame"));
    assert_eq!(who(&mut connect(&proxy, "anna")), "anna");
}

/// Guessing is slow, and as slow for a user that is not there.
#[test]
fn a_wrong_password_takes_its_time() {
    let site = Site::new();
    let proxy = site.by_file().start();
    for user in ["anna", "nobody"] {
        let mut wire = Wire::connect(proxy.address());
        let began = Instant::now();
        let (_, answer) = prove(&mut wire, user, "sesame");
        assert_eq!(answer.field('C'), "28P01");
        assert!(began.elapsed() >= Duration::from_millis(250));
    }
}

/// Whoever is refused anyway gives his place to whoever comes.
#[test]
fn a_crowd_of_wrong_passwords_keeps_nobody_out() {
    let site = Site::new();
    let proxy = site
        .by_file()
        .top("max_connections = 2\nhandshake_timeout = \"10m\"")
        .start();
    let mut crowd: Vec<_> = (0..EXTRA_CONNECTIONS + 2)
        .map(|_| {
            let mut wire = asked(&proxy);
            wire.send(&plain("n,,n=,r=x"));
            let challenge = expect_request(&mut wire, 11);
            let nonce = challenge.split(|byte| *byte == b',').next().unwrap();
            let proof = b",p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
            (wire, [b"c=biws,", nonce, proof].concat())
        })
        .collect();
    // All places are taken; then all of them are refused at once.
    for (wire, proof) in &mut crowd {
        wire.send(&response(proof));
    }
    let deadline = soon();
    let mut newcomer = loop {
        let mut wire = Wire::connect(proxy.address());
        let packet = startup(VERSION_3_0, &[("user", "anna"), ("database", "postgres")]);
        wire.send(&packet);
        let message = wire.receive();
        if message.tag == b'R' {
            break wire;
        }
        assert!(Instant::now() < deadline, "nobody is let in");
    };
    crate::support::scram::answer(&mut newcomer, PASSWORD);
    assert_eq!(newcomer.value("SELECT current_user"), "anna");
    for (wire, _) in &mut crowd {
        // Whoever made room as well: it is the truth.
        wire.expect_error("FATAL", "28P01");
    }
    let mut second = Wire::connect(proxy.address());
    log_in(&mut second, "bert", PASSWORD);
}
