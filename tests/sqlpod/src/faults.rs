//! Faults that a test switches on and off while the pod runs.
//!
//! A rule names a step (one per message that a pod sends in a login, a state
//! query or a restore) and what goes wrong there.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A point at which a fault can strike: before the answer begins, or one
/// message of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(
    missing_docs,
    reason = "each is named after the message that is sent there"
)]
pub enum Step {
    /// The connection was accepted, nothing was read.
    Accept,
    /// The startup packet was read, nothing was answered.
    Startup,
    /// An authentication request other than AuthenticationOk.
    Authentication,
    AuthenticationOk,
    ParameterStatus,
    BackendKeyData,
    LoginReady,
    StateRowDescription,
    StateDataRow,
    StateCommandComplete,
    StateReady,
    RestoreRowDescription,
    RestoreDataRow,
    RestoreCommandComplete,
    RestoreReady,
}

impl Step {
    /// Every step, in the order in which a session passes them.
    pub const ALL: [Self; 15] = [
        Self::Accept,
        Self::Startup,
        Self::Authentication,
        Self::AuthenticationOk,
        Self::ParameterStatus,
        Self::BackendKeyData,
        Self::LoginReady,
        Self::StateRowDescription,
        Self::StateDataRow,
        Self::StateCommandComplete,
        Self::StateReady,
        Self::RestoreRowDescription,
        Self::RestoreDataRow,
        Self::RestoreCommandComplete,
        Self::RestoreReady,
    ];

    /// True up to the first ReadyForQuery; errors are FATAL there.
    #[must_use]
    pub fn is_login(self) -> bool {
        self <= Self::LoginReady
    }

    /// True for the answer to SHOW TRANSFER STATE.
    #[must_use]
    pub fn is_state(self) -> bool {
        (Self::StateRowDescription..=Self::StateReady).contains(&self)
    }
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing; the hit is counted.
    Observe,
    /// The message comes later.
    Delay(Duration),
    /// The message does not come until the rule is gone, or the peer or pod.
    Stall,
    /// An ErrorResponse (SQLSTATE, text) comes instead.
    Refuse(String, String),
    /// A FATAL ErrorResponse (SQLSTATE, text) comes instead, then the end.
    Die(String, String),
    /// The connection ends (FIN) before the message.
    Cut,
    /// The connection is reset (RST) before the message.
    Reset,
    /// Invalid bytes come, as many as the message has.
    Garble,
    /// Each byte comes in a segment of its own.
    OneByteAtATime,
    /// The connection ends (FIN) after the message.
    CloseAfter,
    /// Half of the message comes, then the end (FIN).
    Truncate,
    /// The answer lacks its last column.
    WrongColumnCount,
    /// The answer's columns are called something else.
    WrongColumnNames,
    /// The last column's value is another one.
    WrongKey,
    /// The command tag is another one.
    WrongTag,
    /// The answer has no row.
    MissingRow,
    /// NULLs become empty strings.
    EmptyStringInsteadOfNull,
    /// The answer's row comes twice.
    ExtraRow,
}

impl Fault {
    /// True for faults of a whole answer, found by any step of it.
    fn is_shape(&self) -> bool {
        matches!(
            self,
            Self::WrongColumnCount
                | Self::WrongColumnNames
                | Self::WrongKey
                | Self::WrongTag
                | Self::MissingRow
                | Self::EmptyStringInsteadOfNull
                | Self::ExtraRow
        )
    }
}

/// A fault at a step, for some logins, for so many times.
///
/// As text: `Step:fault[=argument][*times][@token|@client]`, for instance
/// `StateDataRow:stall`, `AuthenticationOk:delay=200ms*3`,
/// `LoginReady:refuse=53300@token`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    step: Step,
    fault: Fault,
    times: Option<u64>,
    token: Option<bool>,
    user: Option<String>,
}

impl Rule {
    /// Strikes each time until cleared.
    #[must_use]
    pub fn new(step: Step, fault: Fault) -> Self {
        Self {
            step,
            fault,
            times: None,
            token: None,
            user: None,
        }
    }

    /// Strikes the next `count` times only.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self {
            times: Some(count),
            ..self
        }
    }

    /// Strikes only sessions that logged in with a revival token (a
    /// transfer's). Never matches `Accept`, where the login is not known yet.
    #[must_use]
    pub fn only_token_logins(self) -> Self {
        Self {
            token: Some(true),
            ..self
        }
    }

    /// Strikes only sessions that logged in without a revival token.
    #[must_use]
    pub fn only_client_logins(self) -> Self {
        Self {
            token: Some(false),
            ..self
        }
    }

    /// Strikes only this user's sessions, so that many cases can run on one
    /// pod at once. Never matches `Accept`.
    #[must_use]
    pub fn only_user(self, user: &str) -> Self {
        Self {
            user: Some(user.to_owned()),
            ..self
        }
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, token) = match text.trim().rsplit_once('@') {
            Some((text, "token")) => (text, Some(true)),
            Some((text, "client")) => (text, Some(false)),
            Some((_, login)) => return Err(format!("unknown login \"{login}\"")),
            None => (text.trim(), None),
        };
        let (text, times) = match text.rsplit_once('*') {
            Some((text, times)) => (
                text,
                Some(
                    times
                        .parse()
                        .map_err(|_| format!("\"{times}\" is no count"))?,
                ),
            ),
            None => (text, None),
        };
        let (step, fault) = text.split_once(':').ok_or("expected Step:fault")?;
        let step = Step::ALL
            .into_iter()
            .find(|known| format!("{known:?}").eq_ignore_ascii_case(step))
            .ok_or_else(|| format!("unknown step \"{step}\""))?;
        let (name, argument) = fault.split_once('=').unwrap_or((fault, ""));
        let fault = match name.to_ascii_lowercase().replace('-', "").as_str() {
            "observe" => Fault::Observe,
            "delay" => {
                let millis = argument.strip_suffix("ms").unwrap_or(argument).parse();
                Fault::Delay(Duration::from_millis(
                    millis.map_err(|_| "delay=MILLISECONDSms")?,
                ))
            }
            "stall" => Fault::Stall,
            "refuse" if argument.len() == 5 => {
                Fault::Refuse(argument.to_owned(), "refused on request".to_owned())
            }
            "die" if argument.len() == 5 => {
                Fault::Die(argument.to_owned(), "ended on request".to_owned())
            }
            "cut" => Fault::Cut,
            "reset" => Fault::Reset,
            "garble" => Fault::Garble,
            "onebyteatatime" => Fault::OneByteAtATime,
            "closeafter" => Fault::CloseAfter,
            "truncate" => Fault::Truncate,
            "wrongcolumncount" => Fault::WrongColumnCount,
            "wrongcolumnnames" => Fault::WrongColumnNames,
            "wrongkey" => Fault::WrongKey,
            "wrongtag" => Fault::WrongTag,
            "missingrow" => Fault::MissingRow,
            "emptystringinsteadofnull" => Fault::EmptyStringInsteadOfNull,
            "extrarow" => Fault::ExtraRow,
            _ => return Err(format!("unknown fault \"{fault}\"")),
        };
        Ok(Self {
            step,
            fault,
            times,
            token,
            user: None,
        })
    }
}

/// Handle to a pod's faults; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<(RuleId, Rule)>,
    next_id: u64,
    hits: BTreeMap<Step, u64>,
    struck: BTreeSet<RuleId>,
}

/// One rule that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(u64);

/// A rule that struck: what to do, and whose rule it was.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) fault: Fault,
    id: RuleId,
}

impl Faults {
    /// Adds a rule that strikes until cleared.
    pub fn set(&self, step: Step, fault: Fault) {
        self.add(Rule::new(step, fault));
    }

    /// Adds a rule; of several that match, the oldest strikes.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.0.state.lock();
        let id = RuleId(state.next_id);
        state.next_id += 1;
        state.rules.push((id, rule));
        id
    }

    /// Removes one rule; what it stalled or delayed goes on.
    pub fn remove(&self, id: RuleId) {
        self.0.state.lock().rules.retain(|(other, _)| *other != id);
        self.0.changed.notify_all();
    }

    /// Waits until this rule has struck; `false` where it has not within
    /// `timeout`.
    #[must_use]
    pub fn wait_struck(&self, id: RuleId, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock();
        while !state.struck.contains(&id) {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return state.struck.contains(&id);
            }
        }
        true
    }

    /// Removes all rules; what is stalled or delayed goes on.
    pub fn clear(&self) {
        self.0.state.lock().rules.clear();
        self.0.changed.notify_all();
    }

    /// Removes the rules of one step; what is stalled there goes on.
    pub fn clear_step(&self, step: Step) {
        self.0
            .state
            .lock()
            .rules
            .retain(|(_, rule)| rule.step != step);
        self.0.changed.notify_all();
    }

    /// How often a rule has struck at this step since the pod's start.
    #[must_use]
    pub fn hits(&self, step: Step) -> u64 {
        self.0.state.lock().hits.get(&step).copied().unwrap_or(0)
    }

    /// Waits until a rule has struck at this step at least once since the
    /// pod's start; `false` where it has not within `timeout`.
    #[must_use]
    pub fn wait_hit(&self, step: Step, timeout: Duration) -> bool {
        self.wait_hits(step, 1, timeout)
    }

    /// Waits until rules have struck `count` times at this step since the
    /// pod's start; `false` where they have not within `timeout`.
    #[must_use]
    pub fn wait_hits(&self, step: Step, count: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock();
        while state.hits.get(&step).copied().unwrap_or(0) < count {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return state.hits.get(&step).copied().unwrap_or(0) >= count;
            }
        }
        true
    }

    /// The rule that strikes when a session sends this step's message.
    pub(crate) fn at(&self, step: Step, token: Option<bool>, user: &str) -> Option<Hit> {
        self.take(token, user, |rule| {
            rule.step == step && !rule.fault.is_shape()
        })
    }

    /// The rule that shapes the whole answer to which this step belongs.
    pub(crate) fn shape(&self, step: Step, token: bool, user: &str) -> Option<Fault> {
        let same = |rule: &Rule| {
            !rule.step.is_login()
                && rule.step.is_state() == step.is_state()
                && rule.fault.is_shape()
        };
        self.take(Some(token), user, same).map(|hit| hit.fault)
    }

    /// `token` is `None` where the kind of login is not known yet.
    fn take(
        &self,
        token: Option<bool>,
        user: &str,
        matches: impl Fn(&Rule) -> bool,
    ) -> Option<Hit> {
        let mut state = self.0.state.lock();
        let (id, rule) = state.rules.iter_mut().find(|(_, rule)| {
            rule.times != Some(0)
                && (rule.token.is_none() || rule.token == token)
                && rule.user.as_deref().is_none_or(|only| only == user)
                && matches(rule)
        })?;
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        let (id, step, fault) = (*id, rule.step, rule.fault.clone());
        *state.hits.entry(step).or_default() += 1;
        state.struck.insert(id);
        self.0.changed.notify_all();
        Some(Hit { fault, id })
    }

    /// True while the rule that struck is still there.
    pub(crate) fn holds(&self, hit: &Hit) -> bool {
        self.0
            .state
            .lock()
            .rules
            .iter()
            .any(|(id, _)| *id == hit.id)
    }
}
