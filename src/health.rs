//! Looks at each backend again and again, off the sessions' path.
//!
//! One thread a backend, so that one that does not answer delays no news of the
//! others.  What a look finds is noted where every dial is, in the balancer; who
//! asks whether a backend is up reads it there and never dials.
//!
//! A backend that says that it is about to go, by a 503 at its `health_url` or by
//! refusing logins with `admin_shutdown`, is one to leave until it says otherwise: the
//! server is told, and moves its sessions while they live.

mod url;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::balancer::{BackendId, ProbeTarget};
use crate::config::Config;
use crate::connector::{Connector, Probed};
use url::{Pages, Told};

/// How late a look may be: a machine under load, or a slow answer.
const LATENESS: Duration = Duration::from_millis(1500);

/// How old the news of a backend may be at this `health_interval`; `None` where no
/// backend is looked at.
#[must_use]
pub(crate) fn freshness(interval: Duration) -> Option<Duration> {
    (!interval.is_zero()).then_some(interval + LATENESS)
}

/// What a prober is told.
enum Order {
    /// Look now.
    Look,
    /// A reload has changed how.
    Settings(Settings),
}

/// How a backend is looked at.
struct Settings {
    interval: Duration,
    pages: Pages,
}

impl Settings {
    fn new(config: &Config, connector: &Connector) -> Self {
        Self {
            interval: config.health_interval,
            pages: Pages::new(config, connector.resolver()),
        }
    }
}

/// The probers.  Dropped, it ends them; one that dials is not waited for.
pub(crate) struct Health {
    connector: Arc<Connector>,
    /// Hears of backends that are about to go.
    leaving: Sender<BackendId>,
    /// Each ends its prober when it is dropped.
    probers: Mutex<HashMap<BackendId, Sender<Order>>>,
}

impl Health {
    /// Nobody is looked at yet.
    #[must_use]
    pub(crate) fn new(connector: &Arc<Connector>, leaving: Sender<BackendId>) -> Self {
        Self {
            connector: Arc::clone(connector),
            leaving,
            probers: Mutex::default(),
        }
    }

    /// Looks at every backend of the file each `health_interval`, at once for the first
    /// time; at none where it is zero.  To be called again after a reload.
    pub(crate) fn probe(&self, config: &Config) {
        self.connector.balancer().set_fall(config.health_fall);
        let mut probers = self.probers.lock();
        if config.health_interval.is_zero() {
            probers.clear();
            return;
        }
        let configured = self.connector.balancer().configured();
        probers.retain(|id, _| configured.iter().any(|target| target.id == *id));
        for target in configured {
            match probers.get(&target.id) {
                Some(prober) => {
                    // One that dials hears of it afterwards.
                    let _ = prober.send(Order::Settings(Settings::new(config, &self.connector)));
                }
                None => {
                    let (id, name) = (target.id, Arc::clone(&target.name));
                    match self.start(&target, config) {
                        Ok(prober) => drop(probers.insert(id, prober)),
                        Err(error) => {
                            log::error!(backend = &*name, reason:% = error; "backend is not looked at: no thread");
                        }
                    }
                }
            }
        }
    }

    /// Looks at a backend at once: it has ended a session as one that is about to go.
    pub(crate) fn suspect(&self, id: BackendId) {
        let probers = self.probers.lock();
        if let Some(prober) = probers.get(&id) {
            let _ = prober.send(Order::Look);
        }
    }

    fn start(&self, target: &ProbeTarget, config: &Config) -> std::io::Result<Sender<Order>> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let prober = Prober {
            connector: Arc::clone(&self.connector),
            id: target.id,
            settings: Settings::new(config, &self.connector),
            leaving: self.leaving.clone(),
        };
        thread::Builder::new()
            .name(format!("health-{}", target.name))
            .spawn(move || prober.run(&receiver))?;
        Ok(sender)
    }
}

/// Looks at one backend.
struct Prober {
    connector: Arc<Connector>,
    id: BackendId,
    settings: Settings,
    leaving: Sender<BackendId>,
}

impl Prober {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            if let Some(target) = self.connector.balancer().target(self.id) {
                self.look(&target);
            }
            match orders.recv_timeout(self.settings.interval) {
                Ok(Order::Settings(settings)) => self.settings = settings,
                Ok(Order::Look) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // Nobody would take back what it said last.
                    self.connector.balancer().set_leaving(self.id, false);
                    return;
                }
            }
        }
    }

    fn look(&self, target: &ProbeTarget) {
        let probed = self.connector.probe(target);
        let told = target
            .health_url
            .as_deref()
            .map(|url| self.settings.pages.ask(url));
        let leaving = match (told, probed) {
            (Some(Told::Leaving), _) => Some("its health_url answers 503"),
            (_, Probed::Leaving) => Some("it takes no new sessions and is shutting down"),
            (Some(Told::Staying) | None, Probed::Taking) => None,
            // What it said last stands.
            _ => return,
        };
        let is_news = self
            .connector
            .balancer()
            .set_leaving(target.id, leaving.is_some());
        let backend = &*target.name;
        match leaving {
            Some(reason) if is_news => {
                log::warn!(backend, reason; "backend is about to go");
                // Nobody takes it where the proxy is about to end.
                let _ = self.leaving.send(target.id);
            }
            None if is_news => log::info!(backend; "backend is there to stay"),
            Some(_) | None => {}
        }
    }
}
