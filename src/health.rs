//! Looks at each backend again and again, off the sessions' path.
//!
//! Two threads a backend, one for its SQL port and one for its page (`health_url`), so
//! that what does not answer delays no news of anything else.  What a look finds is noted
//! where every dial is, in the balancer; who asks whether a backend is up reads it there
//! and never dials.
//!
//! A backend that says that it is about to go, by a 503 of its page or by refusing
//! logins with `admin_shutdown`, is one to leave until it says otherwise (see
//! `balancer::signs`): the server is told, and moves its sessions while they live.

mod url;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::balancer::{BackendId, Freshness, ProbeTarget, Sign, SignNews};
use crate::config::Config;
use crate::connector::{Connector, Probed};
use crate::threads;
use url::{Pages, Told};

/// How late a look may begin or end: a machine under load.
const LATENESS: Duration = Duration::from_millis(1500);

/// How old the news of a backend may be; `None` where no backend is looked at.
#[must_use]
pub(crate) fn freshness(config: &Config) -> Option<Freshness> {
    let interval = config.health_interval;
    (!interval.is_zero()).then(|| Freshness {
        news: interval + LATENESS,
        look: config.connect_timeout + LATENESS,
    })
}

/// Who is asked about a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Witness {
    /// The backend itself, by a dial.
    Port,
    /// Its page.
    Page,
}

/// Dropped when a look that began after the order is over.
pub(crate) type LookOver = Sender<()>;

/// What a prober is told.
enum Order {
    /// Look now.
    Look(Option<LookOver>),
    /// A reload has changed how.
    Settings(Settings),
}

/// How a backend is looked at.
struct Settings {
    interval: Duration,
    /// Of a prober that asks its page.
    pages: Option<Pages>,
}

impl Settings {
    fn new(witness: Witness, config: &Config, connector: &Connector) -> Self {
        Self {
            interval: config.health_interval,
            pages: (witness == Witness::Page).then(|| Pages::new(config, connector.resolver())),
        }
    }
}

/// The probers.  Dropped, it ends them; one that dials is not waited for.
pub(crate) struct Health {
    connector: Arc<Connector>,
    /// Hears of backends that are about to go.
    leaving: Sender<BackendId>,
    /// Each ends its prober when it is dropped.
    probers: Mutex<HashMap<(BackendId, Witness), Sender<Order>>>,
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
        probers.retain(|(id, _), _| configured.iter().any(|target| target.id == *id));
        for target in configured {
            for witness in [Witness::Port, Witness::Page] {
                let settings = || Settings::new(witness, config, &self.connector);
                let who = (target.id, witness);
                if let Some(prober) = probers.get(&who) {
                    // One that looks hears of it afterwards.
                    let _ = prober.send(Order::Settings(settings()));
                } else if witness == Witness::Port || target.health_url.is_some() {
                    match self.start(&target, witness, settings()) {
                        Ok(prober) => drop(probers.insert(who, prober)),
                        Err(error) => {
                            let backend = &*target.name;
                            log::error!(backend, reason:% = error; "backend is not looked at: no thread");
                        }
                    }
                }
            }
        }
    }

    /// Looks at a backend at once: it has ended a session as one that is about to go, or
    /// somebody wants to know, who is told by `over`.
    pub(crate) fn look(&self, id: BackendId, over: Option<&LookOver>) {
        let probers = self.probers.lock();
        for witness in [Witness::Port, Witness::Page] {
            if let Some(prober) = probers.get(&(id, witness)) {
                let _ = prober.send(Order::Look(over.cloned()));
            }
        }
    }

    fn start(
        &self,
        target: &ProbeTarget,
        witness: Witness,
        settings: Settings,
    ) -> std::io::Result<Sender<Order>> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let prober = Prober {
            connector: Arc::clone(&self.connector),
            id: target.id,
            settings,
            leaving: self.leaving.clone(),
        };
        let work = move || prober.run(&receiver);
        match witness {
            Witness::Port => threads::spawn(format!("health-{}", target.name), work)?,
            Witness::Page => threads::spawn(format!("page-{}", target.name), work)?,
        };
        Ok(sender)
    }
}

/// Asks one witness about one backend.
struct Prober {
    connector: Arc<Connector>,
    id: BackendId,
    settings: Settings,
    leaving: Sender<BackendId>,
}

impl Prober {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut over = None;
        loop {
            if let Some(target) = self.connector.balancer().target(self.id) {
                let sign = self.look(&target);
                self.note(&target, sign);
            }
            drop(over.take());
            match orders.recv_timeout(self.settings.interval) {
                Ok(Order::Settings(settings)) => self.settings = settings,
                Ok(Order::Look(asked)) => over = asked,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // Nobody would take back what it said last.
                    let sign = match self.settings.pages {
                        Some(_) => Sign::NoPage,
                        None => Sign::NotAsked,
                    };
                    let _ = self.connector.balancer().note_sign(self.id, sign);
                    return;
                }
            }
        }
    }

    fn look(&self, target: &ProbeTarget) -> Sign {
        match (&self.settings.pages, target.health_url.as_deref()) {
            (Some(pages), Some(url)) => match pages.ask(url) {
                Told::Leaving => Sign::PageLeaves,
                Told::Staying => Sign::PageStays,
                Told::Unknown => Sign::PageSilent,
            },
            (Some(_), None) => Sign::NoPage,
            (None, _) => {
                let _look = self.connector.balancer().begin_look(target.id);
                match self.connector.probe(target) {
                    Probed::Leaving => Sign::RefusesLogins,
                    Probed::Taking => Sign::TakesLogins,
                    Probed::Unknown => Sign::Away,
                }
            }
        }
    }

    fn note(&self, target: &ProbeTarget, sign: Sign) {
        let backend = &*target.name;
        match self.connector.balancer().note_sign(target.id, sign) {
            Some(SignNews::Leaving(reason)) => {
                log::warn!(backend, reason; "backend is about to go");
                // Nobody takes it where the proxy is about to end.
                let _ = self.leaving.send(target.id);
            }
            Some(SignNews::Staying) => log::info!(backend; "backend is there to stay"),
            None => {}
        }
    }
}
