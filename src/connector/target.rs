//! Logins of the proxy's own: for a session that moves, and as the proxy's own user.

use std::sync::Arc;
use std::time::Instant;

use super::{CONNECTING, Connected, Connector};
use crate::authentication::{Login, OwnAnswer, OwnLogin, log_in};
use crate::balancer::{BackendId, NoTarget, Target};
use crate::dialect::{Credentials, SessionState};
use crate::error::{Error, Peer, SqlState};
use crate::metrics::Event;
use crate::scram::Secret;
use crate::socket::ReadDeadline;
use crate::startup::StartupPacket;

impl Connector {
    /// A connection of the proxy's own user, which `startup` names: to the first backend
    /// that answers, logged in.
    ///
    /// # Errors
    /// [`Error::NoBackend`], [`Error::NoBackendReached`], or why it is not let in.
    pub(crate) fn connect_own(
        &self,
        startup: &StartupPacket,
        database: &str,
        read_deadline: &Arc<ReadDeadline>,
        deadline: Instant,
    ) -> Result<Connected, Error> {
        let packet = startup.to_bytes();
        let mut connected = self.connect_once(&packet, read_deadline, deadline)?;
        let passfile = self.settings.read().passfile.clone();
        let user = startup.get(b"user").unwrap_or_default();
        let address = connected.assignment.address();
        let password = passfile.as_ref();
        let password = password.and_then(|file| file.find(address, database.as_bytes(), user));
        let own = OwnLogin {
            given: "none that the file of [login] has for it",
            user,
            answer: password.map_or(OwnAnswer::None, OwnAnswer::Password),
        };
        log_in(&mut connected.server, &connected.first, &own, deadline)?;
        Ok(connected)
    }

    /// A connection for the transfer of a session that leaves `own`, where that is given,
    /// logged in by what `startup` has for `state`, by the password that the proxy has for
    /// it, or by what its client has `proven`: the targets in the balancer's order, until
    /// one lets it in; with TLS, where the session has it now (`encrypted`).  Each of them
    /// has half of the time that is left, so that one that hangs leaves some for the others.
    ///
    /// # Errors
    /// The last target's failure, or that there is no target at all.
    pub(crate) fn log_in_target(
        &self,
        Search {
            leaves,
            prefers,
            encrypted,
            tried,
        }: Search<'_>,
        startup: &StartupPacket,
        (state, proven): (&dyn SessionState, Option<&Secret>),
        read_deadline: &Arc<ReadDeadline>,
        round_started: Instant,
        deadline: Instant,
    ) -> Result<LoggedIn, TargetError> {
        let before = tried.len();
        let mut last = None;
        let packet = startup.to_bytes();
        let passfile = self.settings.read().passfile.clone();
        let user = startup.get(b"user").unwrap_or_default();
        let database = startup.get(b"database").filter(|name| !name.is_empty());
        let database = database.unwrap_or(user);
        loop {
            let Target { assignment, others } =
                match self
                    .balancer
                    .pick_target(leaves, prefers, tried, round_started)
                {
                    Ok(target) => target,
                    Err(no_target) => return Err(last.unwrap_or(TargetError::None(no_target))),
                };
            let share = share_of_one(Instant::now(), deadline, others);
            let name = Arc::clone(assignment.name());
            let password = passfile.as_ref();
            let password =
                password.and_then(|file| file.find(assignment.address(), database, user));
            let own = OwnLogin {
                given: state.login_by(),
                user,
                answer: match state.credentials() {
                    Credentials::None => OwnAnswer::None,
                    Credentials::Passfile => password.map_or(OwnAnswer::None, OwnAnswer::Password),
                    Credentials::Proven => proven.map_or(OwnAnswer::None, OwnAnswer::Scram),
                },
            };
            if tried.len() > before {
                self.metrics.count(Event::DialRetry);
            }
            let id = assignment.id();
            tried.push(id);
            if encrypted {
                // It may have begun to speak TLS.
                self.in_clear.forget(assignment.address());
            }
            let logged_in = self
                .open(assignment, &packet, read_deadline, share)
                .and_then(|mut connected| {
                    let Connected { server, first, .. } = &mut connected;
                    if encrypted && !server.stream().is_encrypted() {
                        let what = "it has no TLS, which the session has where it is";
                        return Err(Error::protocol(Peer::Server, CONNECTING, what));
                    }
                    let login = log_in(server, first, &own, share)?;
                    Ok(LoggedIn {
                        connected,
                        login,
                        deadline: share,
                    })
                });
            match logged_in {
                Ok(logged_in) => return Ok(logged_in),
                Err(error) => {
                    if others > 0 && matches!(error, Error::Timeout { .. }) {
                        self.balancer.note_slow(id);
                    }
                    last = Some(TargetError::Failed {
                        backend: name,
                        error,
                    });
                }
            }
            if Instant::now() >= deadline {
                return Err(last.unwrap_or(TargetError::None(NoTarget::NoneLeft)));
            }
        }
    }
}

/// Until when one target may take, which begins now, where `others` are left behind it:
/// half of the time.  Equal parts would be too short for a healthy one among many.
fn share_of_one(now: Instant, deadline: Instant, others: usize) -> Instant {
    let left = deadline.saturating_duration_since(now);
    match others {
        0 => deadline,
        _ => now + left / 2,
    }
}

/// A connection on which the session is to be restored.
pub(crate) struct LoggedIn {
    /// The connection.
    pub connected: Connected,
    /// What its server has said at the login.
    pub login: Login,
    /// Until when this target may take.
    pub deadline: Instant,
}

/// Which targets come into question.
pub(crate) struct Search<'a> {
    /// The backend that the session leaves; `None`: it may come back to its own.
    pub leaves: Option<BackendId>,
    /// The first to be tried, whoever has fewer sessions.
    pub prefers: Option<BackendId>,
    /// Only with TLS, since the session has it now.
    pub encrypted: bool,
    /// Those that have been tried, which are not again.
    pub tried: &'a mut Vec<BackendId>,
}

/// Why no connection for a transfer could be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// There is none to try.
    #[error("{0}")]
    None(NoTarget),
    /// The last one that was tried.
    #[error("{backend}: {error}")]
    Failed {
        /// Its name.
        backend: Arc<str>,
        /// How it failed.
        error: Error,
    },
}

impl TargetError {
    /// Whether another try may end otherwise: nobody is there, or not ready.  A server that
    /// refuses the login itself does so the next time as well.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::None(_) => true,
            Self::Failed { error, .. } => match error {
                Error::Io { .. } | Error::Closed { .. } | Error::Timeout { .. } => true,
                Error::ServerRefused { sqlstate, .. } => SqlState::is_not_ready(sqlstate),
                _ => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_target_has_time_enough_however_many_others_there_are() {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(8);
        let seconds = |others| (share_of_one(now, deadline, others) - now).as_secs();
        assert_eq!([0, 1, 2, 9].map(seconds), [8, 4, 4, 4]);
        assert_eq!(share_of_one(deadline, now, 3), deadline);
    }
}
