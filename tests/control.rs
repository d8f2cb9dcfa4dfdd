//! Commands to the running proxy: the binary asks the binary.

use std::path::PathBuf;
use std::process::Output;

use postgres_protocol::message::frontend;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::gate::Gate;
use crate::support::message::{self, VERSION_3_0, built};
use crate::support::metrics::{ADMIN, http_get};
use crate::support::pods::Pods;
use crate::support::poll_kernel;
use crate::support::proxy::{Proxy, Setup, command};
use crate::support::server::Server;
use crate::support::wire::Wire;

/// A proxy with a control socket, and its file for the commands.
struct Controlled {
    pods: Pods,
    proxy: Proxy,
    setup: Setup,
    directory: TempDir,
}

impl Controlled {
    fn start(pods: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let pods = Pods::start(pods);
        let socket = directory.path().join("control.sock");
        let setup = Setup::new(&pods.addresses())
            .top(&format!("control_socket = \"{}\"", socket.display()))
            .top(ADMIN)
            .patient();
        let proxy = setup.start();
        proxy.wait_log(0, |line| line.is("control listening"));
        std::fs::write(directory.path().join("proxy.conf"), setup.text()).unwrap();
        Self {
            pods,
            proxy,
            setup,
            directory,
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("proxy.conf")
    }

    fn ask(&self, arguments: &[&str]) -> (i32, String) {
        let output = command()
            .arg("--config")
            .arg(self.file())
            .args(arguments)
            .output()
            .unwrap();
        said(&output)
    }

    fn ask_json(&self, arguments: &[&str]) -> (i32, Value) {
        let (code, text) = self.ask(&[arguments, &["--json"]].concat());
        let value = serde_json::from_str(&text);
        (
            code,
            value.unwrap_or_else(|error| panic!("{error}: {text}")),
        )
    }
}

fn said(output: &Output) -> (i32, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

#[test]
fn the_status_has_the_keys_that_were_promised() {
    let controlled = Controlled::start(2);
    let _clients: Vec<_> = (0..3).map(|_| controlled.proxy.login("maria")).collect();
    controlled.proxy.migrate().assert_all_moved(3);
    // A place is given back when both directions of its session have let go of it.
    poll_kernel(
        || {
            let (_, body) = http_get(&controlled.proxy, "/status");
            let status: Value = serde_json::from_str(&body).unwrap();
            let backends = status["backends"].as_array().unwrap();
            let sessions = backends
                .iter()
                .filter_map(|backend| backend["sessions"].as_u64());
            sessions.sum::<u64>() == 3
        },
        || "sessions are counted twice".to_owned(),
    );
    let (code, status) = controlled.ask_json(&["status"]);
    assert_eq!(code, 0);
    assert_eq!(status["sessions"], 3);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let backends = status["backends"].as_array().unwrap();
    assert_eq!(backends.len(), 2);
    let address = controlled.pods.addresses()[0].to_string();
    let on_first = backends[0]["sessions"].as_u64().unwrap();
    let expected = json!({
        "name": "pod-0", "address": address, "state": "active", "up": true,
        "sessions": on_first, "held": 0,
    });
    assert_eq!(backends[0], expected);
    let round = json!({
        "round": 1, "trigger": "SIGUSR1", "sessions": 3, "success": 3,
        "recoverable": 0, "fatal": 0, "waiting": 0,
    });
    let rounds = status["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 1);
    for (key, value) in round.as_object().unwrap() {
        assert_eq!(&rounds[0][key], value, "{key}");
    }
    // The same by HTTP.
    let (http, body) = http_get(&controlled.proxy, "/status");
    assert_eq!(http, 200);
    let page: Value = serde_json::from_str(&body).unwrap();
    for key in ["backends", "sessions", "rounds", "version"] {
        assert_eq!(page[key], status[key], "{key}");
    }
    let (code, text) = controlled.ask(&["status"]);
    assert_eq!(code, 0);
    assert!(text.contains("3 of 5000 sessions"), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "{text}"
    );
}

#[test]
fn sessions_are_listed_with_what_keeps_them() {
    let controlled = Controlled::start(2);
    let mut idle = Wire::connect(controlled.proxy.address());
    idle.start(&[
        ("user", "eve\u{1b}[2J\u{9b}31m\u{7f}\u{202e}"),
        ("database", "defaultdb"),
        ("application_name", "billing"),
    ]);
    controlled.proxy.wait_opened(&idle);
    let mut busy = controlled.proxy.login("maria");
    busy.query("BEGIN");
    let (code, sessions) = controlled.ask_json(&["sessions"]);
    assert_eq!(code, 0);
    let sessions = sessions.as_array().unwrap();
    assert_eq!(sessions.len(), 2);
    let states: Vec<_> = sessions.iter().map(|s| &s["state"]).collect();
    assert_eq!(states, ["idle", "transaction"]);
    assert_eq!(sessions[0]["user"], "eve\u{1b}[2J\u{9b}31m\u{7f}\u{202e}");
    assert_eq!(sessions[0]["application"], "billing");
    assert_eq!(sessions[0]["cannot_move_because"], Value::Null);
    assert_eq!(sessions[1]["cannot_move_because"], "open transaction");
    assert!(sessions[1]["transaction_seconds"].is_number());
    let own = busy.socket().local_addr().unwrap().to_string();
    assert_eq!(sessions[1]["client"], own.as_str());
    for format in [&["sessions"] as &[_], &["sessions", "--json"]] {
        let (_, text) = controlled.ask(format);
        assert!(text.contains("open transaction"), "{text}");
        let active = ['\u{1b}', '\u{9b}', '\u{7f}', '\u{202e}'];
        assert!(!text.contains(active), "{text:?}");
    }
    let home = sessions[1]["backend"].as_str().unwrap();
    let (_, here) = controlled.ask_json(&["sessions", "--backend", home]);
    assert_eq!(here.as_array().unwrap().len(), 1);
    let (_, waiting) = controlled.ask_json(&["sessions", "--waiting"]);
    assert_eq!(waiting, json!([]));
    let (code, text) = controlled.ask(&["sessions", "--backend", "nope"]);
    assert_eq!((code, &*text), (1, "there is no backend \"nope\"\n"));
}

#[test]
fn migrate_waits_and_names_those_who_stay() {
    let controlled = Controlled::start(2);
    let _idle = controlled.proxy.login("maria");
    let mut busy = controlled.proxy.login("boris");
    let (code, round) = controlled.ask_json(&["migrate"]);
    assert_eq!((code, &round["success"]), (0, &json!(2)), "{round}");
    busy.query("BEGIN");
    let (code, round) = controlled.ask_json(&["migrate", "--wait", "10ms"]);
    assert_eq!((code, &round["success"]), (1, &json!(1)), "{round}");
    let left = &round["not_moved"][0];
    assert_eq!(left["user"], "boris");
    let reason = left["reason"].as_str().unwrap();
    assert!(reason.starts_with("open transaction"), "{reason}");
    let conn = left["conn"].to_string();
    let (code, text) = controlled.ask(&["migrate", "--conn", &conn, "--wait", "10ms"]);
    assert_eq!(code, 1);
    assert!(
        text.contains("1 sessions, 0 moved, 1 stayed, 0 lost"),
        "{text}"
    );
    assert!(text.contains("boris"), "{text}");
    busy.query("COMMIT");
    let (code, _) = controlled.ask(&["migrate", "--conn", &conn]);
    assert_eq!(code, 0);
    let (code, text) = controlled.ask(&["migrate", "--conn", "999"]);
    assert_eq!((code, &*text), (1, "there is no session 999\n"));
}

#[test]
fn a_backend_is_drained_and_put_back_whatever_a_reload_says() {
    let controlled = Controlled::start(2);
    let proxy = &controlled.proxy;
    let mut clients: Vec<_> = (0..4).map(|_| proxy.login("maria")).collect();
    clients[0].query("BEGIN");
    let home = clients[0].value("SELECT sqlpod_name()");
    // However long the others' moves take.
    let drain = || controlled.ask_json(&["drain", &home, "--wait", "10ms"]);
    poll_kernel(
        || drain().1["sessions"] == 1,
        || "more than the one in a transaction stay".to_owned(),
    );
    let (code, left) = drain();
    assert_eq!((code, &left["sessions"]), (1, &json!(1)), "{left}");
    assert_eq!(left["left"][0]["cannot_move_because"], "open transaction");
    clients[0].query("COMMIT");
    let (code, text) = controlled.ask(&["drain", &home]);
    assert_eq!((code, text), (0, format!("backend {home} is drained\n")));
    for client in &mut clients {
        assert_ne!(client.value("SELECT sqlpod_name()"), home);
    }
    // The file still says active, and said so before: the command's word stands.
    proxy.reconfigure(&controlled.setup.text());
    proxy.wait_log(0, |line| line.is("configuration reloaded"));
    assert_ne!(proxy.login("maria").value("SELECT sqlpod_name()"), home);
    let (code, _) = controlled.ask(&["ready", &home]);
    assert_eq!(code, 0);
    assert_eq!(proxy.login("maria").value("SELECT sqlpod_name()"), home);
    let (code, _) = controlled.ask(&["drain", "nope"]);
    assert_eq!(code, 1);
}

#[test]
fn a_session_can_be_ended() {
    let controlled = Controlled::start(1);
    let mut client = controlled.proxy.login("maria");
    let mut other = controlled.proxy.login("boris");
    let (code, _) = controlled.ask(&["kill", "1"]);
    assert_eq!(code, 0);
    client.expect_error("FATAL", "57P01");
    client.expect_gone();
    assert_eq!(other.value("SELECT 'here'"), "here");
    let closed = controlled
        .proxy
        .wait_log(0, |line| line.is("session closed"));
    assert_eq!(closed.get("reason"), "ended by command");
    let (code, text) = controlled.ask(&["kill", "1"]);
    assert_eq!((code, &*text), (1, "there is no session 1\n"));
}

#[test]
fn a_reload_says_what_came_of_it() {
    let controlled = Controlled::start(1);
    let (code, text) = controlled.ask(&["reload"]);
    let same = "configuration reloaded, it says what it said before\n";
    assert_eq!((code, &*text), (0, same));
    let changed = controlled.setup.clone().top("idle_timeout = \"1h\"");
    let changed = changed.state(0, "draining").text();
    controlled.proxy.write_config(&changed);
    let (code, text) = controlled.ask(&["reload"]);
    let what = "configuration reloaded: idle_timeout, backend pod-0\n";
    assert_eq!((code, &*text), (0, what));
    // The proxy's own file, not the one that the command reads.
    let broken = controlled.setup.clone().top("listne = 1").text();
    controlled.proxy.write_config(&broken);
    let (code, text) = controlled.ask(&["reload"]);
    assert_eq!(code, 1);
    assert!(
        text.starts_with("nothing changed: ") && text.contains("listne"),
        "{text}"
    );
}

#[test]
fn who_cannot_be_asked_is_said() {
    let controlled = Controlled::start(1);
    let Controlled {
        proxy, directory, ..
    } = controlled;
    // A second one finds the socket taken.
    let ask = |arguments: &[&str]| {
        let file = directory.path().join("proxy.conf");
        let output = command().arg("--config").arg(file).args(arguments).output();
        said(&output.unwrap())
    };
    let (code, text) = ask(&[]);
    assert_eq!(code, 2);
    assert!(text.contains("another sqlproxy listens there"), "{text}");
    assert_eq!(ask(&["status"]).0, 0);
    drop(proxy);
    let (code, text) = ask(&["status"]);
    assert_eq!(code, 2, "{text}");
    std::fs::write(
        directory.path().join("proxy.conf"),
        "[[backend]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n",
    )
    .unwrap();
    let (code, text) = ask(&["status"]);
    assert_eq!(code, 2);
    assert!(text.contains("control_socket: expected a path"), "{text}");
}

/// What logs in there would be cut by whoever stops a backend that is called drained.
#[test]
fn a_backend_is_not_drained_while_a_login_is_on_its_way_there() {
    let gate = Gate::default();
    let until = gate.clone();
    let slow = Server::start(move |mut end| {
        until.wait();
        end.welcome();
        end.echo();
    });
    let fast = Server::echoing();
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let setup = Setup::new(&[slow.address(), fast.address()])
        .top(&format!("control_socket = \"{}\"", socket.display()))
        .patient();
    let proxy = setup.start();
    let file = directory.path().join("proxy.conf");
    std::fs::write(&file, setup.text()).unwrap();
    let drain = || {
        let output = command()
            .arg("--config")
            .arg(&file)
            .args(["drain", "pod-0", "--wait", "200ms", "--json"])
            .output();
        let (code, text) = said(&output.unwrap());
        (code, serde_json::from_str::<Value>(&text).unwrap())
    };
    let mut client = Wire::connect(proxy.address());
    client.send(&message::startup(VERSION_3_0, &[("user", "maria")]));
    slow.wait_session();
    let (code, left) = drain();
    assert_eq!((code, &left["arriving"]), (1, &json!(1)), "{left}");
    gate.open();
    client.expect(b'R');
    client.receive_greeting();
    // It is moved as soon as it has arrived.
    proxy.wait_log(0, |line| line.is("transfer finished"));
    assert_eq!(drain().0, 0);
}

#[test]
fn a_session_is_listed_with_what_has_gone_through_it() {
    let controlled = Controlled::start(2);
    let mut client = controlled.proxy.login("maria");
    let numbers = || {
        let (_, sessions) = controlled.ask_json(&["sessions"]);
        [
            "bytes_from_client",
            "bytes_to_client",
            "prepared_statements",
        ]
        .map(|key| sessions[0][key].as_u64().unwrap())
    };
    let [from_client, to_client, prepared] = numbers();
    assert_eq!(prepared, 0);
    let question = message::query("SELECT 1");
    client.send(&question);
    let answer = client.receive_through(b'Z');
    let answered: usize = answer.iter().map(|message| message.body.len() + 5).sum();
    let after = [
        from_client + question.len() as u64,
        to_client + answered as u64,
        0,
    ];
    assert_eq!(numbers(), after);
    let messages = built(|out| {
        for name in ["one", "two", ""] {
            frontend::parse(name, "SELECT 1", [], out)?;
        }
        frontend::close(b'P', "one", out)?;
        frontend::close(b'S', "two", out)?;
        frontend::close(b'S', "", out)?;
        frontend::sync(out);
        Ok(())
    });
    client.send(&messages);
    client.receive_through(b'Z');
    assert_eq!(numbers()[2], 1);
    // Its own, wherever it is.
    controlled.proxy.migrate().assert_all_moved(1);
    assert_eq!(numbers()[2], 1);
}
