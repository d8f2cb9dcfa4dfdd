//! A pod that goes and comes back under its sessions.

use crate::support::pods::Pods;
use crate::support::proxy::{CONTROL, Setup};

use super::{fates, hold_all, wait_finished};

#[test]
fn a_pods_restart_is_a_pause() {
    let mut pods = Pods::start(1);
    let proxy = Setup::new(&pods.addresses())
        .top(CONTROL)
        .section("[migration]\nhold = \"60s\"")
        .start();
    let mut clients: Vec<_> = (0..5)
        .map(|number| {
            let mut client = proxy.login("maria");
            client.rows(&format!("SET application_name = 'client {number}'"));
            client
        })
        .collect();
    for _ in 0..3 {
        let position = proxy.log().position();
        hold_all(&proxy, 5);
        pods.kill("pod-0");
        pods.restart("pod-0");
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(
                client.value("SHOW application_name"),
                format!("client {number}")
            );
        }
        assert_eq!(fates(&wait_finished(&proxy, position)), [5, 0, 0]);
    }
}

#[test]
fn a_round_without_a_target_waits_for_one() {
    let mut pods = Pods::start(2);
    let setup = Setup::new(&pods.addresses()).section("[migration]\nhold = \"60s\"");
    let proxy = setup.clone().state(1, "draining").start();
    let mut client = proxy.login("maria");
    client.rows("SET application_name = 'still me'");
    pods.kill("pod-1");
    let position = proxy.log().position();
    proxy.reconfigure(&setup.clone().state(0, "draining").state(1, "active").text());
    proxy.wait_log(position, |line| line.is("session held"));
    pods.restart("pod-1");
    assert_eq!(client.value("SHOW application_name"), "still me");
    let round = proxy.wait_round(position);
    assert_eq!(round.only().line.get("to"), "pod-1");
}
