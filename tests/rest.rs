//! Where nothing happens nothing runs, and what wakes up interrupts nobody.

use crate::support::metrics::ADMIN;
use crate::support::proxy::Setup;
use crate::support::server::Server;

#[test]
fn every_thread_sleeps_while_nothing_happens() {
    let directory = tempfile::tempdir().unwrap();
    let control = format!(
        "control_socket = \"{}\"",
        directory.path().join("control").display()
    );
    for lines in ["", ADMIN, &control] {
        let server = Server::echoing();
        let proxy = Setup::new(&[server.address()]).top(lines).start();
        proxy.wait_asleep();
        let client = proxy.login("maria");
        proxy.wait_opened(&client);
        proxy.migrate().assert_all_moved(1);
        proxy.resources_at_rest(1);
        proxy.wait_asleep();
    }
}

#[test]
fn sessions_are_scheduled_as_batch_and_nothing_else_is() {
    let server = Server::echoing();
    let proxy = Setup::new(&[server.address()]).start();
    let client = proxy.login("maria");
    proxy.wait_opened(&client);
    proxy.resources_at_rest(1);
    let policies = proxy.scheduling_policies();
    let of = |name: &str| -> Vec<_> {
        let named = policies
            .iter()
            .filter(|(thread, _)| thread.starts_with(name));
        named.map(|(_, policy)| *policy).collect()
    };
    // sched(7): SCHED_OTHER is 0, SCHED_BATCH 3.
    for name in ["accept", "request-", "response-"] {
        assert_eq!(of(name), [3], "{name}: {policies:?}");
    }
    assert_eq!(of("signals"), [0], "{policies:?}");
}
