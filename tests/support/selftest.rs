//! The scripted peers against each other, so that a fault of theirs is not
//! taken for one of the proxy.

use super::message::{self, BackendKey};
use super::postgres::{Cluster, USER};
use super::psql::Psql;
use super::server::{Server, transfer_key};
use super::wire::Wire;

#[test]
fn scripted_peers_understand_each_other() {
    let server = Server::echoing();
    let mut client = Wire::connect(server.address());
    let greeting = client.start(&[("user", "maria")]);
    assert_eq!(greeting.parameters["server_version"], "15.0");
    assert_eq!(client.value("SELECT 'hello'"), "SELECT 'hello'");
    let state = client.rows("SHOW TRANSFER STATE WITH 'k'");
    assert_eq!(state[0][0], None, "the error column");
    assert_eq!(state[0][3].as_deref(), Some("k"));
    client.send(&message::terminate());
    client.expect_end();

    let key = greeting.key.unwrap();
    let mut cancel = Wire::connect(server.address());
    cancel.send(&message::cancel_request(&key));
    assert_eq!(server.next_cancel(), key);
    assert_eq!(server.further_cancels(), Vec::<BackendKey>::new());
    server.join();
}

#[test]
fn split_messages_arrive_in_two_reads() {
    let server = Server::echoing();
    let mut client = Wire::login(server.address(), "maria");
    let query = message::query("SELECT 1");
    for at in 1..query.len() {
        client.send_split(&query, at);
        assert_eq!(client.receive_through(b'Z').len(), 4);
    }
    client.finish_sending();
    client.expect_end();
    server.join();
}

#[test]
fn a_server_may_reset_the_connection() {
    let server = Server::start(|mut end| {
        end.welcome();
        end.wire.reset();
    });
    let mut client = Wire::login(server.address(), "maria");
    client.expect_gone();
    server.join();
}

#[test]
fn only_a_state_query_has_a_transfer_key() {
    assert_eq!(transfer_key("SHOW TRANSFER STATE WITH 'k';"), Some("k"));
    assert_eq!(transfer_key("SHOW TRANSFER STATE"), None);
    assert_eq!(transfer_key("SELECT 1"), None);
}

#[test]
fn psql_answers_line_by_line() {
    let address = Cluster::shared().address();
    let conninfo = format!(
        "host={} port={} user={USER} dbname=postgres",
        address.ip(),
        address.port()
    );
    let mut psql = Psql::connect(&conninfo);
    assert_eq!(psql.run("SELECT 1;"), ["1"]);
    assert_eq!(psql.run("SET TimeZone = 'Asia/Tokyo';"), [""; 0]);
    assert_eq!(psql.run("SHOW TimeZone;"), ["Asia/Tokyo"]);
}
