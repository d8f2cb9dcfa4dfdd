//! Log lines on their way to stderr.
//!
//! Whoever logs puts a line into a bounded queue and goes on; one thread writes.
//! So a stderr that nobody reads stops neither a session nor the end of the process:
//! what does not fit is dropped and counted, and the count is written when there is
//! room again.  What is repeated is counted by the same thread's clock.
//!
//! A line is written at once where none was a moment ago; else it waits for that moment's
//! end, together with those that come meanwhile.  A thousand connections a second would
//! else wake the thread two thousand times.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};

use super::repeats::{Counted, Repeats};
use crate::threads;

/// Lines that wait, together: some ten seconds of a busy proxy.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Lines that are written together, but for a longer one alone: what a pipe takes in one
/// piece (POSIX's PIPE_BUF, 4 KiB on Linux), so that another process' lines do not come
/// between.
const BATCH_BYTES: usize = 4 * 1024;
/// Between two writes.  Nobody who reads a log sees it.
const REST: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// Lines that found no room since the last one that was told.
    dropped: u64,
    /// The thread holds lines that it has not written yet.
    writing: bool,
    /// It waits for some.
    awaited: bool,
    repeats: Repeats,
    /// The process is about to end.
    ending: bool,
}

impl Queue {
    /// No further line finds room in the next write.
    fn is_batch(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }
}

/// Lines that were not written, and deserve one.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// They found no room.
    Dropped(u64),
    /// They repeat another.
    Counted(Counted),
}

/// The queue; see the module.
#[derive(Debug, Default)]
pub(super) struct LogWriter {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl LogWriter {
    /// Starts the thread that writes by `write`, one or more whole lines each time.
    /// `tell` makes the line that says how many were not written.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(
        tell: fn(&Unwritten) -> String,
        write: impl Fn(&[u8]) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let writer = Arc::new(Self::default());
        let own = Arc::clone(&writer);
        threads::spawn("log".to_owned(), move || {
            let mut batch = Vec::new();
            loop {
                own.next(tell, &mut batch);
                write(&batch);
                own.rest();
            }
        })?;
        Ok(writer)
    }

    /// Takes one line, or drops it.
    fn push(&self, line: &[u8]) {
        let mut queue = self.queue.lock();
        if queue.bytes + line.len() > QUEUE_BYTES {
            queue.dropped += 1;
            return;
        }
        let was_batch = queue.is_batch();
        queue.bytes += line.len();
        queue.lines.push_back(line.into());
        if std::mem::take(&mut queue.awaited) || was_batch != queue.is_batch() {
            self.changed.notify_all();
        }
    }

    /// Whether an event of this kind is to be written; else it is counted, and its line
    /// comes later.
    pub(super) fn admit(&self, kind: (&'static str, String), level: Level) -> bool {
        let mut queue = self.queue.lock();
        let awaited = queue.repeats.next_due();
        let admitted = queue.repeats.admit(kind, level, Instant::now());
        if awaited != queue.repeats.next_due() {
            self.changed.notify_all();
        }
        admitted
    }

    /// Waits until every line is written, or until `deadline`.
    pub(super) fn flush(&self, deadline: Instant) {
        let mut queue = self.queue.lock();
        queue.ending = true;
        self.changed.notify_all();
        let pending = |queue: &mut Queue| {
            !queue.lines.is_empty() || queue.writing || queue.repeats.next_due().is_some()
        };
        self.changed.wait_while_until(&mut queue, pending, deadline);
    }

    /// The next lines; the last ones count as written.
    fn next(&self, tell: fn(&Unwritten) -> String, batch: &mut Vec<u8>) {
        batch.clear();
        batch.shrink_to(BATCH_BYTES);
        let mut queue = self.queue.lock();
        queue.writing = false;
        loop {
            // Behind what found room before, as soon as there is some again.
            let dropped = match queue.lines.is_empty() || queue.bytes < QUEUE_BYTES / 2 {
                true => std::mem::take(&mut queue.dropped),
                false => 0,
            };
            let ending = queue.ending;
            let unwritten = match dropped {
                0 => {
                    let counted = queue.repeats.take_counted(Instant::now(), ending);
                    counted.map(Unwritten::Counted)
                }
                count => Some(Unwritten::Dropped(count)),
            };
            if let Some(unwritten) = unwritten {
                queue.writing = true;
                drop(queue);
                batch.extend(tell(&unwritten).into_bytes());
                return;
            }
            let fits = |batch: &[u8], line: &[u8]| {
                batch.is_empty() || batch.len() + line.len() <= BATCH_BYTES
            };
            while queue.lines.front().is_some_and(|line| fits(batch, line)) {
                let line = queue.lines.pop_front().unwrap_or_default();
                queue.bytes -= line.len();
                batch.extend(line);
            }
            if !batch.is_empty() {
                queue.writing = true;
                return;
            }
            self.changed.notify_all();
            queue.awaited = true;
            match queue.repeats.next_due() {
                Some(due) => {
                    self.changed.wait_until(&mut queue, due);
                }
                None => self.changed.wait(&mut queue),
            }
            queue.awaited = false;
        }
    }

    /// Lets lines gather for a moment, or until there are enough, unless it is the last.
    fn rest(&self) {
        let until = Instant::now() + REST;
        let gathers = |queue: &mut Queue| !queue.ending && !queue.is_batch();
        let mut queue = self.queue.lock();
        self.changed.wait_while_until(&mut queue, gathers, until);
    }
}

/// Writes a line to stderr.  One that is closed or broken takes no line, and there is
/// nobody left to tell.
pub(super) fn write_stderr(line: &[u8]) {
    let _ = try_write_stderr(line);
}

/// Another process may have made it non-blocking.
fn try_write_stderr(mut line: &[u8]) -> io::Result<()> {
    let mut stderr = io::stderr();
    while !line.is_empty() {
        match stderr.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => line = line.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The queue as env_logger's target: each call is one whole line.
pub(super) struct Target(pub(super) Arc<LogWriter>);

impl Write for Target {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn what_finds_no_room_is_dropped_and_told_behind_what_did() {
        let (sender, written) = crossbeam_channel::unbounded();
        let (go_on, gate) = crossbeam_channel::bounded::<()>(0);
        let writer = LogWriter::start(
            |unwritten| match unwritten {
                Unwritten::Dropped(count) => format!("dropped {count}"),
                Unwritten::Counted(counted) => format!("repeated {}", counted.count),
            },
            move |line| {
                // Blocked until the test lets it go on for good.
                let _ = gate.recv();
                let _ = sender.send(String::from_utf8(line.to_vec()).unwrap());
            },
        )
        .unwrap();
        let line = vec![b'x'; QUEUE_BYTES / 4];
        writer.push(b"first");
        while !writer.queue.lock().writing {
            std::thread::yield_now();
        }
        for _ in 0..7 {
            writer.push(&line);
        }
        assert_eq!(writer.queue.lock().dropped, 3);
        writer.flush(Instant::now());
        drop(go_on);
        let mut lines = Vec::new();
        while lines.len() < 6 {
            let line: String = written.recv_timeout(PATIENCE).unwrap();
            lines.push(line.get(..9).unwrap_or(&line).to_owned());
        }
        let x = "xxxxxxxxx";
        assert_eq!(lines, ["first", x, x, x, "dropped 3", x]);
        while writer.admit(("command refused", String::new()), Level::Info) {}
        writer.push(b"last");
        writer.flush(Instant::now() + PATIENCE);
        let ends: Vec<String> = written.try_iter().collect();
        assert!(ends.contains(&"last".to_owned()), "{ends:?}");
        assert!(ends.contains(&"repeated 1".to_owned()), "{ends:?}");
    }
}
