//! The transfer's statements, as CockroachDB has them.

use sqlpod::{Auth, Pod};

use crate::raw::{Raw, Tenant, tags};

/// State and token, from a session that may move.
fn export(raw: &mut Raw) -> (String, String) {
    let answer = raw.query("SHOW TRANSFER STATE");
    let row = answer[1].values();
    (row[1].clone().unwrap(), row[2].clone().unwrap())
}

fn enter(pod: &Pod, user: &str, token: &str) -> Raw {
    let params = [("user", user), ("CRDB:Session_Revival_Token_Base64", token)];
    Raw::login(pod.address(), &params).unwrap()
}

fn restore(state: &str) -> String {
    format!("SELECT crdb_internal.deserialize_session(decode('{state}', 'base64'))")
}

/// Why the state cannot be had; the key is echoed nevertheless.
fn refusal(raw: &mut Raw) -> String {
    let answer = raw.query("SHOW TRANSFER STATE WITH 'k'");
    assert_eq!(tags(&answer), "TDCZ");
    let row = answer[1].values();
    assert_eq!(row[1..], [None, None, Some("k".to_owned())]);
    row[0].clone().unwrap()
}

#[test]
fn the_state_answer_has_its_columns_and_tag() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    let names = [
        "error",
        "session_state_base64",
        "session_revival_token_base64",
        "transfer_key",
    ];
    for (sql, width) in [
        ("SHOW TRANSFER STATE", 3),
        ("show transfer state with 'the key'", 4),
    ] {
        let answer = raw.query(sql);
        assert_eq!(tags(&answer), "TDCZ");
        assert_eq!(answer[0].names(), names[..width]);
        assert_eq!(answer[0].oids(), vec![25; width]);
        let row = answer[1].values();
        assert_eq!(row.len(), width);
        assert_eq!(row[0], None);
        assert!(row[1].is_some() && row[2].is_some());
        if width == 4 {
            assert_eq!(row[3].as_deref(), Some("the key"));
        }
        assert_eq!(answer[2].text(), "SHOW TRANSFER STATE 1");
    }
    raw.parse("", "SHOW TRANSFER STATE WITH 'k'");
    raw.send('D', b"S\0");
    raw.bind("", "", &[]);
    raw.execute("", 0);
    let answer = raw.sync();
    assert_eq!(tags(&answer), "1tT2DCZ");
    assert_eq!(answer[4].values()[0], None, "{answer:?}");
}

#[test]
fn a_session_moves_with_all_it_has() {
    let tenant = Tenant::new();
    let a = Pod::start(
        tenant
            .config("a")
            .auth(Auth::ScramSha256)
            .user("alice", "x"),
    )
    .unwrap();
    let b = Pod::start(
        tenant
            .config("b")
            .auth(Auth::ScramSha256)
            .user("alice", "x"),
    )
    .unwrap();
    // Without a password nobody gets in, with a token alice does.
    let trusting = tenant.pod("trusting");
    let mut old = Raw::alice(&trusting);
    old.query("CREATE TABLE t (i INT, s TEXT)");
    old.query("INSERT INTO t VALUES (1, 'one')");
    old.query("SET application_name = 'it''s me'");
    old.query("SET my.own = 'mine'");
    old.query("PREPARE sql_level (int4) AS SELECT s FROM t WHERE i = $1");
    old.parse("wire level", "SELECT s FROM t WHERE i = $1");
    old.sync();

    for pod in [&a, &b] {
        let (state, token) = export(&mut old);
        let mut new = enter(pod, "alice", &token);
        assert_eq!(tags(&new.greeting), "RSSSSSSSSSSSSKZ");
        let answer = new.query(&restore(&state));
        assert_eq!(tags(&answer), "TDCZ", "{answer:?}");
        assert_eq!(answer[0].names(), ["crdb_internal.deserialize_session"]);
        assert_eq!(answer[0].oids(), [16]);
        assert_eq!(answer[1].values(), [Some("t".to_owned())]);
        assert_eq!(answer[2].text(), "SELECT 1");
        assert_eq!(new.value("SELECT sqlpod_name()"), pod.name());
        assert_eq!(new.value("SHOW application_name"), "it's me");
        assert_eq!(new.value("SHOW my.own"), "mine");
        assert_eq!(new.value("SELECT current_database()"), "d");
        assert_eq!(new.value("EXECUTE sql_level(1)"), "one");
        new.send('D', b"Ssql_level\0");
        assert_eq!(new.sync()[0].body, [0, 1, 0, 0, 0, 23]);
        new.send('D', b"Swire level\0");
        assert_eq!(new.sync()[0].body, [0, 1, 0, 0, 0, 20]);
        new.bind("", "wire level", &["1"]);
        new.execute("", 0);
        assert_eq!(tags(&new.sync()), "2DCZ");
        // Once more is once too often: the statements are there already.
        let error = new.refused(&restore(&state));
        assert_eq!(error.0, "42P05");
        assert_eq!(error.1, "prepared statement \"sql_level\" already exists");
        old = new;
    }
    // The function by itself gives the same state, as bytes.
    let hex = old.value("SELECT crdb_internal.serialize_session()");
    assert!(hex.starts_with("\\x7b"), "{hex}");
}

#[test]
fn refusals_come_as_data_in_their_order() {
    let tenant = Tenant::new();
    let mut config = tenant.config("a");
    config.tokens = false;
    let pod = Pod::start(config).unwrap();
    let mut raw = Raw::login(pod.address(), &[("user", "root")]).unwrap();
    raw.query("CREATE TEMP TABLE mine (i INT)");
    pod.set_max_state_size(2048);
    let padding = "x".repeat(6000);
    raw.query(&format!("SET my.padding = '{padding}'"));

    raw.query("BEGIN");
    assert_eq!(
        refusal(&mut raw),
        "cannot serialize a session which is inside a transaction"
    );
    raw.query("SELECT nothing");
    assert_eq!(
        refusal(&mut raw),
        "cannot serialize a session which is inside a transaction"
    );
    raw.parse("", "SHOW TRANSFER STATE WITH 'k'");
    raw.bind("", "", &[]);
    raw.execute("", 0);
    assert_eq!(tags(&raw.sync()), "12DCZ", "also in the extended protocol");
    raw.query("ROLLBACK");

    raw.parse("other", "SELECT 1");
    raw.parse("", "SHOW TRANSFER STATE WITH 'k'");
    raw.bind("open", "other", &[]);
    raw.bind("", "", &[]);
    raw.execute("", 0);
    let answer = raw.sync();
    let error = answer[4].values()[0].clone();
    assert_eq!(
        error.as_deref(),
        Some("cannot serialize a session which has active portals")
    );

    assert_eq!(
        refusal(&mut raw),
        "cannot serialize session with temporary schemas"
    );
    raw.query("DROP TABLE mine");
    let text = refusal(&mut raw);
    assert!(text.starts_with("serialized session size 6."), "{text}");
    assert!(
        text.ends_with(" KiB exceeds max allowed size 2.0 KiB"),
        "{text}"
    );
    raw.query("RESET my.padding");
    let unsupported = "session revival tokens are not supported on this cluster";
    assert_eq!(refusal(&mut raw), unsupported);

    let pod = tenant.pod("b");
    let mut raw = Raw::login(pod.address(), &[("user", "root")]).unwrap();
    assert_eq!(refusal(&mut raw), "cannot create token for root user");
}

#[test]
fn restores_that_must_fail_do() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut alice = Raw::alice(&pod);
    let mut bob = Raw::login(pod.address(), &[("user", "bob")]).unwrap();
    let (state, _) = export(&mut alice);
    let inside = "cannot deserialize a session whilst inside a transaction";
    let expect = |raw: &mut Raw, sql: &str, code: &str, text: &str| {
        assert_eq!(
            raw.refused(sql),
            (code.to_owned(), text.to_owned()),
            "{sql}"
        );
    };
    expect(
        &mut bob,
        &restore(&state),
        "42501",
        "can only deserialize matching session users",
    );
    alice.query("BEGIN");
    expect(&mut alice, &restore(&state), "25000", inside);
    alice.query("ROLLBACK");
    expect(
        &mut alice,
        &format!("SELECT 1; {}", restore(&state)),
        "25000",
        inside,
    );
    let cut = &state[..state.len() / 8 * 4];
    let eof = "error deserializing session: unexpected EOF";
    expect(&mut alice, &restore(cut), "22023", eof);
    expect(&mut alice, &restore(""), "22023", eof);
    let text = alice.value(&format!(
        "SELECT encode(decode('{state}', 'base64'), 'hex')"
    ));
    let forged = text.replace(
        &hex("current_user\":\"alice"),
        &hex("current_user\":\"root"),
    );
    let sql = format!("SELECT crdb_internal.deserialize_session(decode('{forged}', 'hex'))");
    expect(&mut alice, &sql, "42501", "only root can become root");
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn tokens_are_for_their_user_and_tenant() {
    let (tenant, stranger) = (Tenant::new(), Tenant::new());
    let pod = tenant.pod("a");
    let (_, token) = export(&mut Raw::alice(&pod));
    // Reusable while it lives.
    for _ in 0..2 {
        let mut raw = enter(&pod, "alice", &token);
        assert_eq!(raw.value("SELECT current_user"), "alice");
        assert_eq!(raw.value("SHOW sqlpod.token_login"), "on");
    }
    let foreign = stranger.pod("b");
    let mut config = tenant.config("c");
    config.tokens = false;
    let without = Pod::start(config).unwrap();
    for (pod, user, token) in [
        (&pod, "bob", token.as_str()),
        (&foreign, "alice", &token),
        (&without, "alice", &token),
        (&pod, "alice", "?"),
        (&pod, "alice", ""),
    ] {
        let greeting = enter(pod, user, token).greeting;
        assert_eq!(tags(&greeting), "E");
        assert_eq!(greeting[0].error().0, "28000", "{greeting:?}");
    }
    let params = [("user", "alice"), ("crdb:remote_addr", "192.0.2.1:99")];
    let mut raw = Raw::login(pod.address(), &params).unwrap();
    assert_eq!(raw.value("SHOW crdb.remote_addr"), "192.0.2.1:99");
    assert_eq!(raw.value("SHOW sqlpod.token_login"), "off");
}
