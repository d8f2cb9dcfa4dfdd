//! What systemd is told, where it has started the proxy (sd_notify(3)), and the sockets
//! that it hands over (sd_listen_fds(3)).

use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::threads;

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

/// Messages on their way to it; what finds no room is told with the next status.
const MAX_MESSAGES: usize = 16;
/// For the last of them, before the process ends.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// Tells it what the process is about; nobody, where it is not there.  By a thread of its
/// own: one that does not read its socket stops nobody.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    reader: Option<Reader>,
    heard: Instant,
}

/// The way there.
#[derive(Debug)]
struct Reader {
    /// How often it wants to hear.
    interval: Duration,
    messages: Sender<String>,
    /// Closed when all of them are told.
    told: Receiver<()>,
}

fn tell_all(messages: &Receiver<String>) {
    for message in messages {
        if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
            log::warn!(reason:% = error; "the service manager is not told");
        }
    }
}

impl ServiceManager {
    /// Whoever has started this process.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(crate) fn new() -> io::Result<Self> {
        let heard = Instant::now();
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self {
                reader: None,
                heard,
            });
        }
        // Twice in its time, as sd_watchdog_enabled(3) has it.
        let watchdog = sd_notify::watchdog_enabled().map(|time| time / 2);
        let interval = watchdog.unwrap_or(STATUS_INTERVAL).min(STATUS_INTERVAL);
        let (messages, received) = crossbeam_channel::bounded(MAX_MESSAGES);
        let (telling, told) = crossbeam_channel::bounded(0);
        threads::spawn("notify".to_owned(), move || {
            tell_all(&received);
            drop(telling);
        })?;
        let reader = Reader {
            interval,
            messages,
            told,
        };
        Ok(Self {
            reader: Some(reader),
            heard,
        })
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
        let reader = self.reader.as_ref()?;
        Some(self.heard + reader.interval)
    }

    /// The thread that calls it goes on; `status` is what an operator reads.
    pub(crate) fn alive(&mut self, now: Instant, status: impl FnOnce() -> String) {
        if self.next().is_some_and(|next| now >= next) {
            self.heard = now;
            self.tell(&[NotifyState::Watchdog, NotifyState::Status(&status())]);
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if let Some(Reader { messages, .. }) = &self.reader {
            let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
            let _ = messages.try_send(lines.join("\n"));
        }
    }
}

impl Drop for ServiceManager {
    /// Waits a moment until all is told: the process's end would take the last with it,
    /// which says that it is wanted.
    fn drop(&mut self) {
        if let Some(Reader { messages, told, .. }) = self.reader.take() {
            drop(messages);
            let _ = told.recv_timeout(LAST_PATIENCE);
        }
    }
}
