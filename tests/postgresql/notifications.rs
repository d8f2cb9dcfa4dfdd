//! Whom a notification names: the process that the client knows as its own.

use super::cluster;
use crate::support::message::Message;
use crate::support::postgres::USER;
use crate::support::proxy::Setup;
use crate::support::wire::Wire;

/// A session that listens, and the process id that it was told at its login.
fn listener(address: std::net::SocketAddr, channel: &str) -> (Wire, Vec<u8>) {
    let mut wire = Wire::connect(address);
    let greeting = wire.start(&[("user", USER), ("database", "postgres")]);
    wire.query(&format!("LISTEN {channel}"));
    (wire, greeting.key.unwrap().0[..4].to_vec())
}

/// The process id in the only notification of an answer, or of what comes next.
fn sender(messages: &[Message]) -> Vec<u8> {
    let mut notifications = messages.iter().filter(|message| message.tag == b'A');
    notifications.next().unwrap().body[..4].to_vec()
}

#[test]
fn a_notification_of_its_own_names_the_client_s_process() {
    let proxy = Setup::new(&cluster().addresses())
        .top("dialect = \"postgresql\"")
        .section("[login]\nmethod = \"trust\"")
        .patient()
        .start();
    let (mut own, own_id) = listener(proxy.address(), "whose");
    let (mut other, other_id) = listener(proxy.address(), "whose");
    proxy.wait_opened(&own);
    proxy.wait_opened(&other);
    assert_ne!(own_id, other_id);
    for _ in 0..3 {
        assert_eq!(sender(&own.query("NOTIFY whose, 'x'")), own_id);
        // To others it is another process: the server's own, which no client of
        // the proxy has been told.
        let heard = sender(&[other.expect(b'A')]);
        assert!(heard != own_id && heard != other_id, "{heard:?}");
        assert_eq!(sender(&other.query("NOTIFY whose, 'y'")), other_id);
        own.expect(b'A');
        proxy.migrate().assert_all_moved(2);
    }
}
