//! Logins that are bound to their TLS connections.

use std::net::TcpListener;

use openssl::hash::MessageDigest;
use openssl::ssl::SslVersion;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};

use super::user_line;
use crate::support::message::authentication;
use crate::support::proxy::{Proxy, Setup};
use crate::support::scram::{ask, expect_request, initial_response, response};
use crate::support::wire::Wire;
use crate::tls::certs::{authority, write_secret};
use crate::tls::peer::{careless_client, server};
use crate::tls::rig::{
    SCRAM_PASSWORD, SCRAM_USER, Site, TlsWire, before_postgres, psql, secure, tls_connect,
};

/// What the server holds.
fn verifier() -> String {
    let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
    let row = secure().cluster.client().query_one(sql, &[&SCRAM_USER]);
    row.unwrap().get(0)
}

/// `[login]` by a file.
fn login(site: &Site) -> String {
    let file = site.files.write("userlist.txt", "");
    write_secret(&file, user_line(SCRAM_USER, &verifier()).as_bytes());
    format!(
        "[login]\nmethod = \"scram\"\nauth_file = \"{}\"",
        file.display()
    )
}

/// A proxy with TLS for its clients, towards the server as `sslmode` says.
fn setup(site: &Site, sslmode: &str) -> Setup {
    before_postgres(&secure().cluster.addresses())
        .section(&site.client_tls("allow", ""))
        .section(&format!("[server_tls]\nsslmode = \"{sslmode}\""))
        .section(&login(site))
}

#[test]
fn libpq_binds_the_channel_where_there_is_one() {
    let site = Site::new();
    let no_tls = "channel binding required, but SSL not in use";
    for server in ["disable", "require"] {
        let proxy = setup(&site, server).start();
        for (client, binding, expected) in [
            ("disable", "disable", Ok(())),
            ("disable", "prefer", Ok(())),
            ("disable", "require", Err(no_tls)),
            ("require", "disable", Ok(())),
            ("require", "prefer", Ok(())),
            ("require", "require", Ok(())),
        ] {
            let came = psql(
                &proxy,
                &format!(
                    "user={SCRAM_USER} password='{SCRAM_PASSWORD}' sslmode={client} \
                     channel_binding={binding}"
                ),
            );
            let context = format!("{client} to {server}, {binding}: {came:?}");
            match expected {
                Ok(()) => assert!(came.succeeded, "{context}"),
                Err(why) => assert!(!came.succeeded && came.errors.contains(why), "{context}"),
            }
        }
        let came = psql(
            &proxy,
            &format!("user={SCRAM_USER} password=wrong sslmode=require channel_binding=require"),
        );
        assert!(!came.succeeded);
        let words = "password authentication failed for user \"scram\"";
        assert!(came.errors.contains(words), "{came:?}");
    }
}

fn tls(proxy: &Proxy) -> TlsWire {
    tls_connect(proxy.address(), &careless_client(SslVersion::TLS1_3))
}

/// Over TLS to the server the proxy binds its own proofs as well: `y` would be refused.
#[test]
fn a_bound_session_moves() {
    let site = Site::new();
    let proxy = setup(&site, "require").start();
    let mut wire = tls(&proxy);
    log_in_bound(&mut wire);
    proxy.wait_log(0, |line| line.is("session opened"));
    for _ in 0..3 {
        proxy.migrate().assert_all_moved(1);
        assert_eq!(wire.value("SELECT current_user"), SCRAM_USER);
    }
}

fn log_in_bound(wire: &mut TlsWire) {
    assert_eq!(
        ask(wire, SCRAM_USER),
        "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
    );
    let certificate = wire.stream_mut().ssl().peer_certificate().unwrap();
    let digest = certificate.digest(MessageDigest::sha256()).unwrap();
    let binding = ChannelBinding::tls_server_end_point(digest.to_vec());
    let mut scram = ScramSha256::new(SCRAM_PASSWORD.as_bytes(), binding);
    wire.send(&initial_response(SCRAM_SHA_256_PLUS, scram.message()));
    scram.update(&expect_request(wire, 11)).unwrap();
    wire.send(&response(scram.message()));
    scram.finish(&expect_request(wire, 12)).unwrap();
    expect_request(wire, 0);
    wire.receive_greeting();
}

/// Somebody has taken the offer away, or shows another certificate.
#[test]
fn a_downgrade_is_refused() {
    let site = Site::new();
    let proxy = setup(&site, "disable").start();
    let mut wire = tls(&proxy);
    ask(&mut wire, SCRAM_USER);
    let scram = ScramSha256::new(SCRAM_PASSWORD.as_bytes(), ChannelBinding::unrequested());
    assert!(scram.message().starts_with(b"y,,"));
    wire.send(&initial_response(SCRAM_SHA_256, scram.message()));
    let error = wire.expect_error("FATAL", "28000");
    assert_eq!(
        error.field('M'),
        "SCRAM channel binding negotiation error: the client supports it and has not seen that \
         sqlproxy offers it"
    );

    let mut wire = tls(&proxy);
    ask(&mut wire, SCRAM_USER);
    let binding = ChannelBinding::tls_server_end_point(vec![7; 32]);
    let mut scram = ScramSha256::new(SCRAM_PASSWORD.as_bytes(), binding);
    wire.send(&initial_response(SCRAM_SHA_256_PLUS, scram.message()));
    scram.update(&expect_request(&mut wire, 11)).unwrap();
    wire.send(&response(scram.message()));
    let error = wire.expect_error("FATAL", "28000");
    assert!(
        error
            .field('M')
            .ends_with("the client has been shown another certificate")
    );

    // In clear there is nothing to bind to, and `y` says no more than that.
    let mut wire = Wire::connect(proxy.address());
    assert_eq!(ask(&mut wire, SCRAM_USER), "SCRAM-SHA-256\0\0");
    let mut scram = ScramSha256::new(SCRAM_PASSWORD.as_bytes(), ChannelBinding::unrequested());
    wire.send(&initial_response(SCRAM_SHA_256, scram.message()));
    scram.update(&expect_request(&mut wire, 11)).unwrap();
    wire.send(&response(scram.message()));
    scram.finish(&expect_request(&mut wire, 12)).unwrap();
}

/// The proxy is a client as well, and looks for the same as libpq does.
#[test]
fn the_proxys_own_proof_is_bound_where_the_server_offers_it() {
    let site = Site::new();
    let own = authority("the server's").issue("127.0.0.1");
    let digest = own.cert.digest(MessageDigest::sha256()).unwrap();
    let bound = [b"p=tls-server-end-point,,", &digest[..]].concat();
    for (offered, mechanism, header) in [
        (
            "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
            SCRAM_SHA_256_PLUS,
            bound,
        ),
        ("SCRAM-SHA-256\0\0", SCRAM_SHA_256, b"y,,".to_vec()),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = before_postgres(&[listener.local_addr().unwrap()])
            .section(&site.client_tls("allow", ""))
            .section("[server_tls]\nsslmode = \"require\"")
            .section(&login(&site))
            .start();
        let client = std::thread::spawn({
            let address = proxy.address();
            move || {
                let mut wire = Wire::connect(address);
                ask(&mut wire, SCRAM_USER);
                let binding = ChannelBinding::unsupported();
                let mut scram = ScramSha256::new(SCRAM_PASSWORD.as_bytes(), binding);
                wire.send(&initial_response(SCRAM_SHA_256, scram.message()));
                scram.update(&expect_request(&mut wire, 11)).unwrap();
                wire.send(&response(scram.message()));
                wire.expect_error("FATAL", "08006");
            }
        });
        let (socket, _) = listener.accept().unwrap();
        let mut plain = Wire::over(socket);
        plain.receive_packet().unwrap();
        plain.send(b"S");
        let tls = server(&own, None).accept(plain.into_stream()).unwrap();
        let mut wire = Wire::over(tls);
        wire.receive_packet().unwrap();
        wire.send(&authentication(10, offered.as_bytes()));
        let first = wire.expect(b'p');
        let (chosen, rest) = first.body.split_at(mechanism.len());
        assert_eq!(chosen, mechanism.as_bytes());
        assert_eq!(rest[0], 0, "{first:?}");
        let text = std::str::from_utf8(&rest[5..]).unwrap();
        let (_, nonce) = text.rsplit_once("r=").unwrap();
        let held = verifier();
        let parts: Vec<_> = held.split(['$', ':']).collect();
        let challenge = format!("r={nonce}more,s={},i={}", parts[2], parts[1]);
        wire.send(&authentication(11, challenge.as_bytes()));
        let last = wire.expect(b'p');
        let expected = format!("c={},r=", openssl::base64::encode_block(&header));
        assert!(last.body.starts_with(expected.as_bytes()), "{last:?}");
        drop(wire);
        client.join().unwrap();
    }
}
