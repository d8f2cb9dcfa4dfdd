//! Where nothing happens nothing runs.

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
