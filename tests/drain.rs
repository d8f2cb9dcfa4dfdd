//! Backends that are emptied: by the file, by a command, by what they say of themselves.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use openssl::ssl::{SslAcceptor, SslMethod};

use crate::support::message::{self, query};
use crate::support::pods::Pods;
use crate::support::proxy::{CONTROL, Proxy, Setup};
use crate::support::server::Server;
use crate::support::{closed_port, poll_kernel};
use crate::tls::certs::{Files, authority};

/// A node's HTTP page, which answers with whatever status is set.
struct Page {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicU16>,
}

fn answer(stream: impl Read + Write, status: u16) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).is_ok_and(|count| count > 2) {
        line.clear();
    }
    let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let _ = stream.get_mut().write_all(answer.as_bytes());
}

impl Page {
    fn start() -> Self {
        Self::start_with(None)
    }

    /// With TLS, where there is an acceptor.
    fn start_with(tls: Option<SslAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (status, asked) = (Arc::new(AtomicU16::new(200)), Arc::default());
        let (shown, count) = (Arc::clone(&status), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let status = shown.load(Ordering::Relaxed);
                match &tls {
                    None => answer(stream, status),
                    // One that does not trust it leaves.
                    Some(tls) => drop(tls.accept(stream).map(|stream| answer(stream, status))),
                }
                AtomicU16::fetch_add(&count, 1, Ordering::Relaxed);
            }
        });
        Self {
            address,
            status,
            asked,
        }
    }

    /// Waits until it has been asked, or somebody has tried, so many times more.
    fn wait_asked(&self, times: u16) {
        let before = self.asked.load(Ordering::Relaxed);
        let asked = || self.asked.load(Ordering::Relaxed) - before;
        poll_kernel(|| asked() >= times, || format!("asked {} times", asked()));
    }

    fn setting(&self) -> String {
        format!("health_url = \"http://{}/health?ready=1\"", self.address)
    }

    fn says(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

fn backend_of(proxy: &Proxy, number: usize) -> serde_json::Value {
    proxy.ask_json(&["status"]).1["backends"][number].clone()
}

#[test]
fn a_node_that_says_that_it_is_about_to_go_is_left_and_taken_again() {
    let pods = Pods::start(2);
    let page = Page::start();
    let proxy = Setup::new(&pods.addresses())
        .top(CONTROL)
        .top("health_interval = \"20ms\"")
        .first_backend(&page.setting())
        .start();
    let mut clients: Vec<_> = (0..6).map(|_| proxy.login("maria")).collect();
    for client in &mut clients {
        client.rows("SET application_name = 'still me'");
    }
    let position = proxy.log().position();
    page.says(503);
    let round = proxy.wait_round(position);
    assert_eq!((round.trigger.as_str(), round.success), ("health", 3));
    let drained = proxy.wait_log(position, |line| line.is("backend drained"));
    assert_eq!(
        (drained.get("backend"), drained.get("sessions")),
        ("pod-0", "0")
    );
    assert!(drained.decimal("elapsed_ms") >= 0.0);
    let status = backend_of(&proxy, 0);
    assert_eq!(status["state"], "draining");
    assert_eq!(status["sessions"], 0);
    for client in &mut clients {
        assert_eq!(client.value("SELECT sqlpod_name()"), "pod-1");
        assert_eq!(client.value("SHOW application_name"), "still me");
    }
    let position = proxy.log().position();
    page.says(200);
    proxy.wait_log(position, |line| line.is("backend is there to stay"));
    assert_eq!(backend_of(&proxy, 0)["state"], "active");
    assert_eq!(proxy.login("maria").value("SELECT sqlpod_name()"), "pod-0");
}

/// As CockroachDB does while it drains: logins are refused, sessions live.
#[test]
fn a_server_that_refuses_logins_as_it_shuts_down_is_left() {
    let leaving = Arc::new(AtomicU16::new(0));
    let refuses = Arc::clone(&leaving);
    let pods = Pods::start(1);
    let server = Server::start(move |mut end| {
        if refuses.load(Ordering::Relaxed) == 1 {
            let text = "server is not accepting clients";
            end.wire
                .send(&message::error_response("FATAL", "57P01", text));
            return;
        }
        end.welcome();
        end.echo();
    });
    let proxy = Setup::new(&[server.address(), pods.addresses()[0]])
        .top("health_interval = \"20ms\"")
        .state(1, "draining")
        .start();
    let position = proxy.log().position();
    leaving.store(1, Ordering::Relaxed);
    let line = proxy.wait_log(position, |line| line.is("backend is about to go"));
    assert_eq!(line.get("backend"), "pod-0");
    leaving.store(0, Ordering::Relaxed);
    proxy.wait_log(position, |line| line.is("backend is there to stay"));
}

/// The session that it ends is the first to tell.
#[test]
fn a_session_that_a_server_ends_makes_the_proxy_look() {
    let ended = Arc::new(AtomicU16::new(0));
    let ends = Arc::clone(&ended);
    let server = Server::start(move |mut end| {
        let text = "server is shutting down";
        let farewell = message::error_response("FATAL", "57P01", text);
        if ends.load(Ordering::Relaxed) == 1 {
            end.wire.send(&farewell);
            return;
        }
        end.welcome();
        // The prober's login ends here.
        if end.next_query().is_some() {
            ends.store(1, Ordering::Relaxed);
            end.wire.send(&farewell);
        }
    });
    let proxy = Setup::new(&[server.address()])
        // Longer than this test has patience.
        .top("health_interval = \"1h\"")
        .start();
    let mut client = proxy.login("maria");
    client.send(&query("SELECT 1"));
    client.expect_error("FATAL", "57P01");
    proxy.wait_log(0, |line| line.is("backend is about to go"));
}

#[test]
fn three_failures_mark_a_backend_down_and_move_nobody() {
    let mut pods = Pods::start(2);
    let proxy = Setup::new(&pods.addresses())
        .top(CONTROL)
        .top("health_interval = \"20ms\"\nhealth_fall = 3")
        .start();
    let position = proxy.log().position();
    pods.kill("pod-0");
    let down = proxy.wait_log(position, |line| {
        line.is("backend down, it gets no new sessions")
    });
    assert_eq!((down.get("backend"), down.get("failures")), ("pod-0", "3"));
    assert_eq!(backend_of(&proxy, 0)["up"], false);
    assert_eq!(backend_of(&proxy, 0)["state"], "active");
    for _ in 0..3 {
        assert_eq!(proxy.login("maria").value("SELECT sqlpod_name()"), "pod-1");
    }
    let position = proxy.log().position();
    pods.restart("pod-0");
    proxy.wait_log(position, |line| line.is("backend up"));
    let rounds = proxy.ask_json(&["status"]).1["rounds"].clone();
    assert_eq!(rounds, serde_json::json!([]));
}

#[test]
fn what_a_round_leaves_behind_is_asked_again() {
    let pods = Pods::start(2);
    let setup = Setup::new(&pods.addresses()).section("[migration]\nwait = \"1ms\"");
    let proxy = setup.clone().state(1, "draining").start();
    let mut busy = proxy.login("maria");
    busy.rows("BEGIN");
    let position = proxy.log().position();
    proxy.reconfigure(&setup.state(0, "draining").text());
    assert_eq!(proxy.wait_round(position).recoverable, 1);
    busy.rows("COMMIT");
    proxy.wait_log(position, |line| line.is("backend drained"));
    assert_eq!(busy.value("SELECT sqlpod_name()"), "pod-1");
}

#[test]
fn a_rate_spreads_a_drain() {
    const SESSIONS: u64 = 10;
    let pods = Pods::start(2);
    let setup = Setup::new(&pods.addresses()).section("[migration]\nrate = 20");
    let proxy = setup.clone().state(1, "draining").start();
    let _clients: Vec<_> = (0..SESSIONS).map(|_| proxy.login("maria")).collect();
    let position = proxy.log().position();
    let began = Instant::now();
    proxy.reconfigure(&setup.state(0, "draining").text());
    let round = proxy.wait_round(position);
    round.assert_all_moved(SESSIONS);
    // The first at once, each further one a twentieth of a second later, but for what a
    // late look makes up for.
    assert!(began.elapsed().as_millis() >= 250, "{:?}", began.elapsed());
}

#[test]
fn who_still_sits_there_is_ended() {
    let pods = Pods::start(2);
    let section = "[migration]\nwait = \"1ms\"\nend_after = \"1s\"";
    let setup = Setup::new(&pods.addresses()).section(section);
    let proxy = setup.clone().state(1, "draining").start();
    let mut idle_in_transaction = proxy.login("maria");
    idle_in_transaction.rows("BEGIN");
    let mut moves = proxy.login("maria");
    let position = proxy.log().position();
    proxy.reconfigure(&setup.state(0, "draining").text());
    let fatal = idle_in_transaction.expect_error("FATAL", "25P03");
    assert_eq!(
        fatal.field('M'),
        "terminating connection because its SQL server is being drained"
    );
    idle_in_transaction.expect_gone();
    proxy.wait_log(position, |line| line.is("backend drained"));
    let closed = proxy.wait_log(position, |line| line.is("session closed"));
    assert_eq!(closed.get("reason"), "drain over");
    assert_eq!(moves.value("SELECT sqlpod_name()"), "pod-1");
}

#[test]
fn a_backend_that_has_no_session_is_drained_at_once() {
    let pods = Pods::start(2);
    let setup = Setup::new(&pods.addresses());
    let proxy = setup.start();
    let position = proxy.log().position();
    proxy.reconfigure(&setup.state(0, "draining").text());
    let line = proxy.wait_log(position, |line| line.is("backend drained"));
    assert_eq!(line.get("backend"), "pod-0");
    // Its thread is not needed any more.
    proxy.wait_threads(|names| names.iter().all(|name| name != "drain"));
}

/// Over TLS the page counts as `[server_tls]` has it.
#[test]
fn a_page_over_tls_is_believed_as_its_server_would_be() {
    let files = Files::new();
    let (root, other) = (authority("the root"), authority("another"));
    let own = root.issue("localhost");
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor.set_private_key(&own.key).unwrap();
    acceptor.set_certificate(&own.cert).unwrap();
    let page = Page::start_with(Some(acceptor.build()));
    page.says(503);
    let server = Server::echoing();
    let proxy = |mode: &str, ca_file: Option<&std::path::Path>| {
        let ca_file = ca_file.map(|file| format!("\nca_file = \"{}\"", file.display()));
        let section = format!(
            "[server_tls]\nsslmode = \"{mode}\"{}",
            ca_file.unwrap_or_default()
        );
        let port = page.address.port();
        Setup::new(&[server.address()])
            .top("health_interval = \"20ms\"")
            .section(&section)
            .first_backend(&format!("health_url = \"https://localhost:{port}/ready\""))
            .start()
    };
    let (trusted, foreign) = (
        files.cert("root.crt", &root),
        files.cert("other.crt", &other),
    );
    for (mode, ca_file) in [("prefer", None), ("verify-full", Some(trusted.as_path()))] {
        proxy(mode, ca_file).wait_log(0, |line| line.is("backend is about to go"));
    }
    let proxy = proxy("verify-full", Some(&foreign));
    page.wait_asked(5);
    let lines = proxy.log().since(0);
    assert!(!lines.iter().any(|line| line.is("backend is about to go")));
}

/// Nobody looks any more, so nobody would take it back.
#[test]
fn what_a_node_has_said_ends_with_the_looks() {
    let pods = Pods::start(2);
    let page = Page::start();
    let setup = Setup::new(&pods.addresses())
        .top(CONTROL)
        .first_backend(&page.setting());
    let proxy = setup.clone().top("health_interval = \"20ms\"").start();
    page.says(503);
    proxy.wait_log(0, |line| line.is("backend is about to go"));
    let (code, said) = proxy.ask(&["ready", "pod-0"]);
    assert_eq!(
        (code, said.as_str()),
        (
            1,
            "backend pod-0 says itself that it is about to go, and is taken when it does not\n"
        )
    );
    proxy.reconfigure(&setup.text());
    poll_kernel(
        || backend_of(&proxy, 0)["state"] == "active",
        || "it stays one to leave".to_owned(),
    );
}

/// How a backend of a test answers logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logins {
    Taken,
    Refused,
    /// Closed without a word.
    Dropped,
}

/// A server whose answer to logins can be set.
fn server_with(logins: &Arc<Mutex<Logins>>) -> Server {
    let logins = Arc::clone(logins);
    Server::start(move |mut end| {
        let now = *logins.lock().unwrap();
        match now {
            Logins::Taken => {
                end.welcome();
                end.echo();
            }
            Logins::Refused => {
                let text = "server is shutting down";
                let farewell = message::error_response("FATAL", "57P01", text);
                end.wire.send(&farewell);
            }
            Logins::Dropped => {}
        }
    })
}

#[test]
fn a_page_that_cannot_be_asked_keeps_no_backend_that_takes_logins_again() {
    let logins = Arc::new(Mutex::new(Logins::Taken));
    let server = server_with(&logins);
    let proxy = Setup::new(&[server.address()])
        .top("health_interval = \"20ms\"")
        .first_backend(&format!("health_url = \"http://{}/\"", closed_port()))
        .start();
    *logins.lock().unwrap() = Logins::Refused;
    proxy.wait_log(0, |line| line.is("backend is about to go"));
    *logins.lock().unwrap() = Logins::Taken;
    proxy.wait_log(0, |line| line.is("backend is there to stay"));
    // The page counts where it can be asked.
    let page = Page::start();
    page.says(503);
    let proxy = Setup::new(&[server.address()])
        .top("health_interval = \"20ms\"")
        .first_backend(&page.setting())
        .start();
    *logins.lock().unwrap() = Logins::Refused;
    proxy.wait_log(0, |line| line.is("backend is about to go"));
    *logins.lock().unwrap() = Logins::Taken;
    page.wait_asked(5);
    let lines = proxy.log().since(0);
    assert!(!lines.iter().any(|line| line.is("backend is there to stay")));
    page.says(200);
    proxy.wait_log(0, |line| line.is("backend is there to stay"));
}

#[test]
fn a_command_ends_a_drain_that_nothing_speaks_for_any_more() {
    let logins = Arc::new(Mutex::new(Logins::Taken));
    let (server, page) = (server_with(&logins), Page::start());
    let proxy = Setup::new(&[server.address()])
        .top(CONTROL)
        .top("health_interval = \"20ms\"")
        .first_backend(&page.setting())
        .start();
    let wait_leaving = |position| {
        proxy.wait_log(position, |line| line.is("backend is about to go"));
        assert_eq!(backend_of(&proxy, 0)["state"], "draining");
    };
    let is_taken = || {
        assert_eq!(
            proxy.ask(&["ready", "pod-0"]),
            (0, "backend pod-0 is active\n".to_owned())
        );
        assert_eq!(backend_of(&proxy, 0)["state"], "active");
    };
    // Its last word was 57P01, and nothing since.
    *logins.lock().unwrap() = Logins::Refused;
    wait_leaving(0);
    assert_eq!(proxy.ask(&["ready", "pod-0"]).0, 1);
    *logins.lock().unwrap() = Logins::Dropped;
    is_taken();
    *logins.lock().unwrap() = Logins::Taken;
    // Its last word was 503, and its page says neither that nor 200 now.
    let position = proxy.log().position();
    page.says(503);
    wait_leaving(position);
    assert_eq!(proxy.ask(&["ready", "pod-0"]).0, 1);
    page.says(404);
    is_taken();
    // What it says anew counts anew.
    let position = proxy.log().position();
    page.says(503);
    wait_leaving(position);
}
