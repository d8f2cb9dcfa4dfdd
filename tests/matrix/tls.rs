//! The same faults with TLS on both legs: they strike the socket below TLS, so a
//! server's end is a stream cut off, and a spoilt message arrives in good records.

use std::net::TcpStream;

use openssl::ssl::{SslStream, SslVersion};
use sqlpod::Fault;

use super::servers::{TIMEOUT, quick_faults, run_wave};
use super::{Guest, STEPS, Stage};
use crate::support::pods::Pods;
use crate::support::proxy::Proxy;
use crate::tls::certs::{Files, authority};
use crate::tls::peer::careless_client;
use crate::tls::rig::{Site, tls_connect};

fn stage(site: &Site, files: &Files) -> Stage {
    let inside = authority("pods' authority");
    let own = inside.issue("127.0.0.1");
    let (cert, key) = (files.cert("pod.crt", &own), files.key("pod.key", &own));
    let ca = files.cert("ca.crt", &inside);
    let pods = Pods::start_with(2, |config| config.tls(&cert, &key));
    let sections = format!(
        "{}\n[server_tls]\nsslmode = \"verify-full\"\nca_file = \"{}\"\n{TIMEOUT}",
        site.client_tls("allow", ""),
        ca.display()
    );
    Stage::new(pods, "", &sections)
}

fn arrive(proxy: &Proxy, user: String) -> Guest<SslStream<TcpStream>> {
    let client = careless_client(SslVersion::TLS1_3);
    let mut wire = tls_connect(proxy.address(), &client);
    wire.start(&[("user", &user), ("database", "defaultdb")]);
    let address = wire.stream_mut().get_ref().local_addr().unwrap();
    let own = address.to_string();
    proxy.wait_log(0, |line| {
        line.is("session opened") && line.get("client") == own
    });
    Guest::settle(user, wire, address)
}

#[test]
fn every_quick_fault_of_a_server_has_its_fate_over_tls_too() {
    let (site, files) = (Site::new(), Files::new());
    let stage = stage(&site, &files);
    let cells = STEPS.into_iter().flat_map(|step| {
        let faults = quick_faults(step).into_iter();
        faults.map(move |fault| (step, fault))
    });
    run_wave(&stage, cells.collect(), arrive);
    stage.assert_clean();
}

#[test]
fn every_stall_of_a_server_keeps_the_session_over_tls_too() {
    let (site, files) = (Site::new(), Files::new());
    let stage = stage(&site, &files);
    let cells = STEPS.into_iter().map(|step| (step, Fault::Stall)).collect();
    run_wave(&stage, cells, arrive);
    stage.assert_clean();
}
