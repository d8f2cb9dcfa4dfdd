//! The client's unnamed statement, which a transfer's own queries take away and
//! which has to be there again: where the session stays, and where it goes.

use crate::postgresql::cluster;
use crate::support::message::{Message, frame};
use crate::support::pods::Pods;
use crate::support::postgres::USER;
use crate::support::proxy::{Outcome, Proxy, Setup};
use crate::support::wire::Wire;

fn parse(sql: &str) -> Vec<u8> {
    let body = [b"\0".as_slice(), sql.as_bytes(), b"\0\0\0"].concat();
    frame(b'P', &body)
}

fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

/// Runs the unnamed statement by Bind and Execute alone.
fn run(wire: &mut Wire) -> Result<String, String> {
    let bind = frame(b'B', b"\0\0\0\0\0\0\0\0");
    let execute = frame(b'E', b"\0\0\0\0\0");
    wire.send(&[bind, execute, sync()].concat());
    let answer = wire.receive_through(b'Z');
    let value = |message: &Message| message.values().remove(0).unwrap();
    let row = answer.iter().find(|message| message.tag == b'D').map(value);
    let error = answer.iter().find(|message| message.tag == b'E');
    row.ok_or_else(|| error.map_or_else(String::new, |error| error.field('C')))
}

fn prepare(wire: &mut Wire, sql: &str) {
    wire.send(&[parse(sql), sync()].concat());
    wire.expect(b'1');
    wire.receive_through(b'Z');
}

/// Every way to have a statement, or none, and a round between each two.
fn converse(proxy: &Proxy, wire: &mut Wire, missing: &str, expected: Outcome) {
    let migrate = || {
        let round = proxy.migrate();
        let transfer = round.only();
        assert_eq!(transfer.outcome, expected, "{}", transfer.line.raw);
    };
    prepare(wire, "SELECT 'first'");
    for _ in 0..3 {
        migrate();
        assert_eq!(run(wire).as_deref(), Ok("first"));
    }
    // Another one, in two pieces and behind a failing message.
    let second = parse("SELECT 'second'");
    wire.send_split(&[second, sync()].concat(), 9);
    wire.receive_through(b'Z');
    migrate();
    assert_eq!(run(wire).as_deref(), Ok("second"));
    let skipped = parse("SELECT 'skipped'");
    let unknown = frame(b'D', b"Snosuchstatement\0");
    wire.send(&[unknown, skipped, sync()].concat());
    wire.expect(b'E');
    wire.receive_through(b'Z');
    migrate();
    assert_eq!(run(wire).as_deref(), Ok("second"));
    // What takes it away.
    wire.send(&[parse("SELEC nothing"), sync()].concat());
    wire.expect(b'E');
    wire.receive_through(b'Z');
    migrate();
    assert_eq!(run(wire), Err(missing.to_owned()));
    prepare(wire, "SELECT 'third'");
    assert_eq!(wire.value("SELECT 'simple'"), "simple");
    migrate();
    assert_eq!(run(wire), Err(missing.to_owned()));
}

#[test]
fn a_pods_session_keeps_it_where_it_stays_and_where_it_goes() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).patient().start();
    let mut moving = proxy.login("maria");
    converse(&proxy, &mut moving, "26000", Outcome::Success);
    drop(moving);
    proxy.wait_log(0, |line| line.is("session closed"));
    // Asked and refused: no token for root.
    let mut staying = proxy.login("root");
    converse(&proxy, &mut staying, "26000", Outcome::Recoverable);
}

fn postgresql() -> (Proxy, Wire) {
    let proxy = Setup::new(&cluster().addresses())
        .top("dialect = \"postgresql\"")
        .section("[login]\nmethod = \"trust\"")
        .patient()
        .start();
    let mut wire = Wire::connect(proxy.address());
    wire.start(&[("user", USER), ("database", "postgres")]);
    proxy.wait_opened(&wire);
    (proxy, wire)
}

#[test]
fn a_postgresql_session_keeps_it_where_it_goes() {
    let (proxy, mut wire) = postgresql();
    converse(&proxy, &mut wire, "26000", Outcome::Success);
}

/// As pg8000 copies: the Sync behind Execute is sent into the COPY, whose failure leaves
/// open whether it will be answered.
#[test]
fn one_behind_a_copy_that_failed_is_known() {
    let (proxy, mut wire) = postgresql();
    prepare(&mut wire, "COPY app.account FROM STDIN");
    let bind = frame(b'B', b"\0\0\0\0\0\0\0\0");
    let execute = frame(b'E', b"\0\0\0\0\0");
    wire.send(&[bind, execute, sync()].concat());
    wire.expect(b'2');
    wire.expect(b'G');
    let data = frame(b'd', b"no number\n");
    wire.send(&[data, frame(b'c', b""), sync()].concat());
    assert_eq!(wire.expect(b'E').field('C'), "22P02");
    wire.receive_through(b'Z');
    prepare(&mut wire, "SELECT 'behind'");
    proxy.migrate().assert_all_moved(1);
    assert_eq!(run(&mut wire).as_deref(), Ok("behind"));
}

#[test]
fn one_that_is_too_long_to_keep_holds_its_session_until_it_is_gone() {
    let pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses()).patient().start();
    let mut wire = proxy.login("maria");
    let long = format!("SELECT '{}'", "x".repeat(70_000));
    prepare(&mut wire, &long);
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    assert_eq!(
        round.only().reason(),
        "unnamed statement longer than 64 KiB"
    );
    assert_eq!(run(&mut wire).map(|value| value.len()), Ok(70_000));
    // Many drivers send one Parse after the other.
    prepare(&mut wire, "SELECT 'short'");
    proxy.migrate().assert_all_moved(1);
    assert_eq!(run(&mut wire).as_deref(), Ok("short"));
}
