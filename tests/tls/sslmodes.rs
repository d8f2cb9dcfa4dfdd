//! libpq in front of the proxy, PostgreSQL with TLS behind it.

use super::certs::{authority, write_secret};
use super::rig::{PLAIN_INSIDE, Site, TLS_INSIDE, before_postgres, psql, secure};
use crate::support::message;
use crate::support::poll_kernel;
use crate::support::postgres::Cluster;
use crate::support::proxy::Setup;
use crate::support::wire::Wire;

const REFUSES_PLAIN: &str = "sqlproxy requires an encrypted connection (sslmode=require)";
const REFUSES_TLS: &str = "server does not support SSL, but SSL was required";

#[derive(Debug, Clone, Copy)]
enum Expected {
    Plain,
    Tls,
    Refused(&'static str),
}
use Expected::{Plain, Refused, Tls};

#[test]
fn libpq_gets_what_each_sslmode_asks_for() {
    let site = Site::new();
    let root = format!("sslrootcert={}", site.root.display());
    let foreign = site.files.cert("foreign.crt", &authority("foreign"));
    let foreign = format!("sslrootcert={}", foreign.display());
    // The certificate is for localhost.
    let verify_ca = format!("sslmode=verify-ca host=pods.example {root}");
    let verify_full = format!("sslmode=verify-full {root}");
    let wrong_name = format!("sslmode=verify-full host=pods.example {root}");
    let wrong_root = format!("sslmode=verify-ca {foreign}");
    let setup = before_postgres(&[secure().cluster.address()]);
    let proxies = [
        setup.start(),
        setup.clone().section(&site.client_tls("allow", "")).start(),
        setup.section(&site.client_tls("require", "")).start(),
    ];
    // Without [client_tls], with allow, with require.
    let cases: [(&str, [Expected; 3]); 8] = [
        ("sslmode=disable", [Plain, Plain, Refused(REFUSES_PLAIN)]),
        // Comes with TLS only where it was refused without.
        ("sslmode=allow", [Plain, Plain, Tls]),
        ("sslmode=prefer", [Plain, Tls, Tls]),
        ("sslmode=require", [Refused(REFUSES_TLS), Tls, Tls]),
        (&verify_ca, [Refused(REFUSES_TLS), Tls, Tls]),
        (&verify_full, [Refused(REFUSES_TLS), Tls, Tls]),
        (
            &wrong_root,
            [
                Refused(REFUSES_TLS),
                Refused("certificate verify failed"),
                Refused("certificate verify failed"),
            ],
        ),
        (
            &wrong_name,
            [
                Refused(REFUSES_TLS),
                Refused("does not match host name"),
                Refused("does not match host name"),
            ],
        ),
    ];
    for (options, expected) in cases {
        for (proxy, expected) in proxies.iter().zip(expected) {
            let came = psql(proxy, options);
            let context = format!("{options} should be {expected:?}: {came:?}");
            match expected {
                Plain | Tls => {
                    assert!(came.succeeded, "{context}");
                    assert_eq!(came.has_tls(), matches!(expected, Tls), "{context}");
                    // `prefer`, the default, found that the server speaks TLS.
                    assert!(came.output.contains(TLS_INSIDE), "{context}");
                }
                Refused(why) => {
                    assert!(!came.succeeded, "{context}");
                    assert!(came.errors.contains(why), "{context}");
                }
            }
        }
    }
}

#[test]
fn a_plain_client_hears_what_is_required() {
    let site = Site::new();
    let proxy = Setup::new(&[crate::support::closed_port()])
        .section(&site.client_tls("require", ""))
        .start();
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(
        message::VERSION_3_0,
        &[("user", "maria")],
    ));
    let error = client.expect_error("FATAL", "28000");
    assert_eq!(error.field('M'), REFUSES_PLAIN);
    client.expect_end();
    let line = proxy.wait_log(0, |line| line.is("connection refused"));
    assert_eq!(line.get("sqlstate"), "28000");
}

#[test]
fn libpq_needs_the_certificate_that_is_asked_for() {
    let site = Site::new();
    let clients = authority("clients' authority");
    let ca = site.files.cert("clients.crt", &clients);
    let proxy = before_postgres(&[secure().cluster.address()])
        .section(&site.client_tls("require", &format!("client_ca_file = \"{}\"", ca.display())))
        .start();
    let good = site.client_identity("good", &clients.issue("maria"));
    let stranger = site.client_identity("stranger", &authority("other").issue("maria"));
    let late = clients.issue_with("maria", super::certs::ec_key(), (-2, -1), false);
    let expired = site.client_identity("expired", &late);

    let came = psql(&proxy, &format!("sslmode=require {good}"));
    assert!(came.succeeded && came.has_tls(), "{came:?}");
    // psql's own words depend on whether its startup packet was faster than the
    // alert; the proxy's do not.
    for (options, reason) in [
        ("sslcert=/none", "peer did not return a certificate"),
        (stranger.as_str(), "unable to get local issuer certificate"),
        (expired.as_str(), "certificate has expired"),
    ] {
        let position = proxy.log().position();
        let came = psql(&proxy, &format!("sslmode=require {options}"));
        assert!(!came.succeeded, "{options}: {came:?}");
        let line = proxy.wait_log(position, |line| {
            line.is("connection closed before a session")
        });
        assert!(line.get("reason").contains(reason), "{}", line.raw);
    }
}

#[test]
fn a_server_that_begins_to_demand_tls_is_asked_again() {
    let certificate = authority("servers").issue("127.0.0.1");
    let cluster = Cluster::start(&[], |data| {
        let pem = certificate.cert.to_pem().unwrap();
        std::fs::write(data.join("server.crt"), pem).unwrap();
        let key = certificate.key.private_key_to_pem_pkcs8().unwrap();
        write_secret(&data.join("server.key"), &key);
        let rules = "host all postgres all trust\nhostssl all anna all trust\n";
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
    });
    let mut operator = cluster.client();
    operator.batch_execute("CREATE ROLE anna LOGIN").unwrap();
    let proxy = before_postgres(&[cluster.address()]).start();
    let refused = "no pg_hba.conf entry for host";
    let came = psql(&proxy, "user=anna");
    assert!(came.errors.contains(refused), "{came:?}");
    let came = psql(&proxy, "user=postgres");
    assert!(came.output.contains(PLAIN_INSIDE), "{came:?}");
    // Neither needs a restart, so nothing ends that would tell the proxy.
    operator.batch_execute("ALTER SYSTEM SET ssl = on").unwrap();
    operator.batch_execute("SELECT pg_reload_conf()").unwrap();
    poll_kernel(
        || {
            let row = cluster.client().query_one("SHOW ssl", &[]).unwrap();
            row.get::<_, String>(0) == "on"
        },
        || "it does not begin to speak TLS".to_owned(),
    );
    let came = psql(&proxy, "user=anna");
    assert!(came.output.contains(TLS_INSIDE), "{came:?}");
}
