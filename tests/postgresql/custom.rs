//! Custom settings, whose names no server tells: they move with their session all the
//! same, where they are seen going by.

use super::cluster;
use super::mover::{Session, parse};
use super::rounds::login;
use crate::support::message::frame;
use crate::support::postgres::USER;
use crate::support::proxy::{Outcome, Proxy, Setup};

/// A proxy whose file names no such setting.
fn setup() -> Setup {
    Setup::new(&cluster().addresses())
        .top("dialect = \"postgresql\"")
        .section("[login]\nmethod = \"trust\"")
}

fn start() -> Proxy {
    setup().start()
}

/// Runs a statement with these parameters, in the extended protocol.
fn execute(session: &mut Session, name: &str, sql: &str, values: &[&str]) {
    let count = u16::try_from(values.len()).unwrap().to_be_bytes();
    let mut bind = [b"\0", name.as_bytes(), b"\0\0\0", &count].concat();
    for value in values {
        bind.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        bind.extend(value.as_bytes());
    }
    bind.extend(b"\0\0");
    let messages = [
        parse(name, sql.as_bytes(), &[]),
        frame(b'B', &bind),
        frame(b'E', b"\0\0\0\0\0"),
        frame(b'S', b""),
    ];
    session.wire.send(&messages.concat());
    let answer = session.wire.receive_through(b'Z');
    assert!(answer.iter().all(|message| message.tag != b'E'), "{sql}");
}

type Make = fn(&mut Session);

/// How a client makes such a setting, and the setting's name.
const MADE: [(&str, Make); 10] = [
    ("a.by_set", |session| session.run(&["SET a.by_set = 'x'"])),
    ("a.by_session", |session| {
        session.run(&["/* no */ set session A.By_Session to 'x'"])
    }),
    ("a.in_quotes", |session| {
        session.run(&["SET \"a.in_quotes\" = 'it''s \\ \"x\"'"])
    }),
    ("a.among_others", |session| {
        session.run(&["SELECT 1; SET -- no\n a . among_others = 'x'; SELECT 2"])
    }),
    ("a.by_call", |session| {
        session.run(&["SELECT set_config('a.by_call', 'x', false)"])
    }),
    // What is left of it is an empty text, not NULL.
    ("a.local", |session| {
        session.run(&["BEGIN", "SET LOCAL a.local = 'x'", "COMMIT"])
    }),
    ("a.by_parse", |session| {
        execute(session, "", "SET a.by_parse = 'x'", &[]);
    }),
    ("a.by_bind", |session| {
        let sql = "SELECT set_config($1, $2, false)";
        execute(session, "", sql, &["a.by_bind", "x"]);
    }),
    ("a.in_a_block", |session| {
        session.run(&["DO $$BEGIN PERFORM set_config('a.in_a_block', 'x', false); END$$"])
    }),
    ("a.in_a_long_text", |session| {
        let long = "x".repeat(100_000);
        let sql = format!("SELECT '{long}'; SET a.in_a_long_text = 'x'; SELECT '{long}'");
        session.run(&[&sql]);
    }),
];

fn ask(session: &mut Session, name: &str) -> String {
    let sql = format!("SELECT quote_nullable(current_setting('{name}', true))");
    session.wire.value(&sql)
}

#[test]
fn a_setting_that_was_seen_going_by_moves() {
    let proxy = start();
    let mut twin = Session::login(cluster().address(), USER);
    let mut sessions = MADE.map(|(name, make)| {
        let mut session = login(&proxy);
        make(&mut session);
        make(&mut twin);
        (name, session)
    });
    for _ in 0..2 {
        proxy.migrate().assert_all_moved(MADE.len() as u64);
        for (name, session) in &mut sessions {
            assert_eq!(ask(session, name), ask(&mut twin, name));
        }
    }
}

#[test]
fn a_name_that_another_session_used_is_enough() {
    let proxy = start();
    let mut admin = Session::login(cluster().address(), USER);
    admin.run(&[
        "CREATE OR REPLACE FUNCTION app.enter(text) RETURNS text LANGUAGE sql AS \
         $$ SELECT set_config('app.' || 'entered', $1, false) $$",
    ]);
    let mut other = login(&proxy);
    let mut session = login(&proxy);
    session.run(&["SELECT app.enter('me')"]);
    other.run(&["SET app.entered = 'somebody else'"]);
    proxy.migrate().assert_all_moved(2);
    assert_eq!(ask(&mut session, "app.entered"), "'me'");
    // From now on it is known of this session itself, and no other takes it away.
    let crowd = ["b", "c", "d"].map(|prefix| {
        let mut session = login(&proxy);
        let texts = (0..90).map(|number| format!("SET {prefix}.n{number} = 'x';"));
        session.run(&[&texts.collect::<String>()]);
        session
    });
    for _ in 0..2 {
        proxy.migrate().assert_all_moved(2 + crowd.len() as u64);
        assert_eq!(ask(&mut session, "app.entered"), "'me'");
    }
    let forgotten = "more names of custom settings are seen than are kept: \
                     list those that matter in custom_settings";
    let lines = proxy.log().since(0);
    let told = lines.iter().filter(|line| line.is(forgotten));
    assert_eq!(told.count(), 1);
}

#[test]
fn a_name_that_the_file_lists_needs_not_be_seen() {
    let setup = setup().top("custom_settings = [\"app.listed\"]");
    let proxy = setup.start();
    let mut session = login(&proxy);
    let set = "SELECT set_config('app' || '.listed', 'x', false)";
    session.run(&[set]);
    proxy.migrate().assert_all_moved(1);
    assert_eq!(ask(&mut session, "app.listed"), "'x'");
    let position = proxy.log().position();
    proxy.reconfigure(&setup.text().replace("app.listed", "app.other"));
    // Signals of two kinds have no order.
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    session.run(&["SELECT set_config('app' || '.other', 'y', false)"]);
    proxy.migrate().assert_all_moved(1);
    assert_eq!(ask(&mut session, "app.other"), "'y'");
}

#[test]
fn a_session_with_more_names_than_are_kept_stays() {
    let proxy = start();
    let mut session = login(&proxy);
    for number in 0..100 {
        session.run(&[&format!("SET many.n{number} = 'x'")]);
    }
    proxy.migrate().assert_all_moved(1);
    session.run(&["SET many.n100 = 'x'"]);
    let round = proxy.migrate();
    assert_eq!(round.only().outcome, Outcome::Recoverable);
    assert_eq!(round.only().reason(), "more than 100 custom settings");
    assert_eq!(ask(&mut session, "many.n100"), "'x'");
    assert_eq!(ask(&mut session, "many.n0"), "'x'");
}
