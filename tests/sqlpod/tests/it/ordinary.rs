//! psql and the `postgres` crate, doing what applications do.

use std::process::Command;

use postgres::{Client, NoTls};
use sqlpod::{Auth, Pod};

use crate::raw::{DEADLINE, Tenant};

fn connect(pod: &Pod) -> Client {
    let conninfo = format!(
        "host=127.0.0.1 port={} user=alice password=secret dbname=d application_name=tests",
        pod.address().port()
    );
    Client::connect(&conninfo, NoTls).unwrap()
}

#[test]
fn postgres_crate_works() {
    let tenant = Tenant::new();
    for auth in [Auth::Trust, Auth::Password, Auth::ScramSha256] {
        let pod = Pod::start(tenant.config("a").auth(auth).user("alice", "secret")).unwrap();
        let mut client = connect(&pod);
        client
            .batch_execute(
                "DROP TABLE IF EXISTS t;
                 CREATE TABLE t (id INT PRIMARY KEY, small INT4, name TEXT, ok BOOL, f FLOAT, raw BYTEA)",
            )
            .unwrap();
        let raw: &[u8] = &[0, 255];
        let insert = "INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6)";
        let changed = client
            .execute(insert, &[&1_i64, &2_i32, &"one", &true, &1.5_f64, &raw])
            .unwrap();
        assert_eq!(changed, 1);
        let none: Option<&str> = None;
        client
            .execute("INSERT INTO t (id, name) VALUES ($1, $2)", &[&2_i64, &none])
            .unwrap();

        let row = client
            .query_one("SELECT * FROM t WHERE id = $1", &[&1_i64])
            .unwrap();
        assert_eq!(row.get::<_, i64>("id"), 1);
        assert_eq!(row.get::<_, i32>("small"), 2);
        assert_eq!(row.get::<_, &str>("name"), "one");
        assert!(row.get::<_, bool>("ok"));
        assert!((row.get::<_, f64>("f") - 1.5).abs() < f64::EPSILON);
        assert_eq!(row.get::<_, &[u8]>("raw"), raw);
        let row = client
            .query_one("SELECT name, ok FROM t WHERE id = 2", &[])
            .unwrap();
        assert_eq!(row.get::<_, Option<&str>>(0), None);
        assert_eq!(row.get::<_, Option<bool>>(1), None);

        let sum = client
            .query_one("SELECT sum(id) + 1, count(*) FROM t", &[])
            .unwrap();
        assert_eq!((sum.get::<_, i64>(0), sum.get::<_, i64>(1)), (4, 2));
        let cast = client
            .query_one("SELECT $1::int4 + 1 AS n", &[&41_i32])
            .unwrap();
        assert_eq!(cast.get::<_, i64>("n"), 42);

        let mut transaction = client.transaction().unwrap();
        transaction.execute("DELETE FROM t", &[]).unwrap();
        let mut savepoint = transaction.savepoint("s").unwrap();
        savepoint
            .execute("INSERT INTO nowhere VALUES (1)", &[])
            .unwrap_err();
        savepoint.rollback().unwrap();
        transaction
            .execute("INSERT INTO t (id) VALUES (7)", &[])
            .unwrap();
        transaction.rollback().unwrap();
        assert_eq!(client.query("SELECT id FROM t", &[]).unwrap().len(), 2);

        let mut transaction = client.transaction().unwrap();
        let portal = transaction.bind("SELECT value FROM generate_series(1, 5)", &[]);
        // The alias rule renames the column, as PostgreSQL does.
        assert!(portal.is_err());
        transaction.rollback().unwrap();
        let mut transaction = client.transaction().unwrap();
        let series = "SELECT generate_series::int8 FROM generate_series(1, 5)";
        let portal = transaction.bind(series, &[]).unwrap();
        for expected in [2, 2, 1, 0] {
            assert_eq!(
                transaction.query_portal(&portal, 2).unwrap().len(),
                expected
            );
        }
        transaction.commit().unwrap();
    }
}

#[test]
fn postgres_crate_copies() {
    use std::io::{Read as _, Write as _};

    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut client = connect(&pod);
    client
        .batch_execute("CREATE TABLE c (id INT, name TEXT)")
        .unwrap();
    let mut writer = client.copy_in("COPY c FROM STDIN").unwrap();
    // Split inside a line, so that messages and lines do not agree.
    for part in ["1\ton", "e\n2\t\\N\n", "3\ta\\tb\n"] {
        writer.write_all(part.as_bytes()).unwrap();
        writer.flush().unwrap();
    }
    assert_eq!(writer.finish().unwrap(), 3);
    let mut text = String::new();
    client
        .copy_out("COPY c TO STDOUT")
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "1\tone\n2\t\\N\n3\ta\\tb\n");

    let mut writer = client.copy_in("COPY c FROM STDIN").unwrap();
    writer.write_all(b"4\tfour\nfive\n").unwrap();
    let error = writer.finish().unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22P04");
    assert_eq!(
        client.query("SELECT id FROM c", &[]).unwrap().len(),
        3,
        "all rows or none"
    );
}

#[test]
fn a_long_query_is_cancelled() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut client = connect(&pod);
    let cte = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000000) SELECT max(i) FROM n";
    for long in ["SELECT pg_sleep(30)", cte] {
        let cancel = client.cancel_token();
        // A cancel that comes before the query is void, so repeat it until
        // the query has ended.
        let (done, ended) = std::sync::mpsc::channel::<()>();
        let canceller = std::thread::spawn(move || {
            while ended.recv_timeout(std::time::Duration::from_millis(20))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                cancel.cancel_query(NoTls).unwrap();
            }
        });
        let start = std::time::Instant::now();
        let error = client.batch_execute(long).unwrap_err();
        assert!(start.elapsed() < DEADLINE, "{long}");
        done.send(()).unwrap();
        canceller.join().unwrap();
        assert_eq!(error.code().unwrap().code(), "57014", "{long}");
    }
    client.batch_execute("SELECT 1").unwrap();
}

#[test]
fn a_wrong_password_is_refused() {
    let tenant = Tenant::new();
    for auth in [Auth::Password, Auth::ScramSha256] {
        let pod = Pod::start(tenant.config("a").auth(auth).user("alice", "secret")).unwrap();
        for user in ["alice", "nobody"] {
            let conninfo = format!(
                "host=127.0.0.1 port={} user={user} password=guess",
                pod.address().port()
            );
            let Err(error) = Client::connect(&conninfo, NoTls) else {
                panic!("{user} got in")
            };
            assert_eq!(error.code().unwrap().code(), "28P01");
        }
    }
}

#[test]
fn psql_works() {
    let tenant = Tenant::new();
    let pod = Pod::start(
        tenant
            .config("pod-a")
            .auth(Auth::ScramSha256)
            .user("alice", "secret"),
    )
    .unwrap();
    let script = "
        CREATE TABLE t (id SERIAL PRIMARY KEY, name STRING);
        INSERT INTO t (name) VALUES ('007'), (NULL);
        SELECT * FROM t ORDER BY id;
        PREPARE p (int) AS SELECT name FROM t WHERE id = $1;
        EXECUTE p(1);
        SET application_name TO 'x y';
        SHOW application_name;
        SELECT sqlpod_name(), current_user;
        BEGIN;
        SELECT nothing FROM t;
        SELECT 1;
        COMMIT;
        DEALLOCATE p;
        UPDATE t SET name = 'a' WHERE id = 2;
        DELETE FROM t;";
    let output = Command::new("psql")
        .args(["-X", "-A", "-c", "\\echo", "-f", "-"])
        .arg(format!(
            "host=127.0.0.1 port={} user=alice dbname=d",
            pod.address().port()
        ))
        .env("PGPASSWORD", "secret")
        .stdin({
            let (reader, mut writer) = std::io::pipe().unwrap();
            std::io::Write::write_all(&mut writer, script.as_bytes()).unwrap();
            reader
        })
        .output()
        .expect("psql is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "\nCREATE TABLE\nINSERT 0 2\nid|name\n1|007\n2|\n(2 rows)\nPREPARE\nname\n007\n\
                    (1 row)\nSET\napplication_name\nx y\n(1 row)\nsqlpod_name|current_user\n\
                    pod-a|alice\n(1 row)\nBEGIN\nROLLBACK\nDEALLOCATE\nUPDATE 1\nDELETE 2\n";
    assert_eq!(
        text,
        expected,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
