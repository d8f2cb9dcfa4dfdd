//! How many sessions a second a drain moves (`[migration] rate`), or the end of the
//! process ends (`[shutdown] rate`).

use std::time::{Duration, Instant};

/// One session each `1 / rate` seconds, none saved up.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    /// 0: no limit.
    per_second: usize,
    /// When the next one may begin.
    next: Option<Instant>,
}

impl Rate {
    /// From now on; 0: no limit.
    pub(crate) fn set(&mut self, per_second: usize) {
        self.per_second = per_second;
        self.next = None;
    }

    /// Whether the next one has to wait.
    pub(crate) fn is_used_up(&self, now: Instant) -> bool {
        self.per_second > 0 && self.next.is_some_and(|next| now < next)
    }

    /// One more.
    pub(crate) fn take(&mut self, now: Instant) {
        let Ok(per_second) = u32::try_from(self.per_second) else {
            return;
        };
        if let Some(interval) = Duration::from_secs(1).checked_div(per_second) {
            // By the plan, not by the clock, which is looked at less often; but no
            // second of silence is made up for.
            let from = self
                .next
                .map_or(now, |next| next.max(now - interval.max(SLACK)));
            self.next = Some(from + interval);
        }
    }
}

/// As late as a look may come without lowering the rate.
const SLACK: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_a_second_as_are_allowed() {
        let mut rate = Rate::default();
        let start = Instant::now();
        assert!(!rate.is_used_up(start));
        rate.set(50);
        let mut taken = 0;
        // Looked at each 10 ms for two seconds.
        for look in 0..200 {
            let now = start + Duration::from_millis(look * 10);
            while !rate.is_used_up(now) {
                rate.take(now);
                taken += 1;
            }
        }
        assert!((100..=101).contains(&taken), "{taken}");
    }
}
