//! The session, as its hold needs it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Session;
use crate::config::Migration;
use crate::disconnect::DisconnectReason;
use crate::forwarder::Closing;
use crate::hold::HeldSession;
use crate::processor::ProcessorExit;
use crate::session_name::SessionName;
use crate::stream::Stream;
use crate::transfer::{Lost, TransferContext};
use crate::workers::RetryOrder;

impl Session {
    /// Whether it waits for a server.
    #[must_use]
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }
}

impl HeldSession for Session {
    fn name(&self) -> &Arc<SessionName> {
        &self.name
    }

    fn context(&self) -> &TransferContext {
        &self.transfer
    }

    fn client(&self) -> &Stream {
        &self.client
    }

    fn migration(&self) -> Migration {
        self.config.read().migration.clone()
    }

    fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    fn client_left(&self, terminated: bool) {
        let exit = ProcessorExit::ClientLeft { terminated };
        self.set_reason(DisconnectReason::ProcessorExit(exit));
        self.close(Closing::Ended);
    }

    fn lose(&self, lost: Lost) {
        self.set_reason(DisconnectReason::ServerLost(lost));
        self.close(Closing::Ended);
    }

    fn gone_on(&self) {
        if self.must_leave()
            && let Some(session) = self.this.upgrade()
        {
            // It has come back to a backend that is to be left, or a reload came
            // meanwhile.
            let _ = self.missed_by_reload.send(session);
        }
        // For an order that came meanwhile.
        self.retry_order();
    }
}
