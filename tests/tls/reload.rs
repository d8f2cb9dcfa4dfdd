//! Certificates as files: what SIGHUP and `--check-config` make of them.

use std::path::Path;

use openssl::ssl::SslVersion;
use rustix::process::Signal;
use tempfile::TempDir;

use super::certs::{Certificate, Files, authority};
use super::peer::careless_client;
use super::rig::{Site, TlsWire, secure, tls_connect, tls_login};
use crate::support::proxy::{Proxy, Setup, command};
use crate::support::server::Server;

const READABLE_KEY: &str =
    "private key may be read or written by others than its owner, expected mode 0600";

fn shown(client: &mut TlsWire) -> Vec<u8> {
    let certificate = client.stream_mut().ssl().peer_certificate();
    certificate.unwrap().to_der().unwrap()
}

/// What a new connection is shown.
fn shown_now(proxy: &Proxy) -> Vec<u8> {
    shown(&mut tls_connect(
        proxy.address(),
        &careless_client(SslVersion::TLS1_3),
    ))
}

fn install(site: &Site, certificate: &Certificate) -> Vec<u8> {
    site.files.cert("proxy.crt", certificate);
    site.files.key("proxy.key", certificate);
    certificate.cert.to_der().unwrap()
}

#[test]
fn new_sessions_see_the_new_certificate_and_live_ones_go_on() {
    let (server, site) = (Server::echoing(), Site::new());
    let proxy = Setup::new(&[server.address()])
        .section(&site.client_tls("require", ""))
        .start();
    let mut live = tls_login(proxy.address(), "maria");
    let old = shown(&mut live);
    let new = install(&site, &authority("next year's").issue("localhost"));
    // Files are read when that is asked for, not when they change.
    assert!(shown_now(&proxy) == old);
    proxy.signal(Signal::HUP);
    proxy.wait_log(0, |line| line.is("configuration reloaded"));
    assert!(shown_now(&proxy) == new);
    assert_eq!(live.value("SELECT 1"), "SELECT 1");
    assert_eq!(
        tls_login(proxy.address(), "maria").value("SELECT 2"),
        "SELECT 2"
    );
    assert_eq!(live.value("SELECT 3"), "SELECT 3");
}

#[test]
fn a_key_that_others_may_read_is_said() {
    use std::os::unix::fs::PermissionsExt;

    let (server, site) = (Server::echoing(), Site::new());
    let chmod = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&site.key, permissions).unwrap();
    };
    chmod(0o640);
    let proxy = Setup::new(&[server.address()])
        .section(&site.client_tls("allow", ""))
        .start();
    let said = |from: usize| -> Vec<String> {
        let lines = proxy.log().since(from);
        let about = lines.iter().filter(|line| line.is(READABLE_KEY));
        about
            .map(|line| format!("{} {}", line.get("file"), line.get("mode")))
            .collect()
    };
    let key = site.key.display();
    assert_eq!(said(0), [format!("{key} 0640")]);
    for (mode, told) in [(0o600, vec![]), (0o604, vec![format!("{key} 0604")])] {
        chmod(mode);
        let position = proxy.log().position();
        proxy.signal(Signal::HUP);
        proxy.wait_log(position, |line| line.is("configuration reloaded"));
        assert_eq!(said(position), told);
    }
}

#[test]
fn a_broken_file_keeps_the_old_certificate_and_is_named() {
    let (server, site) = (Server::echoing(), Site::new());
    let proxy = Setup::new(&[server.address()])
        .section(&site.client_tls("require", ""))
        .start();
    let mut live = tls_login(proxy.address(), "maria");
    let old = shown(&mut live);
    let intact = std::fs::read(&site.cert).unwrap();
    let other = authority("other").issue("localhost");
    let break_it: [(&str, &dyn Fn(), &Path); 4] = [
        (
            "cut short",
            &|| drop(site.files.write("proxy.crt", &intact[..intact.len() / 2])),
            &site.cert,
        ),
        (
            "gone",
            &|| std::fs::remove_file(&site.cert).unwrap(),
            &site.cert,
        ),
        // The certificate is new and its key is not: an update half done.
        (
            "of another key",
            &|| drop(site.files.cert("proxy.crt", &other)),
            &site.key,
        ),
        (
            "empty",
            &|| drop(site.files.write("proxy.key", "")),
            &site.key,
        ),
    ];
    for (how, break_it, file) in break_it {
        break_it();
        let position = proxy.log().position();
        proxy.signal(Signal::HUP);
        let line = proxy.wait_log(position, |line| line.is("reload failed, nothing changed"));
        assert_eq!(line.level, "ERROR");
        let reason = line.get("reason");
        assert!(
            reason.contains(file.to_str().unwrap()),
            "{how}: {}",
            line.raw
        );
        assert!(shown_now(&proxy) == old, "{how}");
        assert_eq!(live.value("SELECT 1"), "SELECT 1");
    }
    // And mended, it is taken.
    let new = install(&site, &other);
    let position = proxy.log().position();
    proxy.signal(Signal::HUP);
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    assert!(shown_now(&proxy) == new);
}

#[test]
fn the_servers_authority_is_read_again_as_well() {
    let files = Files::new();
    let ca = files.cert("ca.crt", &authority("not the server's"));
    let section = format!(
        "[server_tls]\nsslmode = \"verify-full\"\nca_file = \"{}\"",
        ca.display()
    );
    let proxy = super::rig::before_postgres(&[secure().cluster.address()])
        .section(&section)
        .start();
    let came = super::rig::psql(&proxy, "sslmode=disable");
    assert!(
        !came.succeeded && came.errors.contains("issuer certificate"),
        "{came:?}"
    );
    files.cert("ca.crt", &secure().authority);
    proxy.signal(Signal::HUP);
    proxy.wait_log(0, |line| line.is("configuration reloaded"));
    let came = super::rig::psql(&proxy, "sslmode=disable");
    assert!(came.succeeded, "{came:?}");
}

/// Runs the proxy over a file of that content until it ends.
fn run(section: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let directory = TempDir::new().unwrap();
    let text = Setup::new(&[crate::support::closed_port()])
        .section(section)
        .text();
    std::fs::write(directory.path().join("proxy.conf"), text).unwrap();
    let output = command()
        .current_dir(directory.path())
        .args(arguments)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_missing_or_broken_file_is_found_before_the_start() {
    let site = Site::new();
    let (good, missing) = (site.client_tls("allow", ""), "/nonexistent/file.pem");
    assert_eq!(run(&good, &["--check-config"]).0, Some(0));
    let broken = site
        .files
        .write("broken.pem", "-----BEGIN CERTIFICATE-----\nMII\n");
    let broken = broken.to_str().unwrap();
    let (cert, key) = (site.cert.to_str().unwrap(), site.key.to_str().unwrap());
    let ca = |file: &str| format!("[server_tls]\nsslmode = \"verify-ca\"\nca_file = \"{file}\"");
    for file in [missing, broken] {
        for section in [
            good.replace(cert, file),
            good.replace(key, file),
            site.client_tls("require", &format!("client_ca_file = \"{file}\"")),
            ca(file),
            format!("{}\ncert_file = \"{file}\"\nkey_file = \"{key}\"", ca(cert)),
            format!(
                "{}\ncert_file = \"{cert}\"\nkey_file = \"{file}\"",
                ca(cert)
            ),
        ] {
            for arguments in [&["--check-config"] as &[_], &[]] {
                let (code, errors) = run(&section, arguments);
                assert_eq!(code, Some(2), "{section}: {errors}");
                assert!(errors.contains(file), "{section}: {errors}");
                assert!(!errors.contains("listening"), "{errors}");
            }
        }
    }
}
