//! A process's log, read along: lines to wait for.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

pub(crate) use demo::log_line::Line;

/// A process's output, read on a thread of its own and kept.
#[derive(Clone, Default)]
pub(crate) struct Log {
    shared: Arc<(Mutex<Content>, Condvar)>,
}

#[derive(Default)]
struct Content {
    lines: Vec<Line>,
    ended: bool,
}

impl Log {
    /// Reads `output` to its end.
    pub(crate) fn read(output: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let shared = Arc::clone(&log.shared);
        std::thread::spawn(move || {
            let (content, changed) = &*shared;
            let mut output = BufReader::new(output);
            let mut raw = Vec::new();
            while matches!(output.read_until(b'\n', &mut raw), Ok(1..)) {
                let line = Line::parse(String::from_utf8_lossy(&raw).trim_end());
                content.lock().unwrap().lines.push(line);
                changed.notify_all();
                raw.clear();
            }
            content.lock().unwrap().ended = true;
            changed.notify_all();
        });
        log
    }

    /// How many lines there are: a place from which to look on.
    pub(crate) fn position(&self) -> usize {
        self.shared.0.lock().unwrap().lines.len()
    }

    /// All lines from `position` on.
    pub(crate) fn since(&self, position: usize) -> Vec<Line> {
        self.shared.0.lock().unwrap().lines[position..].to_vec()
    }

    /// Waits for a line at or after `position`; `None` at the deadline, or when
    /// the output has ended without one.
    pub(crate) fn wait(
        &self,
        position: usize,
        deadline: Instant,
        wanted: impl Fn(&Line) -> bool,
    ) -> Option<Line> {
        let (content, changed) = &*self.shared;
        let mut content = content.lock().unwrap();
        let mut seen = position;
        loop {
            if let Some(line) = content.lines[seen..].iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            seen = content.lines.len();
            let left = deadline.checked_duration_since(Instant::now())?;
            if content.ended {
                return None;
            }
            content = changed.wait_timeout(content, left).unwrap().0;
        }
    }

    /// Waits for the end of the output; false at the deadline.
    pub(crate) fn wait_end(&self, deadline: Instant) -> bool {
        let (content, changed) = &*self.shared;
        let mut content = content.lock().unwrap();
        while !content.ended {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            content = changed.wait_timeout(content, left).unwrap().0;
        }
        true
    }

    pub(crate) fn text(&self) -> String {
        let lines = self.since(0);
        let raw: Vec<_> = lines.iter().map(|line| line.raw.as_str()).collect();
        raw.join("\n")
    }
}
