//! The admin's connections: accepted, bounded, timed.
//!
//! One thread polls the listener and everybody who is connected.  A client is read from
//! or written to when its socket is ready, so a slow one delays nobody.
//!
//! Invariants: at most `MAX_CLIENTS`, each gone after `CLIENT_DEADLINE` at the latest.
//! Where there is no room, whoever has its answer makes some, then whoever takes none,
//! then whoever has not asked, the oldest first; a request that is there is answered
//! before anybody is turned out.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::http::{self, MAX_HEAD_BYTES, RequestError, Response};
use super::{AdminState, answer};

/// Some probers for each of many load balancers, Prometheus and operators; and as many
/// descriptors.
pub(super) const MAX_CLIENTS: usize = 64;
/// From accept to the end of the request's head: whoever asks has it ready.
const HEAD_DEADLINE: Duration = Duration::from_secs(1);
/// From accept to close. The answers are made in memory, so only a client's own
/// slowness needs any of it.
pub(super) const CLIENT_DEADLINE: Duration = Duration::from_secs(5);
/// Who takes nothing of its answer for this long makes room for another.
const STUCK: Duration = Duration::from_secs(1);
/// How long accepting rests when the system has no descriptor left for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What one client may bring in one turn.
const CHUNK_BYTES: usize = 4096;

/// The server's life.
pub(super) fn serve(listener: &TcpListener, state: &AdminState) {
    let mut clients: Vec<Client> = Vec::new();
    let mut accept_from = Instant::now();
    while !state.stopping.load(Ordering::SeqCst) {
        let now = Instant::now();
        clients.retain(|client| now < client.deadline());
        let accepts = now >= accept_from && has_room(&clients, now);
        let wake_at = clients
            .iter()
            .map(|client| client.next_look(now))
            .chain((now < accept_from).then_some(accept_from))
            .min();
        let ready = wait(listener, state, &clients, accepts, wake_at);
        let mut turns = ready.clients.into_iter();
        clients = clients
            .into_iter()
            .filter_map(|client| match turns.next() {
                Some(true) => client.go_on(state),
                Some(false) | None => Some(client),
            })
            .collect();
        // In this order: only now is it known who has asked.
        if ready.listener && accepts && make_room(&mut clients, Instant::now()) {
            match accept(listener) {
                Ok(stream) => clients.extend(Client::new(stream).go_on(state)),
                Err(error) => accept_from = pause_after(&error),
            }
        }
    }
}

/// Whose turn it is.
struct ReadyNow {
    listener: bool,
    clients: Vec<bool>,
}

/// Until somebody is ready, or until `wake_at`.
fn wait(
    listener: &TcpListener,
    state: &AdminState,
    clients: &[Client],
    accepts: bool,
    wake_at: Option<Instant>,
) -> ReadyNow {
    let wanted = |wanted: bool| match wanted {
        true => PollFlags::IN,
        false => PollFlags::empty(),
    };
    let mut events = vec![
        PollFd::new(&state.wake, PollFlags::IN),
        PollFd::new(listener, wanted(accepts)),
    ];
    events.extend(clients.iter().map(Client::event));
    let left = wake_at.map(|at| at.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    // Interrupted: the caller's loop looks at everything again.
    let _ = poll(&mut events, left.as_ref());
    let mut ready = events
        .iter()
        .skip(1)
        .map(|event| !event.revents().is_empty());
    ReadyNow {
        listener: ready.next().unwrap_or(false),
        clients: ready.collect(),
    }
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Most failures of accept concern the one client; the rest (no descriptor, no
/// memory) last, and the listener would be ready again at once.  Tells when to go on.
fn pause_after(error: &io::Error) -> Instant {
    let now = Instant::now();
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => now,
        _ => {
            log::warn!(error:%; "admin clients cannot be accepted");
            now + ACCEPT_PAUSE
        }
    }
}

/// Whether a further client can be had, another one turned out for it where need be.
fn has_room(clients: &[Client], now: Instant) -> bool {
    clients.len() < MAX_CLIENTS || clients.iter().any(|client| client.rank(now).is_some())
}

/// Turns one out where there is no room; false: nobody can be.
fn make_room(clients: &mut Vec<Client>, now: Instant) -> bool {
    if clients.len() < MAX_CLIENTS {
        return true;
    }
    let ranks = clients.iter().map(|client| client.rank(now)).enumerate();
    let first = ranks.filter_map(|(index, rank)| Some((rank?, index))).min();
    first.is_some_and(|(_, index)| {
        clients.remove(index);
        true
    })
}

/// Who makes room first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It has its answer.
    Answered,
    /// It does not take it.
    Stuck,
    /// It has not asked.
    Silent,
}

/// One connection.
struct Client {
    stream: TcpStream,
    accepted: Instant,
    stage: Stage,
}

/// One request, one response.
enum Stage {
    /// So much of the request's head is there.
    Asking(Vec<u8>),
    /// So much of the response has been written, the last of it at `since`.
    Answering {
        response: Vec<u8>,
        written: usize,
        since: Instant,
    },
    /// It is to close: closing first while bytes of it are still unread would reset the
    /// connection, and it might lose the answer.
    Answered,
}

impl Client {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            accepted: Instant::now(),
            stage: Stage::Asking(Vec::new()),
        }
    }

    fn deadline(&self) -> Instant {
        self.accepted
            + match self.stage {
                Stage::Asking(_) => HEAD_DEADLINE,
                Stage::Answering { .. } | Stage::Answered => CLIENT_DEADLINE,
            }
    }

    /// When something changes although nothing comes of it.
    fn next_look(&self, now: Instant) -> Instant {
        let deadline = self.deadline();
        match self.stage {
            Stage::Answering { since, .. } if now < since + STUCK => deadline.min(since + STUCK),
            _ => deadline,
        }
    }

    fn event(&self) -> PollFd<'_> {
        let flags = match self.stage {
            Stage::Asking(_) | Stage::Answered => PollFlags::IN,
            Stage::Answering { .. } => PollFlags::OUT,
        };
        PollFd::new(&self.stream, flags)
    }

    /// `None`: it keeps its place.
    fn rank(&self, now: Instant) -> Option<Rank> {
        match self.stage {
            Stage::Answered => Some(Rank::Answered),
            Stage::Answering { since, .. } => (now >= since + STUCK).then_some(Rank::Stuck),
            Stage::Asking(_) => self.is_silent().then_some(Rank::Silent),
        }
    }

    /// Whether nothing of it is there that has not been read.
    fn is_silent(&self) -> bool {
        let peeked = self.stream.peek(&mut [0]);
        peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// As far as it gets without waiting; `None`: it has gone, or is through.
    fn go_on(self, state: &AdminState) -> Option<Self> {
        let Self {
            mut stream,
            accepted,
            mut stage,
        } = self;
        loop {
            let next = match stage {
                Stage::Asking(head) => ask(&mut stream, head, state),
                Stage::Answering {
                    response,
                    written,
                    since,
                } => write(&mut stream, response, written, since),
                Stage::Answered => read_away(&mut stream),
            };
            match next {
                Ok(Turn::On(next)) => stage = next,
                Ok(Turn::Wait(stage)) => {
                    return Some(Self {
                        stream,
                        accepted,
                        stage,
                    });
                }
                Ok(Turn::Gone) => return None,
                Err(error) => {
                    log::debug!(error:%; "admin client failed");
                    return None;
                }
            }
        }
    }
}

/// How a step ended.
enum Turn {
    On(Stage),
    /// For the client.
    Wait(Stage),
    Gone,
}

/// Reads on; where the request's head is whole, its response is made.
fn ask(stream: &mut TcpStream, mut head: Vec<u8>, state: &AdminState) -> io::Result<Turn> {
    let (response, with_body) = match http::parse(&head) {
        Ok(Some(request)) => (answer(&request, state), request.method != "HEAD"),
        Ok(None) if head.len() < MAX_HEAD_BYTES => {
            return Ok(match read(stream)? {
                Some(chunk) if chunk.is_empty() => Turn::Gone,
                Some(chunk) => {
                    head.extend(chunk);
                    Turn::On(Stage::Asking(head))
                }
                None => Turn::Wait(Stage::Asking(head)),
            });
        }
        Ok(None) | Err(RequestError::TooLarge) => {
            (Response::text(431, "the header is too large\n"), true)
        }
        Err(RequestError::Malformed) => (Response::text(400, "not an HTTP request\n"), true),
    };
    Ok(Turn::On(Stage::Answering {
        response: response.to_bytes(with_body),
        written: 0,
        since: Instant::now(),
    }))
}

fn write(
    stream: &mut TcpStream,
    response: Vec<u8>,
    written: usize,
    since: Instant,
) -> io::Result<Turn> {
    let rest = response.get(written..).unwrap_or_default();
    if rest.is_empty() {
        stream.shutdown(Shutdown::Write)?;
        return Ok(Turn::On(Stage::Answered));
    }
    let (count, since) = match stream.write(rest) {
        Ok(0) => return Err(ErrorKind::WriteZero.into()),
        Ok(count) => (count, Instant::now()),
        Err(error) if error.kind() == ErrorKind::Interrupted => (0, since),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            return Ok(Turn::Wait(Stage::Answering {
                response,
                written,
                since,
            }));
        }
        Err(error) => return Err(error),
    };
    Ok(Turn::On(Stage::Answering {
        response,
        written: written + count,
        since,
    }))
}

/// One read: who sends without end has others served in between.
fn read_away(stream: &mut TcpStream) -> io::Result<Turn> {
    Ok(match read(stream)? {
        Some(chunk) if chunk.is_empty() => Turn::Gone,
        Some(_) | None => Turn::Wait(Stage::Answered),
    })
}

/// What is there; empty: the end; `None`: nothing yet.
fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match stream.read(&mut chunk) {
            Ok(count) => {
                chunk.truncate(count);
                return Ok(Some(chunk));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}
