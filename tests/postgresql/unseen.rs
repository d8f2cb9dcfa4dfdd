//! What of a session no question shows: the README's rows that begin with "cannot be
//! seen", each as they say.

use super::cluster;
use super::mover::Session;

/// What is done, what is asked then, and the answer of a session that stays where it is
/// and of one that was moved: a value, or the error's code.
const UNSEEN: [(&str, &[&str], &str, &str, &str); 11] = [
    (
        "currval",
        &["SELECT nextval('app.numbers')"],
        "SELECT currval('app.numbers') > 0",
        "t",
        "55000",
    ),
    (
        "lastval",
        &["SELECT nextval('app.numbers')"],
        "SELECT lastval() > 0",
        "t",
        "55000",
    ),
    (
        "what was set aside of a sequence",
        &[
            "DROP SEQUENCE IF EXISTS app.cached",
            "CREATE SEQUENCE app.cached CACHE 10",
            "SELECT nextval('app.cached')",
        ],
        "SELECT nextval('app.cached')",
        "2",
        "11",
    ),
    (
        "setseed",
        &[
            "SELECT setseed(0.25)",
            "CREATE OR REPLACE FUNCTION app.first_of_seed() RETURNS float LANGUAGE sql \
             RETURN random()",
        ],
        // The first number of this seed.
        "SELECT app.first_of_seed() = first FROM app.seed",
        "t",
        "f",
    ),
    (
        "a library by LOAD",
        &["LOAD 'auto_explain'"],
        "SELECT count(*) > 0 FROM pg_settings WHERE name LIKE 'auto\\_explain.%'",
        "t",
        "f",
    ),
    (
        "an unnamed dblink connection",
        &[
            "SELECT dblink_connect('host=' || current_setting('unix_socket_directories') \
           || ' port=' || current_setting('port') || ' user=postgres dbname=postgres')",
        ],
        "SELECT * FROM dblink('SELECT 7') AS t(a int)",
        "7",
        "08003",
    ),
    (
        "a plan's counters",
        &["PREPARE counted AS SELECT 1", "EXECUTE counted"],
        "SELECT generic_plans + custom_plans FROM pg_prepared_statements \
         WHERE name = 'counted'",
        "1",
        "0",
    ),
    (
        "pg_backend_pid",
        &[
            "DROP TABLE IF EXISTS app.process",
            "CREATE TABLE app.process AS SELECT pg_backend_pid() AS pid",
        ],
        "SELECT pid = pg_backend_pid() FROM app.process",
        "t",
        "f",
    ),
    (
        "other columns of a result",
        &[
            "DROP TABLE IF EXISTS app.wide",
            "CREATE TABLE app.wide AS SELECT 1 AS a",
            "PREPARE wide AS SELECT * FROM app.wide",
            "EXECUTE wide",
            "ALTER TABLE app.wide ADD COLUMN b int DEFAULT 2",
        ],
        "EXECUTE wide",
        "0A000",
        "1",
    ),
    (
        "how backslashes were read",
        &[
            "SET standard_conforming_strings = off",
            r"PREPARE escaped AS SELECT length('a\nb')",
            "SET standard_conforming_strings = on",
        ],
        "EXECUTE escaped",
        "3",
        "4",
    ),
    (
        "a custom setting of a name that went by nowhere",
        &["SELECT app.set_in_the_dark()"],
        "SELECT coalesce(current_setting('dark.side', true), 'lost')",
        "moon",
        "lost",
    ),
];

/// The first value of the answer, or the error's code.
fn answer(session: &mut Session, sql: &str) -> String {
    let messages = session.wire.query(sql);
    let error = messages.iter().find(|message| message.tag == b'E');
    if let Some(error) = error {
        return error.field('C');
    }
    let row = messages.iter().find(|message| message.tag == b'D');
    let value = row.and_then(|row| row.values().remove(0));
    value.unwrap_or_else(|| panic!("{sql}: {messages:?}"))
}

#[test]
fn what_cannot_be_seen_is_as_the_readme_says() {
    let [here, there] = cluster().addresses();
    let mut admin = Session::login(here, "postgres");
    admin.run(&[
        "CREATE FUNCTION app.set_in_the_dark() RETURNS text LANGUAGE sql AS \
         $$ SELECT set_config('dark.side', 'moon', false) $$",
        "SELECT setseed(0.25)",
        "CREATE TABLE app.seed AS SELECT random() AS first",
    ]);
    for (what, made, asked, stayed, moved) in UNSEEN {
        // What is asked may itself change what is answered next.
        for (moves, expected) in [(false, stayed), (true, moved)] {
            let mut session = Session::login(here, "postgres");
            session.run(made);
            if moves {
                assert_eq!(session.move_to(there), Ok(()), "{what}");
            }
            assert_eq!(
                answer(&mut session, asked),
                expected,
                "{what}, moved: {moves}"
            );
        }
    }
}
