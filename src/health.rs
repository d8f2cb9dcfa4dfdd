//! Looks at each backend again and again, off the sessions' path.
//!
//! One thread a backend, so that one that does not answer delays no news of the
//! others.  What a look finds is noted where every dial is, in the balancer; who
//! asks whether a backend is up reads it there and never dials.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::balancer::{BackendId, ProbeTarget};
use crate::connector::Connector;

/// How late a look may be: a machine under load, or a slow answer.
const LATENESS: Duration = Duration::from_millis(1500);

/// How old the news of a backend may be at this `health_interval`; `None` where no
/// backend is looked at.
#[must_use]
pub(crate) fn freshness(interval: Duration) -> Option<Duration> {
    (!interval.is_zero()).then_some(interval + LATENESS)
}

/// The probers.  Dropped, it ends them; one that dials is not waited for.
pub(crate) struct Health {
    connector: Arc<Connector>,
    /// Each ends its prober when it is dropped.
    probers: Mutex<HashMap<BackendId, Sender<Duration>>>,
}

impl Health {
    /// Nobody is looked at yet.
    #[must_use]
    pub(crate) fn new(connector: &Arc<Connector>) -> Self {
        Self {
            connector: Arc::clone(connector),
            probers: Mutex::default(),
        }
    }

    /// Looks at every backend of the file each `interval`, at once for the first
    /// time; at none where it is zero.  To be called again after a reload.
    pub(crate) fn probe(&self, interval: Duration) {
        let mut probers = self.probers.lock();
        if interval.is_zero() {
            probers.clear();
            return;
        }
        let configured = self.connector.balancer().configured();
        probers.retain(|id, _| configured.iter().any(|target| target.id == *id));
        for target in configured {
            match probers.get(&target.id) {
                Some(prober) => {
                    // The new interval; a prober that dials hears of it afterwards.
                    let _ = prober.try_send(interval);
                }
                None => {
                    let (id, name) = (target.id, Arc::clone(&target.name));
                    match self.start(target, interval) {
                        Ok(prober) => drop(probers.insert(id, prober)),
                        Err(error) => {
                            log::error!(backend = &*name, reason:% = error; "backend is not looked at: no thread");
                        }
                    }
                }
            }
        }
    }

    fn start(&self, target: ProbeTarget, interval: Duration) -> std::io::Result<Sender<Duration>> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let connector = Arc::clone(&self.connector);
        thread::Builder::new()
            .name(format!("health-{}", target.name))
            .spawn(move || run(&connector, &target, interval, &receiver))?;
        Ok(sender)
    }
}

fn run(
    connector: &Connector,
    target: &ProbeTarget,
    mut interval: Duration,
    news: &Receiver<Duration>,
) {
    loop {
        connector.probe(target);
        match news.recv_timeout(interval) {
            Ok(new) => interval = new,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
