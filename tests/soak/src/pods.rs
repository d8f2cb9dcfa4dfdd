//! The pods, and who kills them: one at a time, so that there are always others.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use demo::Result;
use parking_lot::Mutex;
use sqlpod::{Config, Pod};

use crate::board::Board;

/// How long after its pod's end a session may be noticed as lost: the log's
/// lines come a little late on a busy machine.
const AFTERMATH: Duration = Duration::from_secs(10);
/// The least and the most milliseconds from one kill to the next.
const BETWEEN_KILLS_MS: std::ops::Range<u64> = 4_000..12_000;
/// The least and the most milliseconds that a pod stays away.
const AWAY_MS: std::ops::Range<u64> = 200..3_000;

/// When a pod was away.
struct Outage {
    pod: String,
    from: Instant,
    until: Option<Instant>,
}

/// All outages so far.
#[derive(Default)]
pub(crate) struct Outages(Mutex<Vec<Outage>>);

impl Outages {
    /// Whether the end of that pod explains a session's end at `at`.
    pub(crate) fn explain(&self, pod: &str, at: Instant) -> bool {
        let all = self.0.lock();
        all.iter()
            .any(|outage| outage.pod == pod && outage.explains(at))
    }

    /// Whether the end of any pod does.
    pub(crate) fn explain_any(&self, at: Instant) -> bool {
        self.0.lock().iter().any(|outage| outage.explains(at))
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }

    fn begin(&self, pod: &str) {
        self.0.lock().push(Outage {
            pod: pod.to_owned(),
            from: Instant::now(),
            until: None,
        });
    }

    fn end(&self) {
        if let Some(last) = self.0.lock().last_mut() {
            last.until = Some(Instant::now());
        }
    }
}

impl Outage {
    fn explains(&self, at: Instant) -> bool {
        at >= self.from && self.until.is_none_or(|until| at < until + AFTERMATH)
    }
}

/// A tenant's pods, in this process.
pub(crate) struct Pods {
    pods: Vec<Pod>,
    configs: Vec<Config>,
}

impl Pods {
    /// Starts `pod-0` and so on over one database.
    pub(crate) fn start(count: usize, database: &Path) -> Result<Self> {
        let mut configs = Vec::new();
        let mut pods = Vec::new();
        for number in 0..count {
            let config = Config::new(&format!("pod-{number}"), database);
            let pod = Pod::start(config.clone())?;
            // It comes back where it was.
            configs.push(config.listen(&pod.address().to_string()));
            pods.push(pod);
        }
        Ok(Self { pods, configs })
    }

    pub(crate) fn addresses(&self) -> Vec<(String, SocketAddr)> {
        let pods = self.pods.iter();
        pods.map(|pod| (pod.name().to_owned(), pod.address()))
            .collect()
    }

    /// Kills and restarts them until the board says stop; gives them back whole.
    pub(crate) fn harass(mut self, board: Arc<Board>, outages: Arc<Outages>) -> JoinHandle<Self> {
        thread::spawn(move || {
            while !board.pause(Duration::from_millis(fastrand::u64(BETWEEN_KILLS_MS))) {
                self.kill_one(&board, &outages);
            }
            self
        })
    }

    /// Nothing happens to them.
    pub(crate) fn leave_alone(self) -> JoinHandle<Self> {
        thread::spawn(move || self)
    }

    fn kill_one(&mut self, board: &Board, outages: &Outages) {
        let victim = fastrand::usize(..self.pods.len());
        let (Some(pod), Some(config)) = (self.pods.get_mut(victim), self.configs.get(victim))
        else {
            return;
        };
        outages.begin(pod.name());
        // As a crash, or as a restart that says so to its clients.
        if fastrand::bool() {
            pod.kill();
        } else {
            pod.stop();
        }
        board.pause(Duration::from_millis(fastrand::u64(AWAY_MS)));
        match Pod::start(config.clone()) {
            Ok(again) => *pod = again,
            Err(error) => board.error(
                None,
                &format!("{} does not come back: {error}", config.name),
            ),
        }
        outages.end();
    }
}
