//! Logins that are bound to their TLS connections.

use openssl::hash::MessageDigest;
use openssl::ssl::SslVersion;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};

use super::user_line;
use crate::support::proxy::{Proxy, Setup};
use crate::support::scram::{ask, expect_request, initial_response, response};
use crate::support::wire::Wire;
use crate::tls::peer::careless_client;
use crate::tls::rig::{
    SCRAM_PASSWORD, SCRAM_USER, Site, TlsWire, before_postgres, psql, secure, tls_connect,
};

/// A proxy with TLS for its clients, towards the server as `sslmode` says.
fn setup(site: &Site, sslmode: &str) -> Setup {
    let server = secure();
    let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
    let row = server
        .cluster
        .client()
        .query_one(sql, &[&SCRAM_USER])
        .unwrap();
    let file = site.files.write("userlist.txt", "");
    crate::tls::certs::write_secret(&file, user_line(SCRAM_USER, row.get(0)).as_bytes());
    before_postgres(&server.cluster.addresses())
        .section(&site.client_tls("allow", ""))
        .section(&format!("[server_tls]\nsslmode = \"{sslmode}\""))
        .section(&format!(
            "[login]\nmethod = \"scram\"\nauth_file = \"{}\"",
            file.display()
        ))
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
