//! Client, servers and the connections between them and the proxy: queues
//! behind one lock.
//!
//! A request is one byte, the constants below; an answer is one byte too, its
//! type, with a ReadyForQuery as its status.  Client and server act within the
//! calls that deliver to them, so that they need no threads: when an answer is
//! read is the scheduler's choice all the same.

use std::collections::VecDeque;

use shuttle::rand::{Rng, thread_rng};

use crate::exchange::UnnamedEffect;
use crate::forwarder::{Direction, Interrupt, RequestFrame, ResponseFrame};
use crate::message::{BackendTag, FrontendTag, TransactionStatus};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// A Query.
pub(super) const QUERY: u8 = b'Q';
/// A Query that opens a transaction.
pub(super) const BEGIN: u8 = b'b';
/// A Query that ends it.
pub(super) const COMMIT: u8 = b'e';
/// A Query that begins a COPY FROM STDIN.
pub(super) const COPY: u8 = b'o';
/// The first part of a Query with a long text.
pub(super) const HEAD: u8 = b'h';
/// Its second part.
pub(super) const TAIL: u8 = b'+';
pub(super) const PARSE: u8 = FrontendTag::PARSE.0;
pub(super) const SYNC: u8 = FrontendTag::SYNC.0;
pub(super) const COPY_DATA: u8 = FrontendTag::COPY_DATA.0;
pub(super) const COPY_DONE: u8 = FrontendTag::COPY_DONE.0;

/// A long row that has begun, and its rest.
const ROW: u8 = BackendTag::DATA_ROW.0;
const ROW_REST: u8 = b'+';
/// Part of the header of a notice, and the rest of the notice.
const NOTICE_BEGUN: u8 = b'(';
const NOTICE: u8 = b')';
const READY_IDLE: u8 = b'i';
const READY_OPEN: u8 = b't';
const COMPLETE: u8 = BackendTag::COMMAND_COMPLETE.0;
const COPY_IN: u8 = BackendTag::COPY_IN_RESPONSE.0;
const PARSED: u8 = BackendTag::PARSE_COMPLETE.0;

/// How an interruptible read ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Bytes,
    DeadlinePast,
    End,
}

#[derive(Default)]
struct State {
    /// The read deadline lies in the past: the flag of it, and the sockets'
    /// timeout.
    past: bool,
    smallest_timeout: bool,
    /// By direction: whether its thread is in a receive, and whether a signal
    /// has come since it began.
    receiving: [bool; 2],
    interrupted: [bool; 2],
    /// Both connections are a transfer's.
    owned: bool,

    /// What the client has yet to send, batch by batch.
    script: VecDeque<Vec<u8>>,
    requests: VecDeque<u8>,
    /// All that was sent and has not come to a server, in order.
    requests_due: VecDeque<u8>,
    /// ReadyForQuery and CopyInResponse that the client has to get.
    replies_due: usize,
    /// No request comes any more.
    requests_ended: bool,
    client_stalled: bool,
    /// Somebody waits for the stalled client.
    stuck: bool,
    client_cut: bool,

    /// The server that has the session, and what it has sent.
    server: usize,
    answers: VecDeque<u8>,
    /// All that a server has sent and that has not come to the client.
    answers_due: VecDeque<u8>,
    /// What the server would send if it were not held.
    held: Option<Vec<u8>>,
    served: usize,
    open: bool,
    copying: bool,
    /// The last request or answer that was forwarded was cut.
    request_cut: bool,
    answer_cut: bool,
    server_cut: bool,
}

/// Everything outside the proxy.
#[derive(Default)]
pub(super) struct Net {
    /// What `ReadDeadline` has its lock for.
    deadline: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The steps of `ReadDeadline`, between which everything else may happen.
impl Interrupt for Net {
    fn expire(&self) {
        let _deadline = self.deadline.lock();
        if std::mem::replace(&mut self.state.lock().past, true) {
            return;
        }
        self.state.lock().smallest_timeout = true;
        let mut state = self.state.lock();
        // A signal to a thread that does anything else is lost.
        state.interrupted = state.receiving;
        drop(state);
        self.changed.notify_all();
    }

    fn clear(&self) {
        let _deadline = self.deadline.lock();
        self.state.lock().smallest_timeout = false;
        self.state.lock().past = false;
    }
}

impl State {
    /// The client sends its next batch if it has heard all it waits for.
    fn send(&mut self) {
        if self.replies_due > 0 {
            return;
        }
        if let Some(batch) = self.script.pop_front() {
            self.send_batch(&batch);
        }
    }

    fn send_batch(&mut self, batch: &[u8]) {
        for &request in batch {
            self.requests.push_back(request);
            self.requests_due.push_back(request);
            let is_answered = !matches!(request, HEAD | PARSE | COPY_DATA);
            self.replies_due += usize::from(is_answered);
        }
    }

    fn answer(&mut self, answer: &[u8]) {
        if let Some(held) = &mut self.held {
            held.extend(answer);
            return;
        }
        // Nothing comes within a message.
        let begun = self.answers_due.back() == Some(&NOTICE_BEGUN) && answer != [NOTICE];
        let rest = begun.then_some(NOTICE);
        for &answer in rest.iter().chain(answer) {
            self.answers.push_back(answer);
            self.answers_due.push_back(answer);
        }
    }

    /// The server reads a request.
    fn serve(&mut self, request: u8) {
        assert_eq!(self.requests_due.pop_front(), Some(request), "out of order");
        self.served += 1;
        self.request_cut = request == HEAD;
        match request {
            BEGIN => self.open = true,
            COMMIT => self.open = false,
            COPY => self.copying = true,
            COPY_DONE => self.copying = false,
            _ => {}
        }
        let ready = if self.open { READY_OPEN } else { READY_IDLE };
        match request {
            HEAD | COPY_DATA => {}
            PARSE => self.answer(&[PARSED]),
            SYNC => self.answer(&[ready]),
            COPY => self.answer(&[COPY_IN]),
            TAIL => self.answer(&[ROW, ROW_REST, COMPLETE, ready]),
            _ => self.answer(&[COMPLETE, ready]),
        }
    }

    /// The client reads an answer.
    fn hear(&mut self, answer: u8) {
        assert_eq!(self.answers_due.pop_front(), Some(answer), "out of order");
        self.answer_cut = matches!(answer, ROW | NOTICE_BEGUN);
        if matches!(answer, READY_IDLE | READY_OPEN | COPY_IN) {
            self.replies_due -= 1;
            self.send();
        }
    }

    fn is_answered(&self) -> bool {
        self.script.is_empty() && self.replies_due == 0
    }
}

/// The frames of requests that a processor has read.
pub(super) fn request_frames(requests: &[u8]) -> Vec<RequestFrame> {
    let frame = |(start, &request)| RequestFrame {
        tag: match request {
            BEGIN | COMMIT | COPY | HEAD => FrontendTag::QUERY,
            tag => FrontendTag(tag),
        },
        start,
        unnamed: UnnamedEffect::None,
    };
    let begins = |&(_, &request): &(usize, &u8)| request != TAIL;
    requests
        .iter()
        .enumerate()
        .filter(begins)
        .map(frame)
        .collect()
}

/// The frames of answers that a processor has read, and how many bytes of them
/// may go: a header in part stays.
pub(super) fn response_frames(answers: &[u8]) -> (Vec<ResponseFrame>, usize) {
    let mut frames = Vec::new();
    for &answer in answers {
        let (tag, status) = match answer {
            READY_IDLE => (b'Z', Some(TransactionStatus::Idle)),
            READY_OPEN => (b'Z', Some(TransactionStatus::InTransaction)),
            NOTICE => (BackendTag::NOTICE_RESPONSE.0, None),
            ROW_REST | NOTICE_BEGUN => continue,
            tag => (tag, None),
        };
        let tag = BackendTag(tag);
        frames.push(ResponseFrame {
            tag,
            status,
            unread: false,
        });
    }
    let held = usize::from(answers.last() == Some(&NOTICE_BEGUN));
    (frames, answers.len() - held)
}

/// Whether forwarding `bytes` leaves a message in two.
pub(super) fn is_cut(bytes: &[u8]) -> bool {
    matches!(bytes.last(), Some(&(HEAD | ROW)))
}

impl Net {
    /// A client that sends each batch when it has the replies to those before.
    pub(super) fn new(script: &[&[u8]]) -> Self {
        let net = Self::default();
        let mut state = net.state.lock();
        state.script = script.iter().map(|batch| batch.to_vec()).collect();
        state.send();
        drop(state);
        net
    }

    fn wait(&self, until: impl Fn(&mut State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while !until(&mut state) {
            self.changed.wait(&mut state);
        }
        state
    }

    // ---- for the processors ------------------------------------------------

    fn read(
        &self,
        direction: Direction,
        into: &mut Vec<u8>,
        inside: bool,
        queue: impl Fn(&mut State) -> (&mut VecDeque<u8>, bool),
    ) -> Read {
        let thread = direction as usize;
        loop {
            if !inside && self.state.lock().past {
                return Read::DeadlinePast;
            }
            // Between this look and the receive everything may happen as well.
            let mut state = self.state.lock();
            let ends_by_itself = state.smallest_timeout && !inside;
            state.receiving[thread] = true;
            state.interrupted[thread] = false;
            let read = loop {
                let owned = state.owned;
                let (bytes, ended) = queue(&mut state);
                if !bytes.is_empty() {
                    assert!(!owned, "read from a transfer's connection");
                    let count = thread_rng().gen_range(1..=bytes.len());
                    into.extend(bytes.drain(..count));
                    break Some(Read::Bytes);
                }
                if ended {
                    break Some(Read::End);
                }
                if ends_by_itself || state.interrupted[thread] {
                    break None;
                }
                self.changed.wait(&mut state);
            };
            state.receiving[thread] = false;
            if let Some(read) = read {
                return read;
            }
        }
    }

    pub(super) fn read_requests(&self, into: &mut Vec<u8>, inside: bool) -> Read {
        self.read(Direction::Request, into, inside, |state| {
            (&mut state.requests, state.requests_ended)
        })
    }

    pub(super) fn read_answers(&self, server: usize, into: &mut Vec<u8>, inside: bool) -> Read {
        self.read(Direction::Response, into, inside, |state| {
            assert!(state.server_cut || state.server == server, "an old server");
            (&mut state.answers, state.server_cut)
        })
    }

    /// False where the connection has ended.
    pub(super) fn to_server(&self, server: usize, requests: &[u8]) -> bool {
        let mut state = self.state.lock();
        if state.server_cut {
            return false;
        }
        assert!(!state.owned, "written to a transfer's server");
        assert_eq!(state.server, server, "written to an old server");
        requests.iter().for_each(|&request| state.serve(request));
        drop(state);
        self.changed.notify_all();
        true
    }

    /// False where the connection has ended.
    pub(super) fn to_client(&self, answers: &[u8]) -> bool {
        let mut state = self.wait(|state| {
            if state.client_stalled && !state.stuck {
                state.stuck = true;
                self.changed.notify_all();
            }
            !state.client_stalled || state.client_cut
        });
        if state.client_cut {
            return false;
        }
        assert!(!state.owned, "written to the client in a transfer");
        answers.iter().for_each(|&answer| state.hear(answer));
        drop(state);
        self.changed.notify_all();
        true
    }

    // ---- for the transfer --------------------------------------------------

    /// Both connections are the caller's.
    pub(super) fn own(&self) {
        self.assert_at_rest();
        self.state.lock().owned = true;
    }

    /// They are the processors' again, on `server`.
    pub(super) fn disown(&self, server: usize) {
        let mut state = self.state.lock();
        state.owned = false;
        state.server = server;
    }

    /// What the server of a transfer has sent unasked, behind `leftover`.
    ///
    /// # Errors
    /// The last message is not whole.
    pub(super) fn take_unasked(&self, mut leftover: Vec<u8>) -> Result<Vec<u8>, Vec<u8>> {
        leftover.extend(self.state.lock().answers.drain(..));
        if leftover.last() == Some(&NOTICE_BEGUN) {
            return Err(leftover);
        }
        Ok(leftover)
    }

    /// Nothing is asked that is not answered, and nothing forwarded in part.
    pub(super) fn assert_at_rest(&self) {
        let state = self.state.lock();
        let unasked = |&answer: &u8| matches!(answer, NOTICE_BEGUN | NOTICE);
        assert!(!state.open, "a transaction is open");
        assert!(!state.copying, "a COPY is under way");
        assert!(!state.request_cut, "a request is cut");
        assert!(!state.answer_cut, "an answer is cut");
        assert!(state.answers_due.iter().all(unasked), "an answer is due");
    }

    // ---- for the scenarios -------------------------------------------------

    /// The server sends a notice, in two pieces.
    pub(super) fn send_unasked(&self) {
        self.state.lock().answer(&[NOTICE_BEGUN]);
        self.changed.notify_all();
        let mut state = self.state.lock();
        // An answer that came meanwhile has completed it.
        if state.answers_due.back() == Some(&NOTICE_BEGUN) {
            state.answer(&[NOTICE]);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The client sends more, whatever it still waits for.
    pub(super) fn append(&self, batch: &[u8]) {
        self.state.lock().send_batch(batch);
        self.changed.notify_all();
    }

    /// From here on the server answers nothing.
    pub(super) fn hold_answers(&self) {
        self.state.lock().held = Some(Vec::new());
    }

    pub(super) fn release_answers(&self) {
        let mut state = self.state.lock();
        if let Some(held) = state.held.take() {
            state.answer(&held);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// From here on the client reads nothing.
    pub(super) fn stall_client(&self) {
        self.state.lock().client_stalled = true;
    }

    /// Waits until an answer waits for the stalled client.
    pub(super) fn wait_stuck(&self) {
        drop(self.wait(|state| state.stuck));
    }

    pub(super) fn wait_served(&self, served: usize) {
        drop(self.wait(|state| state.served >= served));
    }

    /// How many requests have come to a server.
    pub(super) fn served(&self) -> usize {
        self.state.lock().served
    }

    /// Waits until the script has been answered to its end.
    pub(super) fn wait_answered(&self) {
        drop(self.wait(|state| state.is_answered()));
    }

    /// Waits until all that was sent unasked has arrived as well.
    pub(super) fn wait_delivered(&self) {
        drop(self.wait(|state| state.answers_due.is_empty()));
    }

    /// No more can be read from either side, nor written to the server.
    pub(super) fn shut(&self) {
        let mut state = self.state.lock();
        state.requests_ended = true;
        state.server_cut = true;
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn cut_client(&self) {
        self.state.lock().client_cut = true;
        self.changed.notify_all();
    }
}
