//! A PostgreSQL that restarts, crashes or is promoted under its sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use postgres::{Config, NoTls};

use crate::support::message::{VERSION_3_0, frame, query, startup};
use crate::support::poll_kernel;
use crate::support::postgres::{Cluster, USER};
use crate::support::proxy::{Outcome, Proxy};
use crate::support::psql::Psql;
use crate::support::wire::Wire;
use crate::tls::certs::{authority, write_secret};
use crate::tls::rig::{Site, tls_login};

use super::{fates, hold_all, login, setup, wait_finished};

fn parse(wire: &mut Wire, name: &str, sql: &str) {
    wire.send(&frame(
        b'P',
        &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat(),
    ));
    wire.send(&frame(b'S', b""));
    wire.receive_through(b'Z');
}

fn execute(wire: &mut Wire, name: &str) -> String {
    wire.send(&frame(
        b'B',
        &[b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat(),
    ));
    wire.send(&frame(b'E', b"\0\0\0\0\0"));
    wire.send(&frame(b'S', b""));
    let answer = wire.receive_through(b'Z');
    let row = answer.iter().find(|message| message.tag == b'D');
    let row = row.unwrap_or_else(|| panic!("{answer:?}"));
    String::from_utf8(row.body[6..].to_vec()).unwrap()
}

#[test]
fn a_restart_is_a_pause() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let mut client = login(&proxy);
    client.rows("SET application_name = 'still me'");
    client.rows("SET app.tenant = 'seven'");
    parse(&mut client, "kept", "SELECT 'prepared'");
    for _ in 0..5 {
        let position = proxy.log().position();
        hold_all(&proxy, 1);
        let (_, status) = proxy.ask_json(&["status"]);
        assert_eq!(status["backends"][0]["held"], 1);
        let (_, sessions) = proxy.ask_json(&["sessions"]);
        assert_eq!(sessions[0]["state"], "held");
        client.send(&query("SHOW application_name"));
        cluster.stop();
        cluster.start_again();
        let answer = client.receive_through(b'Z');
        assert!(
            answer
                .iter()
                .any(|message| message.body.ends_with(b"still me")),
            "{answer:?}"
        );
        assert_eq!(client.value("SHOW app.tenant"), "seven");
        assert_eq!(execute(&mut client, "kept"), "prepared");
        assert_eq!(fates(&wait_finished(&proxy, position)), [1, 0, 0]);
        let round = proxy.wait_round(position);
        assert_eq!((round.trigger.as_str(), round.success), ("hold", 1));
        assert_eq!(round.only().outcome, Outcome::Success);
        let restored = proxy.wait_log(position, |line| line.is("session restored"));
        let held = proxy.wait_log(position, |line| line.is("session held"));
        assert_eq!(restored.get("conn"), held.get("conn"));
        assert!(restored.decimal("held_ms") > 0.0);
        assert!(held.number("state_bytes") > 0);
    }
}

#[test]
fn new_clients_wait_for_the_server() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let _held = login(&proxy);
    hold_all(&proxy, 1);
    // Before the server stops, while it is away, and as it comes back.
    let waiting: Vec<_> = (0..3)
        .map(|number| {
            if number == 1 {
                cluster.stop();
            }
            let mut wire = Wire::connect(proxy.address());
            wire.send(&startup(VERSION_3_0, &[("user", USER), ("database", USER)]));
            wire
        })
        .collect();
    cluster.start_again();
    for mut wire in waiting {
        wire.expect(b'R');
        wire.receive_greeting();
        assert_eq!(wire.value("SELECT 'in'"), "in");
    }
}

#[test]
fn a_drain_without_a_target_holds() {
    let mut cluster = Cluster::start(&[], |_| {});
    let setup = setup(&cluster, "60s");
    let proxy = setup.start();
    let mut client = login(&proxy);
    client.rows("SET application_name = 'still me'");
    let position = proxy.log().position();
    proxy.reconfigure(&setup.clone().state(0, "draining").text());
    proxy.wait_log(position, |line| line.is("session held"));
    cluster.stop();
    cluster.start_again();
    proxy.reconfigure(&setup.text());
    assert_eq!(client.value("SHOW application_name"), "still me");
    assert_eq!(fates(&wait_finished(&proxy, position)), [1, 0, 0]);
}

#[test]
fn a_crash_during_a_hold_is_a_pause_too() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let mut client = login(&proxy);
    client.rows("SET application_name = 'still me'");
    // What has come before is on disk, or the session would be ahead of its server.
    client.rows("CHECKPOINT");
    hold_all(&proxy, 1);
    cluster.crash();
    cluster.start_again();
    assert_eq!(client.value("SHOW application_name"), "still me");
}

#[test]
fn a_standby_takes_over_when_it_is_promoted() {
    let mut primary = Cluster::start(&[], |_| {});
    let standby = primary.standby();
    let setup = setup(&primary, "60s").backend("standby", standby.address(), "draining");
    let proxy = setup.start();
    let mut client = login(&proxy);
    client.rows("CREATE TABLE committed (a int)");
    client.rows("SET application_name = 'still me'");
    for number in 0..10 {
        client.rows(&format!("INSERT INTO committed VALUES ({number})"));
    }
    hold_all(&proxy, 1);
    client.send(&query("SELECT count(*) FROM committed"));
    proxy.reconfigure(&setup.clone().state(0, "draining").state(1, "active").text());
    // Not before it is promoted: until then it is read-only.
    primary.stop();
    standby
        .client()
        .execute("SELECT pg_promote()", &[])
        .unwrap();
    let answer = client.receive_through(b'Z');
    assert!(
        answer.iter().any(|message| message.body.ends_with(b"10")),
        "{answer:?}"
    );
    assert_eq!(client.value("SHOW application_name"), "still me");
    client.rows("INSERT INTO committed VALUES (10)");
}

#[test]
fn another_cluster_is_not_taken_for_its_own() {
    let mut cluster = Cluster::start(&[], |_| {});
    let foreign = Cluster::start(&[], |_| {});
    let setup = setup(&cluster, "3s").backend("foreign", foreign.address(), "draining");
    let proxy = setup.start();
    let mut client = login(&proxy);
    hold_all(&proxy, 1);
    let position = proxy.log().position();
    proxy.reconfigure(&setup.clone().state(1, "active").text());
    cluster.stop();
    client.expect_error("FATAL", "57P01");
    let refused = proxy.wait_log(position, |line| line.is("no server took a held session"));
    assert_eq!(
        refused.get("reason"),
        "foreign: restore: it belongs to another cluster"
    );
    assert_eq!(fates(&wait_finished(&proxy, position)), [0, 0, 1]);
}

#[test]
fn pgbench_sees_nothing_but_a_pause() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    super::pgbench(&proxy, &["-i", "-q", "-s", "1"]);
    for (mode, clients) in [("simple", "8"), ("extended", "8"), ("prepared", "32")] {
        // A thread for each: one that waits for a held client in PQprepare would leave its
        // others in their transactions, which are waited for in turn.
        let arguments = ["-n", "-M", mode, "-c", clients, "-j", clients, "-T", "5"];
        let mut bench = super::start_pgbench(&proxy, &arguments);
        super::wait_sessions(&proxy, clients.parse().unwrap());
        let mut restored = 0;
        while bench.try_wait().unwrap().is_none() {
            let position = proxy.log().position();
            let (code, text) = proxy.ask(&["hold", "pod-0", "--wait", "30s"]);
            assert_eq!(code, 0, "{text}");
            cluster.stop();
            cluster.start_again();
            // Where all have left by themselves nobody sees that it is back.
            proxy.ask(&["release", "pod-0"]);
            let [back, resumed, lost] = fates(&wait_finished(&proxy, position));
            assert_eq!([resumed, lost], [0, 0]);
            restored += back;
        }
        assert!(restored >= 8, "{mode}: {restored}");
        let output = bench.wait_with_output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{mode}: {text}");
        assert!(
            text.contains("number of failed transactions: 0 (0.000%)"),
            "{mode}: {text}"
        );
    }
    let mut client = cluster.client();
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = \
                (SELECT sum(delta) FROM pgbench_history)";
    assert!(client.query_one(sums, &[]).unwrap().get::<_, bool>(0));
}

/// A client that inserts one row after the other, and how many were committed.
struct Writer {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(proxy: &Proxy) -> Self {
        let mut client = Config::new()
            .host("127.0.0.1")
            .port(proxy.address().port())
            .user(USER)
            .dbname("postgres")
            .connect(NoTls)
            .unwrap();
        let insert = client
            .prepare("INSERT INTO written SELECT count(*) FROM written")
            .unwrap();
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&committed));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                client.execute(&insert, &[]).unwrap();
                AtomicUsize::fetch_add(&count, 1, Ordering::Relaxed);
            }
        });
        Self {
            stop,
            committed,
            thread,
        }
    }

    fn wait_more(&self) {
        let before = self.committed.load(Ordering::Relaxed);
        poll_kernel(
            || self.committed.load(Ordering::Relaxed) > before + 20,
            || "nothing is written any more".to_owned(),
        );
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.committed.load(Ordering::Relaxed)
    }
}

/// Switches over to a standby, and from there to a standby of that.
#[test]
fn no_committed_row_is_lost_in_two_switchovers() {
    let mut first = Cluster::start(&[], |_| {});
    let create = "CREATE TABLE written (a bigint)";
    first.client().batch_execute(create).unwrap();
    let mut second = first.standby();
    let setup = setup(&first, "60s").backend("second", second.address(), "draining");
    let proxy = setup.start();
    let writer = Writer::start(&proxy);
    writer.wait_more();

    hold_all(&proxy, 1);
    let setup = setup.state(0, "draining").state(1, "active");
    proxy.reconfigure(&setup.text());
    first.stop();
    let promote = "SELECT pg_promote()";
    second.client().execute(promote, &[]).unwrap();
    writer.wait_more();

    let third = second.standby();
    let setup = setup.backend("third", third.address(), "draining");
    let position = proxy.log().position();
    proxy.reconfigure(&setup.text());
    proxy.wait_log(position, |line| line.is("configuration reloaded"));
    let (code, text) = proxy.ask(&["hold", "second", "--wait", "30s"]);
    assert_eq!(code, 0, "{text}");
    let setup = setup.state(1, "draining").state(2, "active");
    proxy.reconfigure(&setup.text());
    second.stop();
    third.client().execute(promote, &[]).unwrap();
    writer.wait_more();

    let committed = writer.end();
    let sql = "SELECT count(*), count(DISTINCT a) FROM written";
    let row = third.client().query_one(sql, &[]).unwrap();
    let counts: [i64; 2] = [row.get(0), row.get(1)];
    assert_eq!(counts, [committed as i64; 2]);
}

#[test]
fn psql_goes_through_five_restarts() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    let mut psql = Psql::connect(&format!(
        "host=127.0.0.1 port={} user={USER} dbname=postgres",
        proxy.address().port()
    ));
    psql.run("SET application_name = 'still me'; PREPARE kept AS SELECT 'prepared';");
    super::wait_sessions(&proxy, 1);
    for _ in 0..5 {
        hold_all(&proxy, 1);
        cluster.stop();
        cluster.start_again();
        assert_eq!(psql.run("SHOW application_name;"), ["still me"]);
        assert_eq!(psql.run("EXECUTE kept;"), ["prepared"]);
    }
}

#[test]
fn tls_on_both_legs_outlives_a_restart() {
    let (site, root) = (Site::new(), authority("the root"));
    let certificate = root.issue("127.0.0.1");
    let mut cluster = Cluster::start(&["ssl = on"], |data| {
        let pem = certificate.cert.to_pem().unwrap();
        std::fs::write(data.join("server.crt"), pem).unwrap();
        let key = certificate.key.private_key_to_pem_pkcs8().unwrap();
        write_secret(&data.join("server.key"), &key);
    });
    let ca = site.files.cert("servers.crt", &root);
    let proxy = setup(&cluster, "60s")
        .section(&site.client_tls("require", ""))
        .section(&format!(
            "[server_tls]\nsslmode = \"verify-full\"\nca_file = \"{}\"",
            ca.display()
        ))
        .start();
    let mut client = tls_login(proxy.address(), USER);
    super::wait_sessions(&proxy, 1);
    client.rows("SET application_name = 'still me'");
    for _ in 0..3 {
        let position = proxy.log().position();
        hold_all(&proxy, 1);
        client.send(&query(
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        ));
        cluster.stop();
        cluster.start_again();
        let answer = client.receive_through(b'Z');
        let row = answer.iter().find(|message| message.tag == b'D').unwrap();
        assert_eq!(row.values(), [Some("t".to_owned())]);
        assert_eq!(client.value("SHOW application_name"), "still me");
        assert_eq!(fates(&wait_finished(&proxy, position)), [1, 0, 0]);
    }
}

#[test]
fn a_standby_that_is_behind_is_waited_for() {
    let mut primary = Cluster::start(&[], |_| {});
    let standby = primary.standby();
    let setup = setup(&primary, "60s").backend("standby", standby.address(), "draining");
    let proxy = setup.start();
    let mut client = login(&proxy);
    client.rows("CREATE TABLE committed (a int)");
    let mut behind = standby.client();
    let caught_up = "SELECT count(*) FROM pg_class WHERE relname = 'committed'";
    poll_kernel(
        || behind.query_one(caught_up, &[]).unwrap().get::<_, i64>(0) == 1,
        || "the standby does not follow".to_owned(),
    );
    // What comes now is received and not replayed.
    behind.execute("SELECT pg_wal_replay_pause()", &[]).unwrap();
    client.rows("INSERT INTO committed VALUES (1)");
    let paused = "SELECT pg_get_wal_replay_pause_state()";
    poll_kernel(
        || behind.query_one(paused, &[]).unwrap().get::<_, String>(0) == "paused",
        || "the standby is not paused".to_owned(),
    );
    client.rows("INSERT INTO committed VALUES (2)");
    hold_all(&proxy, 1);
    client.send(&query("SELECT count(*) FROM committed"));
    primary.stop();
    proxy.reconfigure(&setup.clone().state(0, "draining").state(1, "active").text());
    // Promoting replays the rest.
    behind.execute("SELECT pg_promote()", &[]).unwrap();
    let answer = client.receive_through(b'Z');
    let row = answer.iter().find(|message| message.tag == b'D').unwrap();
    assert_eq!(row.values(), [Some("2".to_owned())]);
}

/// What pgbench says of a run's slowest transaction, in milliseconds, by its own log.
fn slowest(log: &std::path::Path) -> f64 {
    let lines = std::fs::read_dir(log).unwrap().flat_map(|file| {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    // client, number, microseconds, …
    let micros = lines.filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
    micros.fold(0.0, f64::max) / 1000.0
}

/// The pause is the restart's, with some room for both ways: no transaction waits for
/// a time-out of its own.
#[test]
fn no_transaction_waits_longer_than_the_server_was_away() {
    let mut cluster = Cluster::start(&[], |_| {});
    let proxy = setup(&cluster, "60s").start();
    super::pgbench(&proxy, &["-i", "-q", "-s", "1"]);
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("log").display().to_string();
    let arguments = [
        "-n",
        "-c",
        "8",
        "-j",
        "8",
        "-T",
        "6",
        "-l",
        "--log-prefix",
        &prefix,
    ];
    let mut bench = super::start_pgbench(&proxy, &arguments);
    super::wait_sessions(&proxy, 8);
    let mut longest = 0.0_f64;
    while bench.try_wait().unwrap().is_none() {
        let position = proxy.log().position();
        let began = std::time::Instant::now();
        let (code, text) = proxy.ask(&["hold", "pod-0", "--wait", "30s"]);
        assert_eq!(code, 0, "{text}");
        cluster.stop();
        cluster.start_again();
        proxy.ask(&["release", "pod-0"]);
        wait_finished(&proxy, position);
        longest = longest.max(began.elapsed().as_secs_f64() * 1000.0);
    }
    let output = bench.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let slowest = slowest(directory.path());
    assert!(slowest > 0.0, "pgbench has logged nothing");
    // Two pauses may follow each other, on a machine that may be slow; the proxy's own
    // time-outs are longer.
    let most = 2.0 * longest + 5_000.0;
    assert!(
        slowest <= most,
        "{slowest} ms, the longest pause was {longest} ms"
    );
}
