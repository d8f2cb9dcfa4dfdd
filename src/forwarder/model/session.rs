//! A session of the model: the two processors' loops, transfers and orders.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use super::net::{Net, Read, is_cut, request_frames, response_frames};
use crate::exchange::Exchange;
use crate::forwarder::{
    Closed, Closing, Direction, Forwarder, Interrupt, NotParked, Ordered, Ready, ResponseAdmission,
    Resumed, Suspension, Ticket,
};
use crate::sync::{Condvar, Mutex};
use crate::workers::{LastTransfer, RetryOrder, WorkerPermit, Workers};

/// A moment that never comes.
fn never() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// What became of an order.
#[derive(Default)]
pub(super) struct Outcome {
    told: Mutex<bool>,
    changed: Condvar,
    /// Requests that a server had got when it was carried out, and one more.
    requests_before: AtomicUsize,
}

impl Outcome {
    pub(super) fn wait(&self) {
        let mut told = self.told.lock();
        while !*told {
            self.changed.wait(&mut told);
        }
    }

    /// How many requests had gone to a server; `None` where it was not carried
    /// out.
    pub(super) fn requests_before(&self) -> Option<usize> {
        self.requests_before.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// An order; its end is its outcome.
pub(super) struct Order {
    outcome: Arc<Outcome>,
    workers: Arc<Workers>,
    queued: Arc<AtomicBool>,
    session: Weak<dyn RetryOrder>,
}

impl Ticket for Order {
    type Permit = WorkerPermit;

    fn try_start(&self) -> Option<WorkerPermit> {
        self.workers
            .take_or_queue(&self.queued, &self.session, false)
    }

    fn may_start(&self) -> bool {
        self.workers.has_room(false)
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let twice = std::mem::replace(&mut *self.outcome.told.lock(), true);
        assert!(!twice, "an order is told of twice");
        self.outcome.changed.notify_all();
    }
}

/// What a transfer makes of a suspended session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Keep,
    /// And the answer to its own query is still to come.
    KeepLate,
    Move,
    /// The processors do not stop in time.
    TooLate,
    /// It never begins.
    Drop,
}

pub(super) struct Model {
    pub(super) net: Net,
    pub(super) forwarder: Arc<Forwarder<usize, Order>>,
    workers: Arc<Workers>,
    transfers: &'static [Transfer],
    this: Weak<Model>,
}

/// The read deadline of a model, which its forwarder must not own.
struct ReadDeadline(Weak<Model>);

impl Interrupt for ReadDeadline {
    fn expire(&self) {
        if let Some(model) = self.0.upgrade() {
            model.net.expire();
        }
    }

    fn clear(&self) {
        if let Some(model) = self.0.upgrade() {
            model.net.clear();
        }
    }
}

impl RetryOrder for Model {
    fn retry_order(&self) {
        if let Some(ready) = self.forwarder.retry_order() {
            self.start_transfer(ready);
        }
    }

    fn note_transfer(&self, _: LastTransfer) {}
}

impl Model {
    /// A session whose transfers end in every way there is.
    pub(super) fn start(script: &[&[u8]], workers: &Arc<Workers>) -> Arc<Self> {
        const ALL: &[Transfer] = &[
            Transfer::Keep,
            Transfer::KeepLate,
            Transfer::Move,
            Transfer::Move,
            Transfer::TooLate,
            Transfer::Drop,
        ];
        Self::start_with(script, workers, ALL)
    }

    /// A session whose transfers wait for the processors and keep it.
    pub(super) fn start_plain(script: &[&[u8]], workers: &Arc<Workers>) -> Arc<Self> {
        Self::start_with(script, workers, &[Transfer::Keep])
    }

    fn start_with(
        script: &[&[u8]],
        workers: &Arc<Workers>,
        transfers: &'static [Transfer],
    ) -> Arc<Self> {
        let model = Arc::new_cyclic(|this| {
            let interrupt = Arc::new(ReadDeadline(Weak::clone(this)));
            Self {
                net: Net::new(script),
                forwarder: Forwarder::new(Exchange::new(), Arc::new(0), interrupt),
                workers: Arc::clone(workers),
                transfers,
                this: Weak::clone(this),
            }
        });
        for direction in [Direction::Request, Direction::Response] {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                // Closed or at an end: the scenario knows which it must be.
                let _ = match direction {
                    Direction::Request => model.requests(),
                    Direction::Response => model.responses(),
                };
                model.forwarder.exited(direction);
            });
        }
        model
    }

    // ---- the processors: the calls of `processor`, in its order -------------

    fn written(&self, direction: Direction, inside: bool) {
        if let Some(ready) = self.forwarder.written(direction, inside) {
            self.start_transfer(ready);
        }
    }

    fn requests(&self) -> Result<(), Closed> {
        let forwarder = &self.forwarder;
        let mut server = forwarder.server();
        let mut buffer = Vec::new();
        let (mut inside, mut unscanned) = (false, false);
        self.written(Direction::Request, false);
        loop {
            if !unscanned {
                match self.net.read_requests(&mut buffer, inside) {
                    Read::Bytes => {}
                    Read::End => return Ok(()),
                    Read::DeadlinePast => {
                        if let Some(ready) = forwarder.park_request()? {
                            self.start_transfer(ready);
                        }
                        continue;
                    }
                }
            }
            let frames = request_frames(&buffer);
            let admitted = forwarder.admit_request(&frames, &buffer, &mut server)?;
            unscanned = admitted < buffer.len();
            let bytes: Vec<_> = buffer.drain(..admitted).collect();
            if !self.net.to_server(*server, &bytes) {
                return Ok(());
            }
            inside = is_cut(&bytes);
            self.written(Direction::Request, inside);
        }
    }

    fn responses(&self) -> Result<(), Closed> {
        let forwarder = &self.forwarder;
        let mut server = forwarder.server();
        let mut buffer = Vec::new();
        let (mut inside, mut unscanned) = (false, false);
        self.written(Direction::Response, false);
        loop {
            let mut resumed = None;
            if !unscanned {
                match self.net.read_answers(*server, &mut buffer, inside) {
                    Read::Bytes => {}
                    Read::End => return Ok(()),
                    Read::DeadlinePast => {
                        match forwarder.park_response(&mut buffer, &mut server)? {
                            None => continue,
                            some => resumed = some,
                        }
                    }
                }
            }
            unscanned = false;
            if resumed.is_none() {
                let (frames, count) = response_frames(&buffer);
                if count == 0 {
                    continue;
                }
                match forwarder.admit_response(&frames, count, &mut buffer, &mut server)? {
                    ResponseAdmission::Forward => {
                        let bytes: Vec<_> = buffer.drain(..count).collect();
                        if !self.net.to_client(&bytes) {
                            return Ok(());
                        }
                        inside = is_cut(&bytes);
                    }
                    ResponseAdmission::Resumed(given) => resumed = Some(given),
                }
            }
            if let Some(resumed) = resumed {
                buffer = resumed.leftover;
                unscanned = !buffer.is_empty();
                inside = false;
                let to_client = resumed.to_client;
                if !to_client.is_empty() && !self.net.to_client(&to_client) {
                    return Ok(());
                }
                if resumed.late_responses > 0 {
                    self.written(Direction::Response, false);
                    forwarder.late_response_discarded();
                }
            }
            self.written(Direction::Response, inside);
        }
    }

    // ---- transfers ---------------------------------------------------------

    fn start_transfer(&self, ready: Ready<usize, Order>) {
        if let Some(model) = self.this.upgrade() {
            thread::spawn(move || {
                let served = model.net.served() + 1;
                let seen = &ready.ticket.outcome.requests_before;
                seen.store(served, Ordering::Relaxed);
                model.carry_out(ready.suspension);
                drop(ready.ticket);
                drop(ready.permit);
                model.retry_order();
            });
        }
    }

    fn carry_out(&self, suspension: Suspension<usize, Order>) {
        let transfer = match self.transfers {
            // Nothing to draw: schedules can be counted out.
            &[transfer] => transfer,
            transfers => transfers[thread_rng().gen_range(0..transfers.len())],
        };
        let deadline = match transfer {
            Transfer::Drop => return,
            Transfer::TooLate => Instant::now(),
            _ => never(),
        };
        match suspension.wait_parked(deadline) {
            Ok(()) => {}
            Err(NotParked::Closed | NotParked::Timeout) => {
                return suspension.resume_kept(Resumed::default());
            }
        }
        self.net.own();
        let old = suspension.server();
        let mut leftover = suspension.take_leftover();
        if transfer == Transfer::Move {
            match self.net.take_unasked(leftover) {
                Ok(to_client) => return self.swap(suspension, to_client),
                Err(begun) => leftover = begun,
            }
        }
        self.net.disown(*old);
        suspension.resume_kept(Resumed {
            leftover,
            late_responses: usize::from(transfer == Transfer::KeepLate),
            ..Resumed::default()
        });
    }

    fn swap(&self, suspension: Suspension<usize, Order>, to_client: Vec<u8>) {
        let old = suspension.server();
        let new = *old + 1;
        self.net.disown(new);
        let resumed = Resumed {
            to_client,
            ..Resumed::default()
        };
        match suspension.resume_moved(Arc::new(new), resumed) {
            Ok(was) => assert_eq!(was, old, "swapped meanwhile by another"),
            Err((given_back, _)) => {
                assert_eq!(*given_back, new);
                assert!(self.forwarder.closing().is_some(), "refused while open");
            }
        }
    }

    // ---- for the scenarios -------------------------------------------------

    /// Gives an order.
    pub(super) fn order(&self) -> Arc<Outcome> {
        let outcome = Arc::<Outcome>::default();
        let order = Order {
            outcome: Arc::clone(&outcome),
            workers: Arc::clone(&self.workers),
            queued: Arc::default(),
            session: Weak::clone(&self.this) as Weak<dyn RetryOrder>,
        };
        // Replaced or refused, an order ends by being dropped.
        if let Ok(Ordered {
            ready: Some(ready), ..
        }) = self.forwarder.order_move(order, Instant::now())
        {
            self.start_transfer(ready);
        }
        outcome
    }

    /// Takes an order back, unless it is about to be carried out.
    pub(super) fn withdraw(&self, outcome: &Arc<Outcome>) {
        let is_mine = |order: &Order| Arc::ptr_eq(&order.outcome, outcome);
        drop(self.forwarder.withdraw(u64::MAX, is_mine));
    }

    /// Waits until the request processor holds a batch back.
    pub(super) fn wait_holding(&self) {
        while !self.forwarder.state.lock().holding_batch {
            thread::yield_now();
        }
    }

    /// Closes the session as its owner does.
    pub(super) fn close(&self) {
        drop(self.forwarder.close(Closing::Ended));
        self.net.shut();
    }

    pub(super) fn has_exited(&self, direction: Direction) -> bool {
        self.forwarder.wait_exited(direction, Instant::now())
    }

    /// Waits for both processors' end.
    pub(super) fn wait_ended(&self) {
        for direction in [Direction::Request, Direction::Response] {
            assert!(self.forwarder.wait_exited(direction, never()));
        }
    }
}
