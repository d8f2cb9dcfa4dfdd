//! Every fault at every message, each with the outcome that is promised.
//!
//! The cells are generated: steps times faults.  One round tries a whole wave of
//! them at once, each with a session of its own whose user's name the fault is
//! bound to.  What must come of a cell stands in one table, [`fate`], in the rows
//! of the table of `src/transfer.rs`.

mod clients;
mod logins;
mod servers;
mod tls;

use std::net::TcpStream;

use sqlpod::{Fault, Rule, RuleId, Step};

use crate::support::PATIENCE;
use crate::support::metrics::{ADMIN, wait_quiet};
use crate::support::pods::Pods;
use crate::support::proxy::{Outcome, Proxy, Resources, Round, Setup, Transfer};
use crate::support::wire::{Channel, Wire};

/// The steps of a transfer in their order: what the old server says, then the
/// new one.  `Accept` knows no user and has a test of its own.
const STEPS: [Step; 13] = [
    Step::StateRowDescription,
    Step::StateDataRow,
    Step::StateCommandComplete,
    Step::StateReady,
    Step::Startup,
    Step::AuthenticationOk,
    Step::ParameterStatus,
    Step::BackendKeyData,
    Step::LoginReady,
    Step::RestoreRowDescription,
    Step::RestoreDataRow,
    Step::RestoreCommandComplete,
    Step::RestoreReady,
];

/// What becomes of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Moved,
    /// Moved, and the new server's connection ended with its last word.
    MovedAndLost,
    Kept,
    Lost,
}

/// The promise: the row by the step, the column by the fault.
fn fate(step: Step, fault: &Fault) -> Fate {
    use Fault::{
        CloseAfter, Cut, Delay, Die, Garble, OneByteAtATime, Refuse, Reset, Stall, Truncate,
    };
    match (step, fault) {
        // No failure at all.
        (_, OneByteAtATime | Delay(_)) => Fate::Moved,
        // The state is whole, and no more is asked of the old server.
        (Step::StateReady, CloseAfter) => Fate::Moved,
        (Step::RestoreReady, CloseAfter) => Fate::MovedAndLost,
        // read the state | refusal, ErrorResponse, wrong shape | kept
        // read the state | timeout                             | kept
        (step, Refuse(..) | Stall) if step.is_state() => Fate::Kept,
        // read the state | end, FATAL, bytes that are no message | lost
        (step, Cut | Reset | CloseAfter | Truncate | Die(..) | Garble) if step.is_state() => {
            Fate::Lost
        }
        // dial, log in | anything | kept
        // restore      | anything | kept
        _ => Fate::Kept,
    }
}

impl Fate {
    fn outcome(self) -> Outcome {
        match self {
            Self::Moved | Self::MovedAndLost => Outcome::Success,
            Self::Kept => Outcome::Recoverable,
            Self::Lost => Outcome::Fatal,
        }
    }
}

/// Two pods of one tenant and the proxy before them, with what is needed to see
/// that nothing is left behind.
struct Stage {
    pods: Pods,
    proxy: Proxy,
    sections: String,
    top: String,
    before: Resources,
}

impl Stage {
    /// The last of the sections is `[migration]`.
    fn new(pods: Pods, top: &str, sections: &str) -> Self {
        let top = format!("{ADMIN}\n{top}");
        let proxy = Setup::new(&pods.addresses())
            .top(&top)
            .section(sections)
            .start();
        // What is made at the first use stays.
        let mut first = Guest::arrive(&proxy, "first".to_owned());
        proxy.migrate().assert_all_moved(1);
        first.check();
        let position = proxy.log().position();
        drop(first);
        proxy.wait_log(position, |line| line.is("session closed"));
        wait_quiet(&proxy);
        let before = proxy.resources_at_rest(0);
        Self {
            pods,
            proxy,
            sections: sections.to_owned(),
            top,
            before,
        }
    }

    /// Binds a fault to a guest at the pod that passes the step.
    fn strike<S>(&self, guest: &Guest<S>, step: Step, fault: Fault) -> (sqlpod::Faults, RuleId) {
        let name = match step.is_state() {
            true => guest.home.as_str(),
            false => other(&guest.home),
        };
        let rule = Rule::new(step, fault).only_user(&guest.user);
        let rule = match step.is_state() {
            true => rule,
            false => rule.only_token_logins(),
        };
        let faults = self.pods.named(name).faults();
        let id = faults.add(rule);
        (faults, id)
    }

    /// # Panics
    /// If anything is left of the sessions, which must all have ended: threads,
    /// descriptors, connections, levels, permits.
    fn assert_clean(&self) {
        for pod in self.pods.iter() {
            assert!(pod.wait_connections(0, PATIENCE), "{pod:?} has connections");
        }
        wait_quiet(&self.proxy);
        self.proxy.wait_resources(self.before);
        // With one permit in all, one that was not given back would be missed.
        let one = format!("{}\nworkers = 1", self.sections);
        let setup = Setup::new(&self.pods.addresses())
            .top(&self.top)
            .section(&one);
        let position = self.proxy.log().position();
        self.proxy.reconfigure(&setup.text());
        self.proxy
            .wait_log(position, |line| line.is("configuration reloaded"));
        let mut last = Guest::arrive(&self.proxy, "last".to_owned());
        self.proxy.migrate().assert_all_moved(1);
        last.check();
    }
}

fn other(pod: &str) -> &'static str {
    if pod == "pod-0" { "pod-1" } else { "pod-0" }
}

/// A client with a session that is worth something.
struct Guest<S = TcpStream> {
    user: String,
    wire: Wire<S>,
    home: String,
}

impl Guest {
    fn arrive(proxy: &Proxy, user: String) -> Self {
        let wire = proxy.login(&user);
        Self::settle(user, wire)
    }
}

impl<S: Channel> Guest<S> {
    /// Makes the session worth something.
    fn settle(user: String, mut wire: Wire<S>) -> Self {
        wire.rows(&format!("SET application_name = 'of {user}'"));
        wire.rows("PREPARE successor AS SELECT $1::INT8 + 1");
        let home = wire.value("SELECT sqlpod_name()");
        Self { user, wire, home }
    }

    /// # Panics
    /// Unless the session goes on with its settings and prepared statements, on
    /// the pod where it was seen last.
    fn check(&mut self) {
        let name = self.wire.value("SHOW application_name");
        assert_eq!(name, format!("of {}", self.user));
        assert_eq!(
            self.wire.value("EXECUTE successor(41)"),
            "42",
            "{}",
            self.user
        );
        self.home = self.wire.value("SELECT sqlpod_name()");
    }

    /// # Panics
    /// Unless the session has ended with a FATAL, never with a bare end.
    fn expect_lost(&mut self) {
        let error = self.wire.expect(b'E');
        assert_eq!(error.field('V'), "FATAL", "{}: {error:?}", self.user);
        assert!(
            ["08006", "57P01"].contains(&error.field('C').as_str()),
            "{}: {error:?}",
            self.user
        );
        self.wire.expect_end();
    }

    fn transfer<'a>(&self, round: &'a Round) -> &'a Transfer {
        let mut all = round.transfers.iter();
        let own = all.find(|transfer| transfer.line.get("user") == self.user);
        own.unwrap_or_else(|| panic!("no outcome for {}", self.user))
    }
}
