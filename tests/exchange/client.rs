//! A client of the real server that keeps a tracker, and who watches the server.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use proptest::test_runner::TestCaseError;
use sqlproxy::internal::refuses_unread;
use sqlproxy::internal::{BackendTag, FrontendTag, TransactionStatus};
use sqlproxy::internal::{Exchange, Unnamed, UnnamedEffect, UnnamedTracker, WaitingFor};

use super::script::{Pause, Request, Script};
use crate::support::postgres::{Cluster, USER};

/// How long an answer may take; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watches a server process from another connection.
pub(super) struct Monitor {
    client: postgres::Client,
    statement: postgres::Statement,
}

impl Monitor {
    pub(super) fn new(cluster: &Cluster) -> Self {
        let mut client = cluster.client();
        let statement = client
            .prepare("SELECT state, wait_event FROM pg_stat_activity WHERE pid = $1")
            .unwrap();
        Self { client, statement }
    }

    /// The state of process `pid` as pg_stat_activity names it, if it has read
    /// all that was sent and waits for more.
    fn state(&mut self, pid: i32) -> Option<String> {
        // It can have overlooked nothing: a process that data has woken no
        // longer sleeps, and one that has not run between the two looks was
        // waiting for its client all the time.
        let before = sleeping(pid)?;
        let rows = self.client.query(&self.statement, &[&pid]).unwrap();
        let row = rows.first()?;
        let waits_for: Option<String> = row.get(1);
        let unmoved = sleeping(pid)? == before;
        (unmoved && waits_for.as_deref() == Some("ClientRead")).then(|| row.get(0))
    }
}

/// How often a sleeping process has gone to sleep; `None` if it runs.
fn sleeping(pid: i32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| status.lines().find(|line| line.starts_with(name));
    line("State:")?.contains("sleeping").then_some(())?;
    line("voluntary_ctxt_switches:").map(str::to_owned)
}

/// One message of the server.
struct Frame {
    tag: BackendTag,
    body: Vec<u8>,
}

pub(super) struct Client<'a> {
    stream: UnixStream,
    monitor: &'a mut Monitor,
    pub(super) exchange: Exchange,
    unnamed: UnnamedTracker,
    /// Whether the tracker has to be right about what is *not* safe, too.
    exact: bool,
    pid: i32,
    received: Vec<u8>,
    unsent: Vec<u8>,
    writes: Box<dyn Iterator<Item = usize>>,
    reads: Box<dyn Iterator<Item = usize>>,
    markers: Box<dyn Iterator<Item = bool>>,
    /// The last message of the client that asked for something.
    asked: Option<FrontendTag>,
    /// The last message of the server that answered something.
    answered: Option<BackendTag>,
    /// The server has read COPY data, where messages sent ahead may count as never sent, or
    /// has refused to read a message, which tells too little as well.
    untold: bool,
    /// What went over the wire, for the report of a failure.
    history: String,
}

impl<'a> Client<'a> {
    pub(super) fn connect(
        cluster: &Cluster,
        monitor: &'a mut Monitor,
        script: &Script,
        exact: bool,
    ) -> Self {
        let stream = UnixStream::connect(cluster.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            stream,
            monitor,
            exchange: Exchange::new(),
            unnamed: UnnamedTracker::default(),
            exact,
            pid: 0,
            received: Vec::new(),
            unsent: Vec::new(),
            writes: Box::new(script.writes.clone().into_iter().cycle()),
            reads: Box::new(script.reads.clone().into_iter().cycle()),
            markers: Box::new(script.markers.clone().into_iter().cycle()),
            asked: None,
            answered: None,
            untold: false,
            history: String::new(),
        };
        let mut startup = BytesMut::new();
        frontend::startup_message([("user", USER)], &mut startup).unwrap();
        client.stream.write_all(&startup).unwrap();
        loop {
            let frame = client.wait_frame().unwrap();
            match frame.tag {
                BackendTag::BACKEND_KEY_DATA => {
                    client.pid = i32::from_be_bytes(frame.body[..4].try_into().unwrap());
                }
                BackendTag::READY_FOR_QUERY => return client,
                _ => {}
            }
        }
    }

    /// Plays the script; the server is left waiting, everything read.
    pub(super) fn play(&mut self, steps: &[(Request, Pause)]) -> Result<(), TestCaseError> {
        for (index, (request, pause)) in steps.iter().enumerate() {
            self.send(request)?;
            match pause {
                Pause::None => {}
                Pause::Read => self.read_available()?,
                Pause::Quiet => {
                    let next = steps.get(index + 1).map(|(request, _)| request);
                    self.settle(next)?;
                }
            }
        }
        self.settle(None).map(|_| ())
    }

    pub(super) fn send(&mut self, request: &Request) -> Result<(), TestCaseError> {
        let bytes = request.bytes();
        self.history
            .push_str(&format!(" >{}", char::from(bytes[0])));
        let tag = FrontendTag(bytes[0]);
        let place = self.exchange.place();
        self.exchange.request(tag);
        let effect = match request {
            Request::Parse("", _) | Request::LongParse("", _) => {
                UnnamedEffect::Parse { bytes: bytes.len() }
            }
            Request::Close(b'S', "") => UnnamedEffect::Close,
            _ => UnnamedEffect::None,
        };
        self.unnamed.request(tag, effect, &bytes, place);
        if !b"dcfH".contains(&tag.0) {
            self.asked = Some(tag);
        }
        self.unsent.extend(bytes);
        while let Some(size) = self.writes.next()
            && size <= self.unsent.len()
        {
            let rest = self.unsent.split_off(size);
            self.write()?;
            self.unsent = rest;
        }
        // Some requests leave a safe point as it is.
        self.test_safe_point()
    }

    fn write(&mut self) -> Result<(), TestCaseError> {
        let bytes = std::mem::take(&mut self.unsent);
        self.stream
            .write_all(&bytes)
            .map_err(|error| self.failure(&format!("write: {error}")))
    }

    /// Waits until the server waits for the client, reads everything, and
    /// compares what the tracker says with what the server says of itself.
    pub(super) fn settle(&mut self, next: Option<&Request>) -> Result<String, TestCaseError> {
        self.write()?;
        let deadline = Instant::now() + PATIENCE;
        let state = loop {
            self.read_available()?;
            if let Some(state) = self.monitor.state(self.pid) {
                break state;
            }
            if Instant::now() > deadline {
                return Err(self.failure("the server never comes to rest"));
            }
        };
        // A marker could end a state that the server was in when asked.
        self.markers_off(Self::read_available)?;
        self.history.push_str(&format!(" [{state}]"));
        let (safe, answered) = (self.exchange.is_safe(), self.exchange.is_answered());
        // Describe and Close leave the server's state as it was, and so does
        // a skip. After the one the last request shows it, after the other
        // the last answer, which is the error.
        let open = !matches!(
            self.asked,
            None | Some(FrontendTag::SYNC | FrontendTag::QUERY | FrontendTag::FUNCTION_CALL)
        ) || self
            .answered
            .is_some_and(|tag| tag != BackendTag::READY_FOR_QUERY);
        let between = state.starts_with("idle") && !open;
        let idle = state == "idle" && between;
        let holdable =
            next.is_some_and(|next| self.exchange.begins_batch(FrontendTag(next.bytes()[0])));
        let wrong = if safe && !idle || answered && !between {
            "believed to be done"
        } else if !self.exact {
            return Ok(state);
        } else if idle && !safe || between && !answered {
            "believed to be busy"
        } else if !answered && self.exchange.waiting_for() == Some(WaitingFor::QueryRunning) {
            "waits for a query that does not run"
        } else if holdable && !answered {
            "the next request would be held back for ever"
        } else {
            return Ok(state);
        };
        Err(self.failure(wrong))
    }

    fn markers_off(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<(), TestCaseError>,
    ) -> Result<(), TestCaseError> {
        let markers = std::mem::replace(&mut self.markers, Box::new(std::iter::empty()));
        let result = act(self);
        self.markers = markers;
        result
    }

    /// Takes what has come, without waiting for more.
    fn read_available(&mut self) -> Result<(), TestCaseError> {
        loop {
            while let Some(frame) = self.next_frame() {
                self.note(&frame);
                self.test_safe_point()?;
            }
            self.stream.set_nonblocking(true).unwrap();
            let count = self.read_some();
            self.stream.set_nonblocking(false).unwrap();
            if count? == 0 {
                return Ok(());
            }
        }
    }

    /// Where the tracker calls the session safe, a query must be answered at
    /// once: nothing else may come before.
    fn test_safe_point(&mut self) -> Result<(), TestCaseError> {
        if self.exchange.is_safe() && self.markers.next() == Some(true) {
            self.history.push_str(" marker:");
            return self.markers_off(Self::marker);
        }
        Ok(())
    }

    pub(super) fn marker(&mut self) -> Result<(), TestCaseError> {
        const MARKER: &str = "SELECT 'the marker'";
        self.send(&Request::Query(MARKER))?;
        self.write()?;
        let mut answer = Vec::new();
        while answer.last() != Some(&BackendTag::READY_FOR_QUERY) {
            let frame = self.wait_frame()?;
            self.note(&frame);
            if frame.tag == BackendTag::DATA_ROW && !frame.body.ends_with(b"the marker") {
                return Err(self.failure("another query's row answered the marker"));
            }
            if !frame.tag.is_asynchronous() {
                answer.push(frame.tag);
            }
        }
        let expected = [
            BackendTag::ROW_DESCRIPTION,
            BackendTag::DATA_ROW,
            BackendTag::COMMAND_COMPLETE,
            BackendTag::READY_FOR_QUERY,
        ];
        if answer != expected {
            return Err(self.failure("something was still owed"));
        }
        if !self.exchange.is_safe() {
            return Err(self.failure("not safe after the marker"));
        }
        Ok(())
    }

    /// Where the tracker knows the unnamed statement, the server has the same: none, or one
    /// that is described as that Parse is.
    pub(super) fn compare_unnamed(&mut self) -> Result<(), TestCaseError> {
        if !self.exchange.is_safe() {
            return Ok(());
        }
        let known = self.unnamed.statement().clone();
        self.history.push_str(&format!(" unnamed {known:?}:"));
        self.markers_off(|client| {
            let own = client.described("")?;
            let expected = match &known {
                Unnamed::None => None,
                Unnamed::Parsed(parse) => {
                    let text = parse.strip_prefix(b"P").and_then(|parse| parse.get(5..));
                    let named = [b"again\0".as_slice(), text.unwrap()].concat();
                    client.parse_again(&named)?;
                    client.described("again")?
                }
                Unnamed::Unknown if client.untold => return Ok(()),
                Unnamed::Unknown | Unnamed::TooLong => {
                    return Err(client.failure("the unnamed statement is not known"));
                }
            };
            if own != expected {
                return Err(client.failure("another unnamed statement than the server's"));
            }
            Ok(())
        })
    }

    /// What the server says of a statement; `None` if it knows none of that name.
    fn described(&mut self, name: &'static str) -> Result<Option<Vec<Vec<u8>>>, TestCaseError> {
        self.send(&Request::Describe(b'S', name))?;
        let answer = self.synced()?;
        let failed = answer
            .iter()
            .any(|frame| frame.tag == BackendTag::ERROR_RESPONSE);
        Ok((!failed).then(|| answer.into_iter().map(|frame| frame.body).collect()))
    }

    /// Parses by a message's body, whatever the trackers know of it.
    fn parse_again(&mut self, body: &[u8]) -> Result<(), TestCaseError> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        self.exchange.request(FrontendTag::PARSE);
        self.unsent
            .extend([b"P".as_slice(), &length, body].concat());
        let answer = self.synced()?;
        if answer
            .first()
            .is_none_or(|frame| frame.tag != BackendTag::PARSE_COMPLETE)
        {
            return Err(self.failure("what was parsed before cannot be parsed again"));
        }
        Ok(())
    }

    /// Sends a Sync and takes everything up to its answer.
    fn synced(&mut self) -> Result<Vec<Frame>, TestCaseError> {
        self.send(&Request::Sync)?;
        self.write()?;
        let mut answer = Vec::new();
        loop {
            let frame = self.wait_frame()?;
            self.note(&frame);
            if frame.tag == BackendTag::READY_FOR_QUERY {
                return Ok(answer);
            }
            if !frame.tag.is_asynchronous() {
                answer.push(frame);
            }
        }
    }

    fn note(&mut self, frame: &Frame) {
        self.history
            .push_str(&format!(" <{}", char::from(frame.tag.0)));
        let ready = frame.tag == BackendTag::READY_FOR_QUERY;
        let status = frame.body.first().filter(|_| ready);
        if !frame.tag.is_asynchronous() {
            self.untold |= frame.tag == BackendTag::COPY_IN_RESPONSE;
            self.answered = Some(frame.tag);
        }
        let status = status.and_then(|byte| TransactionStatus::from_byte(*byte));
        let place = self.exchange.place_of_answer(frame.tag);
        self.exchange.response(frame.tag, status);
        let answered = self.exchange.answered();
        let unread = frame.tag == BackendTag::ERROR_RESPONSE && refuses_unread(&frame.body);
        self.untold |= unread;
        (self.unnamed).response(frame.tag, place, answered, unread);
        if ready && self.exchange.is_answered() {
            self.unnamed.all_answered();
        }
    }

    /// The next message; waits for it.
    fn wait_frame(&mut self) -> Result<Frame, TestCaseError> {
        loop {
            if let Some(frame) = self.next_frame() {
                return Ok(frame);
            }
            if self.read_some()? == 0 {
                return Err(self.failure("the server does not answer"));
            }
        }
    }

    /// The next message that has come whole.
    fn next_frame(&mut self) -> Option<Frame> {
        let length = self.received.get(1..5)?.try_into().unwrap();
        let total = 1 + usize::try_from(u32::from_be_bytes(length)).unwrap();
        if self.received.len() < total {
            return None;
        }
        let rest = self.received.split_off(total);
        let message = std::mem::replace(&mut self.received, rest);
        Some(Frame {
            tag: BackendTag(message[0]),
            body: message[5..].to_vec(),
        })
    }

    /// How many bytes a read of the script's next size took; 0 if none were
    /// there (in time).
    fn read_some(&mut self) -> Result<usize, TestCaseError> {
        let mut chunk = vec![0; self.reads.next().unwrap()];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(self.failure("the server has closed the connection")),
            Ok(count) => {
                self.received.extend_from_slice(&chunk[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(self.failure(&format!("read: {error}"))),
        }
    }

    fn failure(&self, text: &str) -> TestCaseError {
        TestCaseError::fail(format!("{text}; {:?}\n{}", self.exchange, self.history))
    }
}
