//! What a dial tells of a backend, and dials for the sake of that alone.

use std::sync::Arc;

use super::Connector;
use crate::balancer::{BackendId, DialNews, ProbeTarget};
use crate::config::Address;
use crate::error::{Error, SqlState};
use crate::socket::ReadDeadline;
use crate::startup::StartupPacket;
use crate::stream::Stream;

/// What a backend says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probed {
    /// It takes sessions.
    Taking,
    /// It takes none any more, and ends those that it has: `admin_shutdown`, as
    /// CockroachDB answers while it drains.
    Leaving,
    /// It could not be asked, or is not ready yet.
    Unknown,
}

impl Connector {
    /// Dials a backend for nobody: up to its first answer, whatever that says,
    /// unless it says that it takes no session now.
    pub(crate) fn probe(&self, target: &ProbeTarget) -> Probed {
        let ProbeTarget {
            id, name, address, ..
        } = target;
        let Ok(read_deadline) = ReadDeadline::new() else {
            return Probed::Unknown;
        };
        let startup = StartupPacket::probe().to_bytes();
        // Noted, and logged where it is news.
        let opened = self.open_noted(*id, name, address, &startup, &read_deadline, None);
        match opened {
            Ok(_) => {
                self.balancer.news().tell();
                Probed::Taking
            }
            Err(Error::ServerRefused { sqlstate, .. })
                if sqlstate == SqlState::ADMIN_SHUTDOWN.0 =>
            {
                Probed::Leaving
            }
            Err(_) => Probed::Unknown,
        }
    }

    /// Says when a backend comes to count as down, and when no longer.
    pub(super) fn tell_down(&self, news: DialNews, backend: &str, address: &Address) {
        match news.down {
            Some(true) => {
                let failures = news.failures;
                log::warn!(backend, address:%, failures; "backend down, it gets no new sessions");
            }
            Some(false) => log::info!(backend, address:%; "backend up"),
            None => {}
        }
    }

    /// Says once, until it changes, that a backend is spoken to in clear although
    /// the file names whom its certificate has to come from.
    pub(super) fn warn_of_clear(
        &self,
        id: BackendId,
        backend: &str,
        address: &str,
        stream: &Stream,
    ) {
        let tls = Arc::clone(&self.settings.read().tls);
        let in_clear = tls.warns_of_clear() && !stream.is_encrypted();
        match (self.balancer.note_clear(id, in_clear), in_clear) {
            (true, true) => log::warn!(
                backend,
                address;
                "backend is spoken to without TLS: it refuses TLS or shows a certificate that \
                 ca_file does not know, and sslmode = \"prefer\" allows that"
            ),
            (true, false) => log::info!(backend, address; "backend is spoken to with TLS again"),
            (false, _) => {}
        }
    }
}
