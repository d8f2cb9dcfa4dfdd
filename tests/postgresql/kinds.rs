//! Each kind of state, alone and all together, moved again and again beside a
//! twin that stays where it is: both answer alike.

use super::cluster;
use super::mover::Session;
use crate::support::message::{Message, frame};

/// How often each session is moved.
const MOVES: usize = 20;

type Make = fn(&mut Session);

/// Its name, what makes it, and what it is asked.
pub(super) type Kind = (&'static str, Make, &'static [&'static str]);

/// What a client may leave in its session, and what it then asks for.
const KINDS: [Kind; 16] = [
    ("nothing", |_| {}, &[]),
    (
        "settings",
        |session| {
            session.run(&[
                "SET work_mem = '7MB'",
                "SET DateStyle = 'German'",
                "SET IntervalStyle = 'iso_8601'",
                "SET TimeZone = 'Asia/Tokyo'",
                "SET bytea_output = 'escape'",
                "SET extra_float_digits = 0",
                "SET search_path = app, \"Odd schema\", \"$user\"",
            ]);
        },
        &[
            "SELECT '2020-03-04 05:06:07+00'::timestamptz, '1 day'::interval, '\\x00'::bytea",
            "SELECT balance FROM account ORDER BY id",
        ],
    ),
    (
        "settings that say what they say by default",
        |session| {
            session.run(&[
                "SET work_mem = '4MB'",
                "SET search_path = \"$user\", public",
            ])
        },
        &["SELECT source FROM pg_settings WHERE name = 'work_mem'"],
    ),
    (
        "an empty search_path",
        |session| session.run(&["SELECT set_config('search_path', '', false)"]),
        &[],
    ),
    (
        "a time zone that is an interval",
        |session| session.run(&["SET TIME ZONE INTERVAL '-03:30' HOUR TO MINUTE"]),
        &["SELECT '2020-03-04 05:06:07+00'::timestamptz"],
    ),
    (
        "how transactions begin",
        |session| {
            session.run(&["SET SESSION CHARACTERISTICS AS TRANSACTION \
                 ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE"]);
        },
        &[
            "SHOW transaction_isolation",
            "SHOW transaction_read_only",
            "SHOW transaction_deferrable",
        ],
    ),
    ("a role", |session| session.run(&["SET ROLE weak"]), &[]),
    (
        "a role that was lost",
        |session| session.run(&["SET ROLE helper", "RESET ROLE"]),
        &[],
    ),
    (
        "a session authorization and a role",
        |session| {
            session.run(&[
                "SET log_duration = on",
                "SET SESSION AUTHORIZATION weak",
                "SET ROLE helper",
            ])
        },
        &["RESET ROLE", "SELECT current_user"],
    ),
    (
        "custom settings",
        |session| {
            session.run(&[
                "SET app.tenant = 'it''s \\ \"7\"'",
                "SET plpgsql.check_asserts = off",
            ])
        },
        &[
            "SHOW app.tenant",
            "DO $$ BEGIN ASSERT false; END $$",
            "SHOW plpgsql.check_asserts",
        ],
    ),
    (
        "an extension's settings in use",
        |session| {
            session.run(&[
                "DO $$ BEGIN NULL; END $$",
                "SET plpgsql.extra_warnings = 'too_many_rows'",
            ])
        },
        &["SHOW plpgsql.extra_warnings"],
    ),
    (
        "statements by Parse",
        |session| {
            session.parse(
                "one",
                b"SELECT $1::int + balance FROM app.account WHERE id = $2",
                &[],
            );
            session.parse("two words \"'\\", b"SELECT $1", &[25]);
            session.parse("no text", b"", &[]);
            let mood = session.wire.value("SELECT 'app.mood'::regtype::oid");
            session.parse("mood", b"SELECT $1", &[mood.parse().unwrap()]);
            session.parse("a comment", b"-- no\nSELECT /* ' */ 1", &[]);
        },
        &[
            "EXECUTE one(1, 2)",
            "EXECUTE mood('glad')",
            "EXECUTE \"a comment\"",
        ],
    ),
    (
        "statements by PREPARE",
        |session| {
            session.run(&[
                "PREPARE plain AS SELECT 1",
                " /* a /* b */ */ prepare typed (int, text) as select $1, $2",
                "PREPARE untyped AS SELECT balance FROM app.account WHERE id = $1",
                "DO $$ BEGIN EXECUTE 'PREPARE inner_one AS SELECT 5'; END $$",
            ]);
        },
        &[
            "EXECUTE typed(1, 'a')",
            "EXECUTE untyped(2)",
            "EXECUTE inner_one",
        ],
    ),
    (
        "channels",
        |session| session.run(&["LISTEN a", "LISTEN \"Odd \"\" channel\"", "LISTEN \"日本\""]),
        &[],
    ),
    (
        "an encoding of its own",
        |session| {
            session.run(&[
                "SET search_path = \"日本\"",
                "PREPARE tables AS SELECT * FROM \"表\"",
            ]);
            session.run(&["SET client_encoding = 'SJIS'"]);
            // 表 is 0x95 0x5c in SJIS: its second byte is a backslash.
            session.parse("\u{3}", b"SELECT '\x95\x5c', id FROM \"\x95\x5c\"", &[]);
        },
        &["EXECUTE \"\u{3}\"", "SHOW client_encoding"],
    ),
    (
        "everything that takes the proxy's time away",
        |session| {
            session.run(&[
                "SET lock_timeout = '2ms'",
                "SET statement_timeout = '1ms'",
                "SET exit_on_error = off",
            ]);
        },
        &[],
    ),
];

/// What every client may ask; the first of them under the session's own times.
pub(super) const PROBES: [&str; 8] = [
    "SHOW statement_timeout",
    "SHOW lock_timeout",
    "SET statement_timeout = 0",
    "SELECT name, setting FROM pg_catalog.pg_settings \
     WHERE context OPERATOR(pg_catalog.=) ANY (ARRAY['user', 'superuser']) \
     AND name OPERATOR(pg_catalog.<>) 'statement_timeout' \
     AND NOT name OPERATOR(pg_catalog.~~) 'plpgsql.%' ORDER BY name",
    "SELECT name, statement, parameter_types, from_sql \
     FROM pg_catalog.pg_prepared_statements ORDER BY name",
    "SELECT c FROM pg_catalog.pg_listening_channels() AS c ORDER BY c",
    "SELECT pg_catalog.current_setting('app.tenant', true), \
     pg_catalog.current_setting('role'), current_user, session_user",
    "SELECT oid FROM pg_catalog.pg_class \
     WHERE relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()",
];

/// Makes two sessions alike, moves one, and asks both.
fn move_beside_a_twin(what: &str, kinds: &[Kind]) {
    let [here, there] = cluster().addresses();
    let mut twin = Session::login(here, "postgres");
    let mut moved = Session::login(here, "postgres");
    for (_, make, _) in kinds {
        make(&mut twin);
        make(&mut moved);
    }
    for number in 0..MOVES {
        let address = if number % 2 == 0 { there } else { here };
        moved
            .move_to(address)
            .unwrap_or_else(|reason| panic!("{what}, move {number}: {reason}"));
    }
    let own = kinds.iter().flat_map(|(_, _, probes)| probes.iter());
    for probe in PROBES.iter().chain(own) {
        assert_eq!(
            data(&mut moved, probe),
            data(&mut twin, probe),
            "{what}: {probe}"
        );
    }
}

/// An answer without what a server may tell at any time; asked for again where
/// the session's own statement_timeout of a millisecond cut it short.
pub(super) fn data(session: &mut Session, sql: &str) -> Vec<Message> {
    loop {
        let mut answer = session.wire.query(sql);
        answer.retain(|message| message.tag != b'S');
        let timed_out = |message: &Message| message.tag == b'E' && message.field('C') == "57014";
        if !answer.iter().any(timed_out) {
            return answer;
        }
    }
}

#[test]
fn each_kind_of_state_arrives_as_it_was() {
    for kind in &KINDS {
        move_beside_a_twin(kind.0, std::slice::from_ref(kind));
    }
}

#[test]
fn all_kinds_together_arrive_as_they_were() {
    move_beside_a_twin("all", &together());
}

/// All but those that would undo each other.
pub(super) fn together() -> Vec<Kind> {
    let alone = [
        "settings that say what they say by default",
        "an empty search_path",
    ];
    KINDS
        .into_iter()
        .filter(|(name, ..)| {
            !alone.contains(name)
                && !name.starts_with("a role")
                && !name.starts_with("how transactions")
        })
        .collect()
}

#[test]
fn the_unnamed_statement_survives_being_asked_and_is_parsed_on_arrival() {
    let [here, there] = cluster().addresses();
    let mut session = Session::login(here, "postgres");
    session.parse("", b"SELECT 'unnamed'", &[]);
    assert!(session.capture().is_ok());
    let execute = |session: &mut Session| {
        let bind = frame(b'B', b"\0\0\0\0\0\0\0\0");
        let run = frame(b'E', b"\0\0\0\0\0");
        session.wire.send(&[bind, run, frame(b'S', b"")].concat());
        session.wire.expect(b'2');
        assert_eq!(
            session.wire.expect(b'D').values(),
            [Some("unnamed".to_owned())]
        );
        session.wire.receive_through(b'Z');
    };
    execute(&mut session);
    session.move_to(there).unwrap();
    execute(&mut session);
}
