//! Requests over real sockets, good ones and stuck ones.
#![allow(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::clients::{CLIENT_DEADLINE, MAX_CLIENTS};
use super::*;

/// Far above what anything here takes, `CLIENT_DEADLINE` included.
const TEST_DEADLINE: Duration = Duration::from_secs(30);

fn start(readiness: Readiness) -> Admin {
    start_with(readiness, "{}".to_owned())
}

fn start_with(readiness: Readiness, status: String) -> Admin {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pages = Pages {
        readiness,
        status: Arc::new(move || status.clone()),
        metrics: Arc::new(|| "\nproxy_sql_accepted_conns 1\n".to_owned()),
    };
    Admin::start(listener, pages).unwrap()
}

fn ready() -> Readiness {
    Arc::new(|| Ok(()))
}

fn connect(admin: &Admin) -> TcpStream {
    let stream = TcpStream::connect(admin.address()).unwrap();
    stream.set_read_timeout(Some(TEST_DEADLINE)).unwrap();
    stream.set_write_timeout(Some(TEST_DEADLINE)).unwrap();
    stream
}

/// Everything up to the end of the connection.
fn answer_to(mut stream: &TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(admin: &Admin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: proxy\r\n\r\n");
    answer_to(&connect(admin), &request)
}

#[test]
fn each_request_has_its_answer() {
    let admin = start(Arc::new(|| Err("no backend can be reached".to_owned())));
    let not_found = "not found; there are /, /healthz, /readyz, /status, /metrics\n";
    let many_headers = "A: b\r\n".repeat(65);
    let table = [
        (
            "GET /healthz HTTP/1.1\r\nHost: p\r\n\r\n",
            "200 OK",
            "alive\n",
        ),
        (
            "GET /healthz?verbose=1 HTTP/1.0\r\n\r\n",
            "200 OK",
            "alive\n",
        ),
        (
            "GET /readyz HTTP/1.1\r\n\r\n",
            "503 Service Unavailable",
            "no backend can be reached\n",
        ),
        ("GET /x HTTP/1.1\r\n\r\n", "404 Not Found", not_found),
        ("GET /healthz/ HTTP/1.1\r\n\r\n", "404 Not Found", not_found),
        (
            "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "405 Method Not Allowed",
            "only GET and HEAD\n",
        ),
        (
            "nonsense\r\n\r\n",
            "400 Bad Request",
            "not an HTTP request\n",
        ),
        (
            &format!("GET /healthz HTTP/1.1\r\n{many_headers}\r\n"),
            "431 Request Header Fields Too Large",
            "the header is too large\n",
        ),
        (
            &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9000)),
            "431 Request Header Fields Too Large",
            "the header is too large\n",
        ),
    ];
    for (request, status, body) in table {
        let answer = answer_to(&connect(&admin), request);
        let start = format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n");
        let length = format!("\r\nContent-Length: {}\r\n", body.len());
        assert!(answer.starts_with(&start), "{request:?}: {answer:?}");
        assert!(answer.contains(&length), "{request:?}: {answer:?}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer:?}");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer:?}");
        assert_eq!(
            answer.contains("\r\nAllow: GET, HEAD\r\n"),
            status.starts_with("405")
        );
    }
}

#[test]
fn head_is_get_without_the_body() {
    let admin = start(ready());
    let answer = answer_to(&connect(&admin), "HEAD /readyz HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    assert!(answer.contains("\r\nContent-Length: 6\r\n"), "{answer:?}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer:?}");
}

#[test]
fn metrics_are_served_in_prometheus_text_format() {
    let answer = get(&start(ready()), "/metrics");
    let kind = "\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n";
    assert!(answer.contains(kind), "{answer}");
    assert!(
        answer.contains("\nproxy_sql_accepted_conns 1\n"),
        "{answer}"
    );
}

#[test]
fn the_page_comes_with_its_policy() {
    let answer = get(&start(ready()), "/");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(body == page::PAGE);
    for line in [
        "Content-Type: text/html; charset=utf-8",
        &format!("Content-Security-Policy: {}", page::policy_of_page()),
        "Referrer-Policy: no-referrer",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
    ] {
        assert!(head.lines().any(|found| found == line), "{line}: {head}");
    }
    // What is no page has no script either.
    assert!(!get(&start(ready()), "/healthz").contains("Content-Security-Policy"));
}

/// Longer than one read takes, so that the parts must be put together.
#[test]
fn a_request_may_come_in_parts() {
    let admin = start(ready());
    let request = format!(
        "GET /readyz HTTP/1.1\r\nCookie: {}\r\n\r\n",
        "x".repeat(5000)
    );
    let answer = answer_to(&connect(&admin), &request);
    assert!(answer.ends_with("\r\n\r\nready\n"), "{answer:?}");
}

#[test]
fn a_header_is_complete_at_its_last_byte_only() {
    let head = b"GET /readyz HTTP/1.1\r\nHost: p\r\n\r\n";
    for length in 0..head.len() {
        let part = head.get(..length).unwrap();
        assert!(http::parse(part).unwrap().is_none(), "{length}");
    }
    let request = http::parse(head).unwrap().unwrap();
    assert_eq!(
        (request.method.as_str(), request.target.as_str()),
        ("GET", "/readyz")
    );
}

/// A client that says nothing holds a place, all places at worst, but only up to
/// its deadline: then the next one has its turn.
#[test]
fn stuck_clients_delay_others_only_up_to_their_deadline() {
    let admin = start(ready());
    let stuck: Vec<TcpStream> = (1..MAX_CLIENTS).map(|_| connect(&admin)).collect();
    let begin = Instant::now();
    assert!(get(&admin, "/healthz").ends_with("alive\n"));
    assert!(begin.elapsed() < CLIENT_DEADLINE, "one place was left");

    let begin = Instant::now();
    let more: Vec<TcpStream> = (0..2).map(|_| connect(&admin)).collect();
    assert!(get(&admin, "/healthz").ends_with("alive\n"));
    assert!(begin.elapsed() < 2 * CLIENT_DEADLINE);
    // The proxy gave up on them, not they on it.
    for mut stream in stuck {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    drop(more);
}

/// As many as keep the listener's queue full do not keep a prober waiting.
#[test]
fn silent_clients_make_room_for_one_that_asks() {
    let admin = start(ready());
    let silent: Vec<TcpStream> = (0..5 * MAX_CLIENTS).map(|_| connect(&admin)).collect();
    let begin = Instant::now();
    assert!(get(&admin, "/healthz").ends_with("alive\n"));
    assert!(begin.elapsed() < CLIENT_DEADLINE);
    drop(silent);
}

/// Each keeps its side of the connection open behind its answer.
#[test]
fn answered_clients_make_room_at_once() {
    let admin = start(ready());
    let begin = Instant::now();
    let kept: Vec<TcpStream> = (0..2 * MAX_CLIENTS)
        .map(|_| {
            let stream = connect(&admin);
            assert!(answer_to(&stream, "GET /readyz HTTP/1.1\r\n\r\n").ends_with("ready\n"));
            stream
        })
        .collect();
    assert!(begin.elapsed() < CLIENT_DEADLINE, "they waited");
    drop(kept);
}

#[test]
fn in_a_burst_each_request_has_its_answer() {
    let admin = start(ready());
    let mut burst: Vec<TcpStream> = (0..3 * MAX_CLIENTS)
        .map(|_| {
            let mut stream = connect(&admin);
            stream.write_all(b"GET /readyz HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for stream in &mut burst {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("ready\n"), "{answer:?}");
    }
}

/// What the server sends them fills all buffers in between.
#[test]
fn clients_that_take_no_answer_keep_nobody_waiting() {
    let admin = start_with(ready(), "x".repeat(16 << 20));
    let full: Vec<TcpStream> = (0..MAX_CLIENTS)
        .map(|_| {
            let mut stream = connect(&admin);
            stream.write_all(b"GET /status HTTP/1.1\r\n\r\n").unwrap();
            // Its answer has begun.
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .collect();
    let begin = Instant::now();
    assert!(get(&admin, "/healthz").ends_with("alive\n"));
    assert!(begin.elapsed() < CLIENT_DEADLINE);
    drop(full);
}

#[test]
fn a_page_that_panics_costs_one_request() {
    let admin = start(Arc::new(|| {
        std::panic::resume_unwind(Box::new("on purpose"))
    }));
    assert!(get(&admin, "/readyz").starts_with("HTTP/1.1 500 "));
    assert!(get(&admin, "/healthz").ends_with("alive\n"));
}

#[test]
fn stop_ends_stuck_clients_and_frees_the_port() {
    let admin = start(ready());
    let address = admin.address();
    let mut stuck = connect(&admin);
    stuck.write_all(b"GET /heal").unwrap();
    // Accepted in order: once the second is answered, the first is being served.
    assert!(get(&admin, "/healthz").ends_with("alive\n"));
    let begin = Instant::now();
    drop(admin);
    assert!(
        begin.elapsed() < CLIENT_DEADLINE,
        "it waited for the client"
    );
    assert_eq!(stuck.read(&mut [0]).unwrap(), 0);
    assert!(TcpStream::connect(address).is_err());
}
