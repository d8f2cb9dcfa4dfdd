//! A session as an operator sees it.

use std::sync::Arc;
use std::time::Instant;

use super::Session;
use crate::error::shown;
use crate::forwarder::View;
use crate::metrics::Reason;
use crate::session_name::SessionName;
use crate::workers::LastTransfer;

/// A session as an operator sees it.
pub(crate) struct SessionView {
    /// Its number and its client.
    pub name: Arc<SessionName>,
    /// `application_name`, as a log line would show it.
    pub application: String,
    /// Whether its client has TLS.
    pub client_tls: bool,
    /// Whether its server has.
    pub server_tls: bool,
    /// Where it is.
    pub backend: Arc<str>,
    /// When it was opened.
    pub opened: Instant,
    /// Whether it could be rebuilt if its server went now.
    pub captured: bool,
    /// Whether it is held until a server takes it.
    pub held: bool,
    /// What it does.
    pub forwarding: View,
    /// How its last order to move ended.
    pub last_transfer: Option<LastTransfer>,
    /// Why no order could move it.
    pub immovable: Option<Reason>,
}

impl SessionView {
    /// What stands, or stood last, against its moving.
    #[must_use]
    pub(crate) fn cannot_move_because(&self) -> Option<String> {
        let obstacle = || {
            self.forwarding
                .obstacle
                .map(|obstacle| obstacle.to_string())
        };
        let stayed = || {
            self.last_transfer
                .as_ref()
                .and_then(|last| last.reason.as_ref())
                .map(|reason| reason.text.clone())
        };
        let immovable = self.immovable.as_ref();
        immovable
            .map(|reason| reason.text.clone())
            .or_else(obstacle)
            .or_else(stayed)
    }
}

impl Session {
    /// What it does: that part of [`Self::view`] which is cheap.
    #[must_use]
    pub(crate) fn forwarding(&self) -> View {
        self.forwarder.view()
    }

    /// As an operator sees it.
    #[must_use]
    pub(crate) fn view(&self) -> SessionView {
        let server = self.forwarder.server();
        let application = self.transfer.parameters.lock();
        let application = application.get(b"application_name").unwrap_or_default();
        let application = shown(&String::from_utf8_lossy(application));
        let login = self.config.read().login.method;
        SessionView {
            name: Arc::clone(&self.name),
            application,
            client_tls: self.client.is_encrypted(),
            server_tls: server.stream.is_encrypted(),
            backend: Arc::clone(server.assignment.name()),
            opened: self.opened,
            captured: self.is_captured(),
            held: self.is_held(),
            forwarding: self.forwarder.view(),
            last_transfer: self.last_transfer.lock().clone(),
            immovable: self.transfer.session_transfer(login).err(),
        }
    }
}
