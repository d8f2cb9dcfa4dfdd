//! The same faults with TLS on both legs: they strike the socket below TLS, so an
//! end is a stream cut off, and a spoilt message arrives in good records.

use std::net::TcpStream;
use std::path::PathBuf;

use openssl::ssl::{SslStream, SslVersion};
use sqlpod::Fault;

use super::clients::{self, MISDEEDS, PATIENT, PATIENT_DIALS, TLS_MISDEEDS};
use super::logins::{self, Door};
use super::servers::{TIMEOUT, quick_faults, run_wave};
use super::{Guest, STEPS, Stage};
use crate::support::pods::Pods;
use crate::support::proxy::Proxy;
use crate::support::wire::Wire;
use crate::tls::certs::{Files, authority};
use crate::tls::peer::careless_client;
use crate::tls::rig::{Site, tls_connect};

/// What the pods and the proxy show, and whom they trust.
struct Town {
    site: Site,
    _files: Files,
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

impl Town {
    fn new() -> Self {
        let files = Files::new();
        let inside = authority("pods' authority");
        let own = inside.issue("127.0.0.1");
        Self {
            site: Site::new(),
            cert: files.cert("pod.crt", &own),
            key: files.key("pod.key", &own),
            ca: files.cert("ca.crt", &inside),
            _files: files,
        }
    }

    fn pods(&self) -> Pods {
        Pods::start_with(2, |config| config.tls(&self.cert, &self.key))
    }

    fn sections(&self) -> String {
        format!(
            "{}\n[server_tls]\nsslmode = \"verify-full\"\nca_file = \"{}\"",
            self.site.client_tls("allow", ""),
            self.ca.display()
        )
    }

    fn stage(&self, top: &str, migration: &str) -> Stage {
        let sections = format!("{}\n{migration}", self.sections());
        Stage::new(self.pods(), top, &sections)
    }

    fn door(&self, users: &[String]) -> Door<SslStream<TcpStream>> {
        let adapt = |config: sqlpod::Config| config.tls(&self.cert, &self.key);
        Door::new(users, adapt, &self.sections(), connect)
    }
}

fn connect(proxy: &Proxy) -> Wire<SslStream<TcpStream>> {
    tls_connect(proxy.address(), &careless_client(SslVersion::TLS1_3))
}

fn arrive(proxy: &Proxy, user: String) -> Guest<SslStream<TcpStream>> {
    let mut wire = connect(proxy);
    wire.start(&[("user", &user), ("database", "defaultdb")]);
    proxy.wait_log(0, |line| {
        line.is("session opened") && line.get("user") == user
    });
    Guest::settle(user, wire)
}

#[test]
fn every_quick_fault_of_a_server_has_its_fate_over_tls_too() {
    let town = Town::new();
    let stage = town.stage("", TIMEOUT);
    let cells = STEPS.into_iter().flat_map(|step| {
        let faults = quick_faults(step).into_iter();
        faults.map(move |fault| (step, fault))
    });
    run_wave(&stage, cells.collect(), arrive);
    stage.assert_clean();
}

#[test]
fn every_stall_of_a_server_keeps_the_session_over_tls_too() {
    let town = Town::new();
    let stage = town.stage("", TIMEOUT);
    let cells = STEPS.into_iter().map(|step| (step, Fault::Stall)).collect();
    run_wave(&stage, cells, arrive);
    stage.assert_clean();
}

#[test]
fn no_fault_of_a_client_changes_how_its_transfer_ends_over_tls_either() {
    let town = Town::new();
    let stage = town.stage(PATIENT_DIALS, PATIENT);
    let misdeeds = [&MISDEEDS[..], &TLS_MISDEEDS[..]].concat();
    for step in STEPS {
        clients::run_wave(&stage, step, &misdeeds, arrive);
    }
    stage.assert_clean();
}

#[test]
fn every_fault_of_a_server_in_a_login_is_told_over_tls_too() {
    let town = Town::new();
    logins::check_servers(|users| town.door(users));
}

#[test]
fn no_fault_of_a_client_in_its_login_leaves_anything_behind_over_tls_either() {
    let town = Town::new();
    logins::check_clients(|users| town.door(users));
}
