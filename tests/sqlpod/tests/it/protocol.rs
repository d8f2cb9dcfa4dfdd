//! The protocol's rules, message by message.

use crate::raw::{Raw, Tenant, cancel, tags};

#[test]
fn a_login_reports_what_clients_expect() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let params = [
        ("user", "alice"),
        ("application_name", "app"),
        ("options", "-c timezone=Asia/Tokyo --search_path=a\\ b"),
    ];
    let mut raw = Raw::login(pod.address(), &params).unwrap();
    assert_eq!(tags(&raw.greeting), "RSSSSSSSSSSSSKZ");
    for (name, value) in [
        ("server_version", "13.0.0"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("application_name", "app"),
        ("TimeZone", "Asia/Tokyo"),
        ("session_authorization", "alice"),
        ("is_superuser", "off"),
    ] {
        assert_eq!(raw.reported(name).as_deref(), Some(value), "{name}");
    }
    assert!(raw.reported("crdb_version").is_some());
    assert_eq!(raw.value("SHOW search_path"), "a b");
    assert_eq!(raw.value("SELECT current_database()"), "alice");
}

#[test]
fn tls_is_refused_and_newer_minors_negotiated() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::open(pod.address());
    for code in [80_877_103_u32, 80_877_104] {
        let request = [8_u32.to_be_bytes(), code.to_be_bytes()].concat();
        std::io::Write::write_all(&mut raw.stream, &request).unwrap();
        let mut answer = [0];
        std::io::Read::read_exact(&mut raw.stream, &mut answer).unwrap();
        assert_eq!(answer, *b"N");
    }
    raw.startup((3 << 16) + 2, &[("user", "alice"), ("_pq_.new", "1")])
        .unwrap();
    let greeting = raw.until_ready().unwrap();
    assert_eq!(greeting[0].tag, 'v');
    assert_eq!(greeting[0].body, b"\0\x03\0\0\0\0\0\x01_pq_.new\0");
    assert_eq!(raw.value("SELECT 1"), "1");

    let error = Raw::login(pod.address(), &[("database", "d")])
        .unwrap()
        .greeting[0]
        .error();
    assert_eq!(error.0, "28000");
    let mut raw = Raw::open(pod.address());
    raw.startup(2 << 16, &[]).unwrap();
    assert_eq!(raw.until_ready().unwrap()[0].error().0, "0A000");
}

#[test]
fn ready_for_query_tells_the_transaction() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    for (sql, sequence, status) in [
        ("", "IZ", b"I"),
        (" ; -- nothing", "IZ", b"I"),
        ("CREATE TABLE t (i INT)", "CZ", b"I"),
        ("BEGIN", "CZ", b"T"),
        ("SELECT 1; SELECT 2", "TDCTDCZ", b"T"),
        ("INSERT INTO t VALUES (1)", "CZ", b"T"),
        ("SELECT nothing", "EZ", b"E"),
        ("SELECT 1", "EZ", b"E"),
        ("COMMIT", "CZ", b"I"),
        ("COMMIT", "NCZ", b"I"),
        ("SELECT i FROM t", "TCZ", b"I"),
        // The first insert is undone with the rest.
        ("INSERT INTO t VALUES (1); SELECT nothing", "CEZ", b"I"),
        (
            "INSERT INTO t VALUES (1); BEGIN; INSERT INTO t VALUES (2)",
            "CCCZ",
            b"T",
        ),
        ("ROLLBACK", "CZ", b"I"),
        ("SELECT i FROM t", "TCZ", b"I"),
    ] {
        let answer = raw.query(sql);
        assert_eq!(tags(&answer), sequence, "{sql}: {answer:?}");
        assert_eq!(answer.last().unwrap().body, status, "{sql}");
    }
    raw.query("BEGIN; SELECT nothing");
    assert_eq!(raw.refused("SELECT 1").0, "25P02");
    assert_eq!(raw.query("COMMIT")[0].text(), "ROLLBACK");
}

#[test]
fn errors_skip_to_sync() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    raw.parse("", "SELECT nothing");
    raw.bind("", "", &[]);
    raw.execute("", 0);
    // A Query is skipped as well.
    raw.send('Q', b"SELECT 1\0");
    assert_eq!(tags(&raw.sync()), "EZ");
    raw.parse("", "SELECT $1::int + 1");
    raw.send('D', b"S\0");
    raw.bind("", "", &["41"]);
    raw.execute("", 0);
    let answer = raw.sync();
    assert_eq!(tags(&answer), "1tT2DCZ");
    assert_eq!(answer[1].body, [0, 1, 0, 0, 0, 20]);
    assert_eq!(answer[4].values(), [Some("42".to_owned())]);
    raw.bind("", "gone", &[]);
    let answer = raw.sync();
    assert_eq!(answer[0].error().0, "26000");
}

#[test]
fn portals_give_portions_and_die_with_the_transaction() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    raw.query("BEGIN");
    raw.parse("s", "SELECT * FROM generate_series(1, 3)");
    raw.bind("p", "s", &[]);
    raw.execute("p", 2);
    assert_eq!(tags(&raw.sync()), "12DDsZ");
    raw.execute("p", 2);
    let answer = raw.sync();
    assert_eq!(tags(&answer), "DCZ");
    assert_eq!(answer[1].text(), "SELECT 1");
    raw.bind("p", "s", &[]);
    assert_eq!(raw.sync()[0].error().0, "42P03");
    raw.query("ROLLBACK");
    raw.execute("p", 0);
    assert_eq!(raw.sync()[0].error().0, "34000");
}

#[test]
fn parameters_take_the_types_around_them() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    raw.query("CREATE TABLE t (i INT, s TEXT, b BOOL, n INT4)");
    for (sql, params, columns) in [
        (
            "INSERT INTO t VALUES ($1, $2, $3, 4)",
            vec![20, 25, 16],
            vec![],
        ),
        ("INSERT INTO t (n, b) VALUES ($1, $2)", vec![23, 16], vec![]),
        (
            "SELECT i, n FROM t WHERE n = $1 AND i IN ($2, $3)",
            vec![23, 20, 20],
            vec![20, 23],
        ),
        ("UPDATE t SET s = $1 WHERE b = $2", vec![25, 16], vec![]),
        ("SELECT s FROM t LIMIT $1", vec![20], vec![25]),
        (
            "SELECT i FROM t WHERE n BETWEEN $1 AND $2",
            vec![23, 23],
            vec![20],
        ),
        (
            "SELECT count(*), max(n), i = 1, $1 FROM t",
            vec![25],
            vec![20, 23, 16, 25],
        ),
        (
            "INSERT INTO t (i) VALUES (1) RETURNING n, i + 1",
            vec![],
            vec![23, 20],
        ),
    ] {
        raw.parse("", sql);
        raw.send('D', b"S\0");
        let answer = raw.sync();
        let described = &answer
            .get(1)
            .unwrap_or_else(|| panic!("{sql}: {answer:?}"))
            .body;
        let found: Vec<u32> = described[2..]
            .chunks(4)
            .map(|oid| u32::from_be_bytes(oid.try_into().unwrap()))
            .collect();
        assert_eq!(found, params, "{sql}");
        if columns.is_empty() {
            assert_eq!(answer[2].tag, 'n', "{sql}");
        } else {
            assert_eq!(answer[2].oids(), columns, "{sql}");
        }
    }
}

#[test]
fn settings_follow_the_transaction_and_are_reported() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    let answer = raw.query("SET TIME ZONE 'Europe/Paris'");
    assert_eq!(tags(&answer), "SCZ");
    assert_eq!(answer[0].text(), "TimeZone\0Europe/Paris");
    raw.query("BEGIN");
    assert_eq!(tags(&raw.query("SET application_name = 'inner'")), "SCZ");
    assert_eq!(tags(&raw.query("ROLLBACK")), "SCZ");
    assert_eq!(raw.value("SHOW application_name"), "");
    raw.query("BEGIN");
    raw.query("SET LOCAL application_name = 'inner'");
    assert_eq!(raw.value("SHOW application_name"), "inner");
    assert_eq!(tags(&raw.query("COMMIT")), "SCZ");
    assert_eq!(raw.value("SHOW application_name"), "");
    let answer = raw.query("SELECT set_config('application_name', 'f', false)");
    assert_eq!(tags(&answer), "TDSCZ");
    assert_eq!(raw.value("SELECT current_setting('application_name')"), "f");
    raw.query("SET my.own = 'x'");
    assert_eq!(raw.value("SHOW my.own"), "x");
    assert_eq!(raw.refused("SHOW nonsense").0, "42704");
    raw.query("DISCARD ALL");
    assert_eq!(raw.refused("SHOW my.own").0, "42704");
    assert_eq!(raw.value("SHOW timezone"), "UTC");
    let answer = raw.query("SELECT sqlpod_notice('hear, hear')");
    assert_eq!(tags(&answer), "TDNCZ");
    assert_eq!(answer[2].error().1, "hear, hear");
}

#[test]
fn hostile_bytes_end_only_their_session() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut other = Raw::alice(&pod);
    for bytes in [
        &b"\0\0\0\x03"[..],
        b"\xff\xff\xff\xff",
        b"Q\0\0\0\x01",
        b"B\0\0\0\x05\xff",
        b"\x01\0\0\0\x04",
    ] {
        let mut raw = Raw::alice(&pod);
        std::io::Write::write_all(&mut raw.stream, bytes).unwrap();
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        while raw.read().is_ok() {}
    }
    for sql in [
        "SELECT '",
        "SELECT $x$",
        "/*",
        "SELECT 1::",
        "SHOW",
        "SET x",
        "EXECUTE",
        "COPY",
        "PREPARE x",
        "SELECT ()::int",
        "COPY t FROM",
        "SELECT generate_series(",
        "::int",
    ] {
        assert_eq!(other.refused(sql).0.len(), 5, "{sql}");
    }
    assert_eq!(other.value("SELECT 1"), "1");
}

#[test]
fn the_tenants_key_is_out_of_reach() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    for sql in [
        "SELECT * FROM sqlpod_meta",
        "DELETE FROM sqlpod_meta",
        "DROP TABLE sqlpod_meta",
        "PRAGMA journal_mode = DELETE",
        "ATTACH 'other' AS other",
    ] {
        assert_eq!(raw.refused(sql).0, "42501", "{sql}");
    }
}

#[test]
fn two_writers_wait_for_each_other() {
    let tenant = Tenant::new();
    let (a, b) = (tenant.pod("a"), tenant.pod("b"));
    let (mut first, mut second) = (Raw::alice(&a), Raw::alice(&b));
    first.query("CREATE TABLE t (i INT)");
    first.query("BEGIN; INSERT INTO t VALUES (1)");
    // The second one waits: it neither fails nor succeeds until cancelled.
    let key = second.key();
    let waiting = std::thread::spawn(move || {
        let error = second.refused("INSERT INTO t VALUES (2)");
        (second, error.0)
    });
    while !waiting.is_finished() {
        // An unknown secret stops nothing.
        cancel(b.address(), &[&key[..4], &[0; 4]].concat());
        cancel(b.address(), &key);
    }
    let (mut second, error) = waiting.join().unwrap();
    assert_eq!(error, "57014");
    let waiting = std::thread::spawn(move || {
        let answer = second.query("INSERT INTO t VALUES (2)");
        (second, tags(&answer))
    });
    assert_eq!(first.query("COMMIT")[0].text(), "COMMIT");
    let (mut second, answer) = waiting.join().unwrap();
    assert_eq!(answer, "CZ");
    assert_eq!(second.value("SELECT count(*) FROM t"), "2");
    // A snapshot that is overtaken cannot write any more.
    second.query("BEGIN; SELECT * FROM t");
    first.query("INSERT INTO t VALUES (3)");
    assert_eq!(second.refused("INSERT INTO t VALUES (4)").0, "40001");
}
