//! SCRAM between libpq and PostgreSQL over each combination of plain and TLS.

use super::rig::{SCRAM_PASSWORD, SCRAM_USER, Site, before_postgres, psql, secure};
use crate::support::proxy::Proxy;

/// The certificate that the proxy shows.
#[derive(Debug, Clone, Copy)]
enum Shown {
    Own,
    Servers,
}

fn start(site: &Site, shown: Shown, server_mode: &str) -> Proxy {
    let server = secure();
    let client_tls = match shown {
        Shown::Own => site.client_tls("allow", ""),
        Shown::Servers => Site {
            cert: site.files.cert("server.crt", &server.certificate),
            key: site.files.key("server.key", &server.certificate),
            root: site.files.cert("server-root.crt", &server.authority),
            ..Site::new()
        }
        .client_tls("allow", ""),
    };
    before_postgres(&[server.cluster.address()])
        .section(&client_tls)
        .section(&format!("[server_tls]\nsslmode = \"{server_mode}\""))
        .start()
}

/// What the server says where a client could have bound the channel, the server
/// too, and the proxy between them took the offer away.
const DOWNGRADE: &str = "SCRAM channel binding negotiation error";

#[test]
fn scram_over_each_combination_of_legs() {
    let site = Site::new();
    let works = Ok(());
    // libpq's own refusals, before it has sent anything.
    let no_tls = Err("channel binding required, but SSL not in use");
    let no_plus = Err("channel binding is required, but server did not offer");
    // Client's sslmode, server leg, certificate; disable, prefer, require.
    let cases = [
        ("disable", "disable", Shown::Own, [works, works, no_tls]),
        ("disable", "require", Shown::Own, [works, works, no_tls]),
        ("require", "disable", Shown::Own, [works, works, no_plus]),
        (
            "require",
            "require",
            Shown::Own,
            [works, Err(DOWNGRADE), no_plus],
        ),
        // Nothing binds the plain legs, whoever's certificate it is.
        ("disable", "require", Shown::Servers, [works, works, no_tls]),
        (
            "require",
            "disable",
            Shown::Servers,
            [works, works, no_plus],
        ),
        ("require", "require", Shown::Servers, [works, works, works]),
    ];
    for (client, server, shown, expected) in cases {
        let proxy = start(&site, shown, server);
        for (binding, expected) in ["disable", "prefer", "require"].into_iter().zip(expected) {
            let position = proxy.log().position();
            let came = psql(
                &proxy,
                &format!(
                    "user={SCRAM_USER} password='{SCRAM_PASSWORD}' sslmode={client} \
                     channel_binding={binding}"
                ),
            );
            let context = format!(
                "{client} to {server}, {shown:?} certificate, channel_binding={binding}: {came:?}"
            );
            match expected {
                Ok(()) => assert!(came.succeeded, "{context}"),
                Err(why) => {
                    assert!(!came.succeeded && came.errors.contains(why), "{context}");
                }
            }
            if expected == Err(DOWNGRADE) {
                let hint = proxy.wait_log(position, |line| line.is("channel binding withheld"));
                assert_eq!(hint.level, "WARN");
                assert!(
                    hint.get("hint").contains("channel_binding=disable"),
                    "{}",
                    hint.raw
                );
                proxy.wait_log(position, |line| line.is("login refused by server"));
            }
        }
    }
}

#[test]
fn a_wrong_password_is_the_servers_to_refuse_over_tls_too() {
    let site = Site::new();
    let proxy = start(&site, Shown::Servers, "require");
    let came = psql(
        &proxy,
        &format!("user={SCRAM_USER} password=wrong sslmode=require"),
    );
    assert!(!came.succeeded);
    assert!(
        came.errors.contains("password authentication failed"),
        "{came:?}"
    );
    let line = proxy.wait_log(0, |line| line.is("login refused by server"));
    assert_eq!(line.get("sqlstate"), "28P01");
}
