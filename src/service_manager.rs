//! What systemd is told, where it has started the proxy (sd_notify(3)), and the sockets
//! that it hands over (sd_listen_fds(3)).

use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// How often the status is told where no watchdog asks for more.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// The listeners that were handed over, in their order; none where the proxy was started
/// otherwise.
///
/// # Errors
/// One of them is no listening TCP socket.
pub(crate) fn inherited_listeners() -> io::Result<Vec<TcpListener>> {
    let mut inherited = ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..inherited.len() {
        listeners.extend(inherited.take_tcp_listener(index)?);
    }
    Ok(listeners)
}

/// Tells it what the process is about; nobody, where it is not there.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    /// How often it wants to hear.
    interval: Option<Duration>,
    heard: Instant,
}

impl ServiceManager {
    /// Whoever has started this process.
    #[must_use]
    pub(crate) fn new() -> Self {
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some();
        // Twice in its time, as sd_watchdog_enabled(3) has it.
        let watchdog = sd_notify::watchdog_enabled().map(|time| time / 2);
        let interval = watchdog.unwrap_or(STATUS_INTERVAL).min(STATUS_INTERVAL);
        Self {
            interval: is_there.then_some(interval),
            heard: Instant::now(),
        }
    }

    /// Clients are served, or the reload is over.
    pub(crate) fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// A reload begins.
    pub(crate) fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
    }

    /// The end begins.
    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// When it has to hear next.
    #[must_use]
    pub(crate) fn next(&self) -> Option<Instant> {
        Some(self.heard + self.interval?)
    }

    /// The thread that calls it goes on; `status` is what an operator reads.
    pub(crate) fn alive(&mut self, now: Instant, status: impl FnOnce() -> String) {
        if self.next().is_some_and(|next| now >= next) {
            self.heard = now;
            self.tell(&[NotifyState::Watchdog, NotifyState::Status(&status())]);
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.interval.is_some()
            && let Err(error) = sd_notify::notify(states)
        {
            log::warn!(reason:% = error; "the service manager is not told");
        }
    }
}
