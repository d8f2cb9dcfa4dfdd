//! Faults during a client's own login, of its server and of itself.

use std::net::TcpStream;
use std::thread;

use sqlpod::{Auth, Config, Fault, Rule, Step};

use crate::support::message;
use crate::support::metrics::{ADMIN, wait_quiet};
use crate::support::pods::Pods;
use crate::support::proxy::{Proxy, Resources, Setup};
use crate::support::wire::{Channel, Received, Wire};
use crate::support::{PATIENCE, soon};

/// The first answer of each pod has to come within the one, the whole login
/// within the other, so that both are tried.
const LIMITS: &str = "connect_timeout = \"2s\"\nhandshake_timeout = \"6s\"";

const STEPS: [Step; 6] = [
    Step::Startup,
    Step::Authentication,
    Step::AuthenticationOk,
    Step::ParameterStatus,
    Step::BackendKeyData,
    Step::LoginReady,
];

/// How a login ends for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Login {
    In,
    /// A FATAL with this SQLSTATE, then the end.
    Told(String),
    /// In, and told by a FATAL that the server has gone.
    InAndTold,
}

fn faults_of(step: Step) -> Vec<Fault> {
    let text = || "on purpose".to_owned();
    let mut faults = vec![
        Fault::Cut,
        Fault::Reset,
        Fault::Stall,
        Fault::Refuse("XX000".to_owned(), text()),
        // Not ready for anyone: the next pod is tried.
        Fault::Refuse("57P03".to_owned(), text()),
    ];
    if step != Step::Startup {
        faults.extend([
            Fault::Garble,
            Fault::OneByteAtATime,
            Fault::CloseAfter,
            Fault::Truncate,
        ]);
    }
    faults
}

/// With the fault on every pod.
fn expected(step: Step, fault: &Fault) -> Login {
    let first_answer = matches!(step, Step::Startup | Step::Authentication);
    let told = |sqlstate: &str| Login::Told(sqlstate.to_owned());
    match fault {
        Fault::OneByteAtATime => Login::In,
        Fault::CloseAfter if step == Step::LoginReady => Login::InAndTold,
        // It had answered, and is this client's server.
        Fault::CloseAfter => told("08006"),
        Fault::Refuse(code, _) if first_answer && code == "57P03" => told("08001"),
        // The server's own words.
        Fault::Refuse(code, _) => told(code),
        // All are tried, none answers.
        _ if first_answer => told("08001"),
        _ => told("08006"),
    }
}

fn finish_login<S: Channel>(wire: &mut Wire<S>) -> Login {
    loop {
        let message = wire.receive();
        match message.tag {
            b'R' if message.body == [0, 0, 0, 3] => {
                // The proxy may have lost the server by now.
                let _ = wire.try_send(&message::password("secret"));
            }
            b'R' | b'S' | b'K' => {}
            b'Z' => break,
            b'E' => {
                assert_eq!(message.field('V'), "FATAL", "{message:?}");
                wire.expect_gone();
                return Login::Told(message.field('C'));
            }
            _ => panic!("{message:?}"),
        }
    }
    if wire.try_send(&message::query("SELECT 'in'")).is_err() {
        return Login::InAndTold;
    }
    let mut answer = Vec::new();
    loop {
        match wire.receive_by(soon()) {
            Received::Message(message) if message.tag == b'Z' => {
                assert_eq!(answer, ['T', 'D', 'C']);
                return Login::In;
            }
            Received::Message(message) if message.tag == b'E' => {
                assert_eq!(message.field('C'), "08006", "{message:?}");
                assert_eq!(answer, []);
                return Login::InAndTold;
            }
            Received::Message(message) => answer.push(message.tag as char),
            end => panic!("{end:?} behind {answer:?}"),
        }
    }
}

/// Pods that ask for a password, and the proxy before them.
pub(super) struct Door<S> {
    pods: Pods,
    proxy: Proxy,
    connect: fn(&Proxy) -> Wire<S>,
    before: Resources,
}

impl<S: Channel> Door<S> {
    /// Open to all of `users`, who `connect` like this; with the pods as `adapt`
    /// makes them, and the proxy with these `sections`.
    pub(super) fn new(
        users: &[String],
        adapt: impl Fn(Config) -> Config,
        sections: &str,
        connect: fn(&Proxy) -> Wire<S>,
    ) -> Self {
        let pods = Pods::start_with(2, |config| {
            let config = adapt(config.auth(Auth::Password).user("first", "secret"));
            users
                .iter()
                .fold(config, |config, user| config.user(user, "secret"))
        });
        let proxy = Setup::new(&pods.addresses())
            .top(&format!("{ADMIN}\n{LIMITS}"))
            .section(sections)
            .start();
        let mut wire = connect(&proxy);
        assert_eq!(log_in(&mut wire, "first"), Login::In);
        drop(wire);
        proxy.wait_log(0, |line| line.is("session closed"));
        wait_quiet(&proxy);
        let before = proxy.resources_at_rest(0);
        Self {
            pods,
            proxy,
            connect,
            before,
        }
    }

    fn connect(&self) -> Wire<S> {
        (self.connect)(&self.proxy)
    }

    /// # Panics
    /// If anything is left of the clients, who must all have gone.
    fn assert_clean(&self) {
        for pod in self.pods.iter() {
            assert!(pod.wait_connections(0, PATIENCE), "{pod:?} has connections");
        }
        wait_quiet(&self.proxy);
        self.proxy.wait_resources(self.before);
        assert_eq!(log_in(&mut self.connect(), "first"), Login::In);
    }
}

/// Logs in with a password, and tells how that ends.
fn log_in<S: Channel>(wire: &mut Wire<S>, user: &str) -> Login {
    wire.send(&message::startup(message::VERSION_3_0, &[("user", user)]));
    finish_login(wire)
}

fn plain_door(users: &[String]) -> Door<TcpStream> {
    Door::new(
        users,
        |config| config,
        "",
        |proxy| Wire::connect(proxy.address()),
    )
}

#[test]
fn every_fault_of_a_server_in_a_login_is_told_to_the_client() {
    check_servers(plain_door);
}

pub(super) fn check_servers<S: Channel>(door: impl FnOnce(&[String]) -> Door<S>) {
    let cells: Vec<_> = STEPS
        .into_iter()
        .flat_map(|step| faults_of(step).into_iter().map(move |fault| (step, fault)))
        .map(|(step, fault)| (format!("{step:?} {fault:?}").replace('"', ""), step, fault))
        .collect();
    let users: Vec<_> = cells.iter().map(|(user, ..)| user.clone()).collect();
    let door = door(&users);
    for pod in door.pods.iter() {
        for (user, step, fault) in &cells {
            let rule = Rule::new(*step, fault.clone()).only_user(user);
            pod.faults().add(rule);
        }
    }
    thread::scope(|scope| {
        for (user, step, fault) in &cells {
            let door = &door;
            scope.spawn(move || {
                let ended = log_in(&mut door.connect(), user);
                assert_eq!(ended, expected(*step, fault), "{user}");
            });
        }
    });
    door.assert_clean();
}

/// What a client does with one of its own messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misdeed {
    LeavesBefore,
    ResetsBefore,
    StopsBefore,
    LeavesWithin,
    ResetsWithin,
    StopsWithin,
    SendsGarbage,
    SendsByteByByte,
}

const MISDEEDS: [Misdeed; 8] = [
    Misdeed::LeavesBefore,
    Misdeed::ResetsBefore,
    Misdeed::StopsBefore,
    Misdeed::LeavesWithin,
    Misdeed::ResetsWithin,
    Misdeed::StopsWithin,
    Misdeed::SendsGarbage,
    Misdeed::SendsByteByByte,
];

/// Does it with `message`; `None` where the client has gone.
fn misbehave<S: Channel>(mut wire: Wire<S>, misdeed: Misdeed, message: &[u8]) -> Option<Login> {
    let half = message.len() / 2;
    match misdeed {
        Misdeed::LeavesBefore => return None,
        Misdeed::ResetsBefore => {
            wire.reset();
            return None;
        }
        Misdeed::LeavesWithin => {
            wire.send(&message[..half]);
            return None;
        }
        Misdeed::ResetsWithin => {
            wire.send(&message[..half]);
            wire.reset();
            return None;
        }
        Misdeed::StopsBefore => {}
        Misdeed::StopsWithin => wire.send(&message[..half]),
        // As a startup packet, one of 4 GiB; as a message, one of no known type.
        Misdeed::SendsGarbage => wire.send(&[0xff; 5]),
        Misdeed::SendsByteByByte => message.iter().for_each(|byte| wire.send(&[*byte])),
    }
    Some(finish_login(&mut wire))
}

fn check_client<S: Channel>(door: &Door<S>, at_password: bool, misdeed: Misdeed) {
    let name = format!("{misdeed:?}");
    let startup = message::startup(message::VERSION_3_0, &[("user", &name)]);
    let mut wire = door.connect();
    let ended = if at_password {
        wire.send(&startup);
        assert_eq!(wire.expect(b'R').body, [0, 0, 0, 3]);
        misbehave(wire, misdeed, &message::password("secret"))
    } else {
        misbehave(wire, misdeed, &startup)
    };
    let expected = match misdeed {
        Misdeed::SendsByteByByte => Some(Login::In),
        Misdeed::SendsGarbage | Misdeed::StopsBefore | Misdeed::StopsWithin => {
            Some(Login::Told("08P01".to_owned()))
        }
        _ => None,
    };
    assert_eq!(ended, expected, "{name}, at the password: {at_password}");
}

#[test]
fn no_fault_of_a_client_in_its_login_leaves_anything_behind() {
    check_clients(plain_door);
}

pub(super) fn check_clients<S: Channel>(door: impl FnOnce(&[String]) -> Door<S>) {
    let users: Vec<_> = MISDEEDS
        .iter()
        .map(|misdeed| format!("{misdeed:?}"))
        .collect();
    let door = door(&users);
    thread::scope(|scope| {
        for at_password in [false, true] {
            for misdeed in MISDEEDS {
                let door = &door;
                scope.spawn(move || check_client(door, at_password, misdeed));
            }
        }
    });
    door.assert_clean();
}
