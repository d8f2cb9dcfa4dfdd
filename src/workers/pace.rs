//! How many transfers are worth having under way at once, found by trying.
//!
//! Transfers that wait for a core, ours or a server's, hold their clients and
//! finish no sooner: on two cores 32 at once finish as many a second as four do,
//! and hold each client eight times as long.  Those that wait for a distant
//! server cost nothing, and 32 at once finish 32 times as many.  Which it is shows
//! in the rate: the number doubles where that finishes a quarter more of them a
//! second, and is halved where that costs less.  (Hill climbing on the rate, with
//! a price on the number; the latency alone cannot tell a slow server from a
//! queue.)
//!
//! Where nothing finishes for a while the places are held by transfers that
//! wait, so the number doubles without a measurement.
//!
//! Knows no threads and no clock: it is told.

use std::time::{Duration, Instant};

/// What the search begins with, and its least.
const LEAST: usize = 2;
/// By how much the rate has to grow for twice the number.
const WORTH_DOUBLING: f64 = 1.25;
/// A rate is that of at least so many transfers: of fewer, the two compared
/// would differ by as much by chance.
const LEAST_MEASURED: usize = 8;
/// And of so many for each that is under way.
const MEASURED_EACH: usize = 2;
/// A rate that changes by this much at the same number is another server's, or
/// another load's: what was found before holds no more.
const OTHER_CONDITIONS: f64 = 2.0;
/// Measurements from one trial to the next, after a success and at most.
const PAUSES: (usize, usize) = (2, 32);
/// See [`Pace::look`]; far above a transfer that finds a core.
pub(super) const STANDSTILL: Duration = Duration::from_millis(100);

/// The number of transfers under way, and the search for a better one.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    at_once: usize,
    trial: Option<Trial>,
    window: Window,
    /// The last measurement at this number, outside a trial.
    last_rate: Option<f64>,
    /// Measurements still to come before the next trial.
    pause: usize,
    /// Of those after the next trial that fails.
    next_pause: usize,
    /// The direction of the last trial that failed.
    failed_up: bool,
    /// The last transfer that finished, or the last growth without one.
    last_progress: Option<Instant>,
}

/// Another number that is being tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    before: usize,
    rate_before: f64,
}

impl Pace {
    pub(super) fn new(limit: usize) -> Self {
        let at_once = LEAST.min(limit);
        Self {
            limit,
            at_once,
            trial: None,
            window: Window::new(at_once),
            last_rate: None,
            // So that the first growth waits for one measurement.
            pause: 1,
            next_pause: PAUSES.0,
            failed_up: false,
            last_progress: None,
        }
    }

    /// At most so many from now on.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        if self.at_once > limit || self.at_once < LEAST {
            self.go_to(self.at_once.clamp(LEAST.min(limit), limit));
            self.trial = None;
        }
    }

    /// How many may be under way.
    pub(super) const fn at_once(&self) -> usize {
        self.at_once
    }

    /// A transfer has finished; `saturated`: others wait for its place, so all
    /// places were taken.
    pub(super) fn finished(&mut self, now: Instant, saturated: bool) {
        self.last_progress = Some(now);
        if !saturated {
            // The rate says nothing of the number.
            self.window = Window::new(self.at_once);
            return;
        }
        let Some(rate) = self.window.count(now) else {
            return;
        };
        self.window = Window::next(self.at_once, now);
        match self.trial.take() {
            None => {
                self.pause = self.pause.saturating_sub(1);
                if let Some(last) = self.last_rate.replace(rate)
                    && rate.max(last) > rate.min(last) * OTHER_CONDITIONS
                {
                    (self.pause, self.next_pause) = (0, PAUSES.0);
                }
                if self.pause == 0 {
                    self.begin_trial(rate);
                }
            }
            Some(Trial {
                before,
                rate_before,
            }) => {
                let grown = self.at_once > before;
                let better = if grown {
                    rate >= rate_before * WORTH_DOUBLING
                } else {
                    rate * WORTH_DOUBLING > rate_before
                };
                if better {
                    self.next_pause = PAUSES.0;
                    self.failed_up = !grown;
                    self.begin_trial(rate);
                } else {
                    self.go_to(before);
                    self.failed_up = grown;
                    self.pause = self.next_pause;
                    self.next_pause = (self.next_pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Looks at a queue that is not empty; true where more may start, because
    /// nothing has finished for [`STANDSTILL`].
    pub(super) fn look(&mut self, now: Instant) -> bool {
        let since = *self.last_progress.get_or_insert(now);
        if now.saturating_duration_since(since) < STANDSTILL || self.at_once >= self.limit {
            return false;
        }
        self.last_progress = Some(now);
        self.trial = None;
        self.go_to(self.doubled());
        self.pause = PAUSES.0;
        true
    }

    /// A round begins: what stood still before it was no transfer.
    pub(super) const fn begin(&mut self, now: Instant) {
        self.last_progress = Some(now);
    }

    fn begin_trial(&mut self, rate_before: f64) {
        let (doubled, halved) = (self.doubled(), self.halved());
        let tried = if self.failed_up { halved } else { doubled };
        let other = if self.failed_up { doubled } else { halved };
        let before = self.at_once;
        let number = if tried == before { other } else { tried };
        if number != before {
            self.trial = Some(Trial {
                before,
                rate_before,
            });
            self.go_to(number);
        }
    }

    fn doubled(&self) -> usize {
        (self.at_once * 2).min(self.limit)
    }

    fn halved(&self) -> usize {
        (self.at_once / 2).max(LEAST).min(self.limit)
    }

    fn go_to(&mut self, number: usize) {
        self.at_once = number;
        self.last_rate = None;
        self.window = Window::new(number);
    }
}

/// One measurement of the rate.
#[derive(Debug)]
struct Window {
    /// Transfers that were begun before it.
    to_skip: usize,
    since: Option<Instant>,
    finished: usize,
    wanted: usize,
}

impl Window {
    fn new(at_once: usize) -> Self {
        Self {
            to_skip: at_once,
            since: None,
            finished: 0,
            wanted: (MEASURED_EACH * at_once).max(LEAST_MEASURED),
        }
    }

    /// Goes on at the same number.
    fn next(at_once: usize, since: Instant) -> Self {
        Self {
            to_skip: 0,
            since: Some(since),
            ..Self::new(at_once)
        }
    }

    /// Transfers a second, once enough have finished.
    fn count(&mut self, now: Instant) -> Option<f64> {
        if self.to_skip > 0 {
            self.to_skip -= 1;
            self.since = Some(now);
            return None;
        }
        let since = *self.since.get_or_insert(now);
        self.finished += 1;
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        // Below a clock's tick a rate means nothing.
        let enough = self.finished >= self.wanted && seconds > 0.0;
        enough.then(|| self.finished as f64 / seconds)
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is the test's failure"
)]
mod tests;
