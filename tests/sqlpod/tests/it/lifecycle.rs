//! Start, stop, kill, and nothing left behind.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use sqlpod::{Fault, Pod, Step};

use crate::raw::{DEADLINE, Raw, Tenant};

/// Threads of this process whose name begins so.
fn threads(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}

/// A joined thread may stand in the kernel's list for a moment longer.
///
/// # Panics
/// If one is left that does not end.
fn assert_no_threads(prefix: &str) {
    let began = Instant::now();
    while threads(prefix) > 0 {
        assert!(began.elapsed() < DEADLINE, "{} left", threads(prefix));
        std::thread::yield_now();
    }
}

#[test]
fn stop_says_goodbye_and_leaves_nothing() {
    let tenant = Tenant::new();
    let mut pod = tenant.pod("stops");
    let mut idle = Raw::alice(&pod);
    let mut busy = Raw::alice(&pod);
    let mut stalled = Raw::alice(&pod);
    pod.faults().set(Step::StateReady, Fault::Stall);
    stalled.send('Q', b"SHOW TRANSFER STATE\0");
    assert!(pod.faults().wait_hit(Step::StateReady, DEADLINE));
    // In the transaction of several statements the first answer is sent only
    // with the notice, once the buffer is flushed: begin with a large row.
    busy.send('Q', b"SELECT hex(zeroblob(40000)); SELECT pg_sleep(1000)\0");
    assert_eq!(busy.read().unwrap().tag, 'T');
    let fresh = Raw::open(pod.address());
    assert!(pod.wait_connections(4, DEADLINE));
    assert_eq!(pod.sessions(), 3);
    pod.stop();
    assert_eq!((pod.sessions(), pod.connections()), (0, 0));
    assert_no_threads("stops");
    for (name, raw) in [
        ("idle", &mut idle),
        ("busy", &mut busy),
        ("stalled", &mut stalled),
    ] {
        let last = raw.until_ready().unwrap().pop().unwrap();
        assert_eq!(last.error().0, "57P01", "{name}");
        assert!(raw.read().is_err(), "{name}");
    }
    drop(fresh);
    let pod = Pod::start(tenant.config("stops").listen(&pod.address().to_string())).unwrap();
    assert_eq!(Raw::alice(&pod).value("SELECT 1"), "1");
}

#[test]
fn kill_and_drop_cut_everything() {
    let tenant = Tenant::new();
    // Often enough to come between the two statements as well as into one.
    for how in ["kill", "drop"].repeat(50) {
        let mut pod = tenant.pod("kills");
        let mut idle = Raw::alice(&pod);
        let mut busy = Raw::alice(&pod);
        busy.send(
            'Q',
            b"SELECT hex(zeroblob(40000)); SELECT max(a.value + b.value) FROM \
                         (SELECT 1 AS value) a, (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL \
                         SELECT value + 1 FROM n) SELECT * FROM n) b\0",
        );
        assert_eq!(busy.read().unwrap().tag, 'T');
        match how {
            "kill" => pod.kill(),
            _ => drop(pod),
        }
        assert_no_threads("kills");
        assert!(idle.read().is_err());
    }
}

#[test]
fn hundreds_of_sessions_come_and_go() {
    let tenant = Tenant::new();
    let pod = tenant.pod("crowd");
    let mut setup = Raw::alice(&pod);
    setup.query("CREATE TABLE t (i INT PRIMARY KEY, n INT)");
    let sessions: Vec<_> = (0..200)
        .map(|i| {
            let mut raw = Raw::alice(&pod);
            raw.query(&format!("INSERT INTO t VALUES ({i}, 0)"));
            raw
        })
        .collect();
    assert_eq!(pod.sessions(), 201);
    let workers: Vec<_> = sessions
        .into_iter()
        .enumerate()
        .map(|(i, mut raw)| {
            std::thread::spawn(move || {
                for round in 0..5 {
                    assert_eq!(
                        raw.value(&format!("SELECT {i} + {round}")),
                        (i + round).to_string()
                    );
                    let answer = raw.query(&format!("UPDATE t SET n = n + 1 WHERE i = {i}"));
                    assert_eq!(answer[0].text(), "UPDATE 1");
                }
            })
        })
        .collect();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
    assert_eq!(setup.value("SELECT sum(n) FROM t"), "1000");
    assert!(pod.wait_sessions(1, DEADLINE));
}

#[test]
fn the_binary_says_where_it_listens_and_ends_on_sigterm() {
    let tenant = Tenant::new();
    let config = tenant.config("p");
    let start = |listen: &str| {
        Command::new(env!("CARGO_BIN_EXE_sqlpod"))
            .args(["--listen", listen, "--name", "pod-a", "--database"])
            .arg(&config.database)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = start("127.0.0.1:0");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("sqlpod listening name=pod-a address=")
        .unwrap();
    let address: std::net::SocketAddr = address.parse().unwrap();
    let mut raw = Raw::login(address, &[("user", "alice")]).unwrap();
    assert_eq!(raw.value("SELECT sqlpod_name()"), "pod-a");

    let mut second = start(&address.to_string());
    let mut text = String::new();
    second
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(2));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(&address.to_string()), "{text}");

    let kill = Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    let goodbye = raw.until_ready().unwrap();
    assert_eq!(goodbye[0].error().0, "57P01");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn its_page_says_503_from_the_moment_that_it_is_to_leave() {
    let health = sqlpod::Health::start("127.0.0.1:0").unwrap();
    let ask = || {
        let mut stream = std::net::TcpStream::connect(health.address()).unwrap();
        let request = "GET /health?ready=1 HTTP/1.1\r\nHost: pod\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask().starts_with("HTTP/1.1 200 OK\r\n"));
    health.leave();
    let answer = ask();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.ends_with("{\"error\": \"node is shutting down\"}\n"),
        "{answer}"
    );
}
