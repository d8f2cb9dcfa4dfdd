//! Texts of SQL and the names in them, whole and in pieces.

use proptest::prelude::*;

use super::*;
use crate::message::put_cstr;

fn found(text: &str) -> Vec<Found> {
    let mut all = Vec::new();
    // A Query's text ends with a zero.
    look(None, format!("{text}\0").as_bytes(), &mut |found| {
        all.push(found)
    });
    all
}

#[test]
fn a_name_is_found_however_it_is_set() {
    for text in [
        "SET app.tenant = 'x'",
        "set App.Tenant to 1",
        "SET\n\tapp.tenant=default",
        "SET SESSION app.tenant = 'x'",
        "set local app.tenant TO'x'",
        "SET /* a /* b */ c */ LOCAL -- no\n app /**/ . tenant = 'x'",
        "SET app.\"tenant\" = 'x'",
        "SET \"app\".\"tenant\" = 'x'",
        "SET LOCAL \"app.tenant\" = 'x'",
        "SET\"app.tenant\"TO 'x'",
        "SELECT 1; SET app.tenant = 'x'; COMMIT",
        "BEGIN;SET LOCAL app.tenant = 'x'",
        "DO $$SET app.tenant = 1$$",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET app.tenant = 'x' AS ''",
        "SELECT set_config('app.tenant', 'x', false)",
        "select pg_catalog.SET_CONFIG ( /* no */ 'app.tenant' , 'x', true)",
        "SELECT \"set_config\"(E'app.tenant', 'x', false)",
        "SELECT set_config(setting_name => 'app.tenant', new_value => 'x', is_local => true)",
        "DO 'BEGIN PERFORM set_config(''app.tenant'', ''x'', false); END'",
        "SELECT 'a set of apples', set_config('app.tenant', 'x', true)",
        "UPDATE t SET a = 'x' WHERE b.c = 1; SET app.tenant = 'x'",
        "RESET ALL;SETSET;SET SET;SET app.tenant = 'x'",
    ] {
        let name = Found::Name(b"app.tenant".to_vec());
        let found = found(text);
        assert!(
            found.contains(&name) || found.contains(&Found::Name(b"App.Tenant".to_vec())),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn what_sets_nothing_of_that_kind_names_nothing() {
    let names = SessionNames::default();
    for text in [
        "SET work_mem = '1MB'",
        "SET TIME ZONE 'UTC'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET app.tenant FROM CURRENT",
        "RESET app.tenant",
        "SHOW app.tenant",
        "SELECT offset.a = 1",
        "SELECT myset_config('app.tenant', 1)",
        "SELECT a.b FROM reset WHERE a.b = 1",
        "SELECT set_config(a.b, 'x', false)",
        "SELECT set_config('app' || '.tenant', 'x', false)",
        "UPDATE t SET a = b.c",
        "SET local = a.b",
        "a set e.g. the one",
    ] {
        for found in found(text) {
            match found {
                Found::Name(name) => names.learn(&name),
                Found::Parameter(_) => panic!("{text}: {found:?}"),
            }
        }
        assert_eq!(names.known().map(|names| names.len()), Some(0), "{text}");
    }
}

#[test]
fn a_name_too_far_from_its_set_is_not_looked_for() {
    for (spaces, expected) in [(REACH - 7, 1), (REACH - 6, 0)] {
        let text = format!("SET{}a.b=", " ".repeat(spaces));
        assert_eq!(found(&text).len(), expected, "{spaces}");
    }
}

fn parse(statement: &str, text: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put_cstr(&mut body, statement.as_bytes());
    put_cstr(&mut body, text.as_bytes());
    body.extend(0u16.to_be_bytes());
    body
}

fn bind(statement: &str, formats: &[u16], values: &[Option<&str>]) -> Vec<u8> {
    let count = |count: usize| u16::try_from(count).unwrap().to_be_bytes();
    let mut body = b"portal\0".to_vec();
    put_cstr(&mut body, statement.as_bytes());
    body.extend(count(formats.len()));
    formats
        .iter()
        .for_each(|format| body.extend(format.to_be_bytes()));
    body.extend(count(values.len()));
    for value in values {
        match value {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                let length = i32::try_from(value.len()).unwrap();
                body.extend(length.to_be_bytes());
                body.extend(value.as_bytes());
            }
        }
    }
    body.extend(0u16.to_be_bytes());
    body
}

fn learned(act: impl FnOnce(&mut NameWatcher)) -> Vec<String> {
    let names = Arc::new(SessionNames::default());
    act(&mut NameWatcher::new(&names));
    let known = names.known().unwrap().into_iter();
    known.map(|name| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn a_bind_gives_the_name_that_its_statement_takes() {
    const TEXT: &str = "SELECT set_config($2, $1, true), set_config($3, $1, true)";
    let values = [Some("a.value"), Some("app.one"), Some("app.two")];
    let whole = |watcher: &mut NameWatcher, tag, body: &[u8]| {
        assert_eq!(watcher.message(tag, Piece::Whole(body)), Watch::Pass);
    };
    for formats in [&[][..], &[0], &[1], &[0, 1, 0]] {
        let learned = learned(|watcher| {
            whole(watcher, FrontendTag::PARSE, &parse("s", TEXT));
            whole(watcher, FrontendTag::PARSE, &parse("", "SELECT $1"));
            whole(watcher, FrontendTag::BIND, &bind("s", formats, &values));
        });
        assert_eq!(learned, ["app.one", "app.two"], "{formats:?}");
    }
    // Another statement has its name now, or none is there.
    for text in ["SELECT $1, $2, $3", ""] {
        let learned = learned(|watcher| {
            whole(watcher, FrontendTag::PARSE, &parse("s", TEXT));
            whole(watcher, FrontendTag::PARSE, &parse("s", text));
            whole(watcher, FrontendTag::BIND, &bind("s", &[], &values));
            whole(watcher, FrontendTag::BIND, &bind("other", &[], &values));
        });
        assert_eq!(learned, [] as [&str; 0]);
    }
    let learned = learned(|watcher| {
        whole(watcher, FrontendTag::PARSE, &parse("s", TEXT));
        let values = [None, None, Some("app.two")];
        whole(watcher, FrontendTag::BIND, &bind("s", &[], &values));
    });
    assert_eq!(learned, ["app.two"]);
}

#[test]
fn a_bind_is_waited_for_until_its_names_are_there() {
    let body = bind("s", &[1], &[Some("a.b"), Some("and more")]);
    let names_end = body.len() - "and more".len() - 4 - 2;
    for cut in 0..body.len() {
        let learned = learned(|watcher| {
            let text = parse("s", "SELECT set_config($1, $2, false)");
            watcher.message(FrontendTag::PARSE, Piece::Whole(&text));
            let watch = watcher.message(FrontendTag::BIND, Piece::Begun(&body[..cut]));
            let expected = if cut < names_end {
                Watch::Wait
            } else {
                Watch::Pass
            };
            assert_eq!(watch, expected, "{cut}");
        });
        assert_eq!(learned.len(), usize::from(cut >= names_end));
    }
}

#[test]
fn what_a_client_makes_up_stays_bounded() {
    let names = Arc::new(SessionNames::default());
    let mut watcher = NameWatcher::new(&names);
    for number in 0..1000 {
        let text = format!("SELECT set_config(${number}, 'x', false)");
        let statement = number.to_string();
        watcher.message(FrontendTag::PARSE, Piece::Whole(&parse(&statement, &text)));
        watcher.message(FrontendTag::PARSE, Piece::Begun(&parse("one", &text)));
    }
    assert_eq!(watcher.statements.0.len(), MOST_STATEMENTS);
    let many: String = (0..1000).map(|n| format!("set_config(${n},")).collect();
    watcher.message(FrontendTag::PARSE, Piece::Whole(&parse("many", &many)));
    let noted = watcher.statements.names_of("many".as_bytes()).unwrap();
    assert_eq!(noted.len(), MOST_PARAMETERS);
}

/// Pieces that names, and what is none, are made of.
fn texts() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "SET",
        "set",
        "LOCAL",
        "SESSION",
        " ",
        "\n",
        "/* x */",
        "-- y\n",
        "app",
        "a",
        ".",
        "\"",
        "=",
        "TO",
        "'",
        "''",
        "set_config",
        "(",
        "$1",
        "$23",
        ",",
        ";",
        "$$",
        "é",
        "SET app.x = 1",
        "set_config('app.y', '', true)",
        "set_config($4, ",
        "                                                                                ",
    ]);
    prop::collection::vec(pieces, 0..40).prop_map(|pieces| pieces.concat())
}

/// What is learned from a Parse that comes in pieces: names, and parameters that are some.
fn watched(body: &[u8], cuts: &[usize]) -> (Vec<String>, Vec<u16>) {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (body.len() + 1)).collect();
    cuts.sort_unstable();
    let mut parameters = Vec::new();
    let names = learned(|watcher| {
        let (mut from, mut watch) = (0, Watch::Wait);
        for cut in cuts.into_iter().chain([body.len()]) {
            let piece = &body[from..cut];
            if watch == Watch::Pass {
                watcher.more(piece);
            } else if cut == body.len() {
                watch = watcher.message(FrontendTag::PARSE, Piece::Whole(piece));
            } else {
                watch = watcher.message(FrontendTag::PARSE, Piece::Begun(piece));
            }
            if watch == Watch::Pass {
                from = cut;
            }
        }
        parameters.extend(watcher.statements.names_of(b"s").unwrap_or_default());
    });
    parameters.sort_unstable();
    (names, parameters)
}

/// Proptest found it once: all in one piece but for the end.
#[test]
fn a_piece_that_ends_within_a_name_changes_nothing() {
    let body = parse("s", "SET app.x = 1");
    assert_eq!(
        watched(&body, &[1_492_474_058_890_846_319]),
        watched(&body, &[])
    );
}

proptest! {
    // No file of its own at the top of the repository: a case that it finds becomes a test.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_pieces_that_a_text_comes_in_change_nothing(
        texts in prop::collection::vec(texts(), 1..8),
        cuts in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let body = parse("s", &texts.concat());
        prop_assert_eq!(watched(&body, &cuts), watched(&body, &[]));
    }

    #[test]
    fn nothing_that_a_client_sends_is_too_much(
        messages in prop::collection::vec(
            (prop::sample::select(b"QPB".to_vec()), any::<bool>(), prop::collection::vec(any::<u8>(), 0..100)),
            0..20,
        ),
    ) {
        let names = learned(|watcher| {
            watcher.message(FrontendTag::PARSE, Piece::Whole(&parse("", "set_config($1,")));
            for (tag, whole, bytes) in &messages {
                let piece = if *whole { Piece::Whole(bytes) } else { Piece::Begun(bytes) };
                watcher.message(FrontendTag(*tag), piece);
                watcher.more(bytes);
            }
        });
        prop_assert!(names.len() <= 100);
    }
}
