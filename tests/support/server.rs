//! A server that follows a script: one thread a connection, any bytes it likes.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::gate::Gate;
use super::message::{self, BackendKey, Message};
use super::soon;
use super::wire::{Received, Wire};

/// The server's end of one connection, after its startup packet.
pub(crate) struct ServerEnd {
    pub(crate) wire: Wire,
    /// How many connections with a startup packet came before this one.
    pub(crate) number: usize,
    /// The startup packet's code: the protocol version.
    pub(crate) version: i32,
    pub(crate) parameters: Vec<(String, String)>,
}

impl ServerEnd {
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        let found = parameters.find(|(other, _)| other == name)?;
        Some(&found.1)
    }

    /// Lets the client in without a password and without a cancel key.
    pub(crate) fn welcome_without_key(&mut self) {
        let greeting = [message::authentication(0, &[]), message::ready(b'I')];
        self.wire.send(&greeting.concat());
    }

    /// Lets the client in without a password.
    pub(crate) fn welcome(&mut self) {
        let greeting = [
            message::authentication(0, &[]),
            message::parameter_status("server_version", "15.0"),
            message::backend_key_data(&key_of(self.number)),
            message::ready(b'I'),
        ];
        self.wire.send(&greeting.concat());
    }

    /// What the connection's own process has to tell to whoever listens.
    pub(crate) fn notification(&self) -> Vec<u8> {
        let key = key_of(self.number);
        let body = [&key.0[..4], b"channel\0payload\0"].concat();
        message::frame(b'A', &body)
    }

    /// The next message, or `None` once the client has left.
    pub(crate) fn next(&mut self) -> Option<Message> {
        match self.wire.receive_by(soon()) {
            Received::Message(message) if message.tag == b'X' => None,
            Received::Message(message) => Some(message),
            Received::End | Received::Reset => None,
            Received::Nothing => panic!("neither a message nor an end"),
        }
    }

    /// The next simple query's text, or `None` once the client has left.
    pub(crate) fn next_query(&mut self) -> Option<String> {
        let query = self.next()?;
        assert_eq!(query.tag as char, 'Q', "{query:?}");
        Some(query.strings().remove(0))
    }

    /// Whether the proxy logs in by a revival token, to restore a session.
    pub(crate) fn is_restore(&self) -> bool {
        let token = self.parameter("crdb:session_revival_token_base64");
        if let Some(token) = token {
            assert_eq!(token, TOKEN);
        }
        token.is_some()
    }

    /// Answers each query with its own text, so that a client can tell its
    /// answers from anybody else's, and [`WHO`] with the server's address; a
    /// state query by what `transfer` makes of its key, a restore by `restore`.
    pub(crate) fn echo_with(
        &mut self,
        mut transfer: impl FnMut(&str) -> Vec<u8>,
        mut restore: impl FnMut() -> Vec<u8>,
    ) {
        let address = self.wire.socket().local_addr().unwrap().to_string();
        while let Some(sql) = self.next_query() {
            let answer = if let Some(key) = transfer_key(&sql) {
                transfer(key)
            } else if sql.contains("crdb_internal.deserialize_session") {
                assert_eq!(sql.trim_end_matches(';'), RESTORE);
                restore()
            } else if sql == WHO {
                message::one_row(&["address"], &[Some(&address)], "SELECT 1")
            } else {
                message::one_row(&["echo"], &[Some(&sql)], "SELECT 1")
            };
            if self.wire.try_send(&answer).is_err() {
                return;
            }
        }
    }

    /// [`Self::echo_with`] the right answers.
    pub(crate) fn echo(&mut self) {
        self.echo_with(transfer_state, restored);
    }
}

/// The query that an echoing server answers with its own address.
pub(crate) const WHO: &str = "WHO";

const STATE: &str = "c3RhdGU=";
const TOKEN: &str = "dG9rZW4=";
const RESTORE: &str = "SELECT crdb_internal.deserialize_session(decode('c3RhdGU=', 'base64'))";

/// The right answer to a restore.
pub(crate) fn restored() -> Vec<u8> {
    message::one_row(
        &["crdb_internal.deserialize_session"],
        &[Some("t")],
        "SELECT 1",
    )
}

/// The key that a server gives to a connection.
fn key_of(number: usize) -> BackendKey {
    let mut key = u32::try_from(number).unwrap().to_be_bytes().to_vec();
    key.extend(b"cKEY");
    BackendKey(key)
}

/// The key of a state query.
pub(crate) fn transfer_key(sql: &str) -> Option<&str> {
    let key = sql
        .trim_end_matches(';')
        .strip_prefix("SHOW TRANSFER STATE WITH '")?;
    key.strip_suffix('\'')
}

/// The right answer to a state query.
pub(crate) fn transfer_state(key: &str) -> Vec<u8> {
    message::one_row(
        &STATE_COLUMNS,
        &[None, Some(STATE), Some(TOKEN), Some(key)],
        STATE_TAG,
    )
}

/// The columns of the answer to a state query with a key.
pub(crate) const STATE_COLUMNS: [&str; 4] = [
    "error",
    "session_state_base64",
    "session_revival_token_base64",
    "transfer_key",
];
/// Its CommandComplete.
pub(crate) const STATE_TAG: &str = "SHOW TRANSFER STATE 1";

/// A listening scripted server.  Its scripts' panics are the test's.
pub(crate) struct Server {
    address: SocketAddr,
    cancels: Receiver<BackendKey>,
    /// Where it waits before it closes a cancel request's connection.
    cancel_gate: Arc<Mutex<Option<Gate>>>,
    scripts: Arc<Mutex<Vec<JoinHandle<()>>>>,
    /// How many connections sent a startup packet.
    sessions: Arc<Mutex<usize>>,
}

impl Server {
    /// Starts one that plays `script` with each client that sends a startup
    /// packet.  Encryption is refused, CancelRequests are noted.
    pub(crate) fn start(script: impl Fn(ServerEnd) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let scripts = Arc::new(Mutex::new(Vec::new()));
        let (cancelled, cancels) = channel();
        let playing = Arc::clone(&scripts);
        let sessions = Arc::new(Mutex::new(0));
        let numbers = Arc::clone(&sessions);
        let cancel_gate = Arc::new(Mutex::new(None));
        let gate = Arc::clone(&cancel_gate);
        // Ends with the test process: nothing tells a blocked accept to go.
        std::thread::spawn(move || {
            let script = Arc::new(script);
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let (script, numbers) = (Arc::clone(&script), Arc::clone(&numbers));
                let (cancelled, gate) = (cancelled.clone(), Arc::clone(&gate));
                // Held over the start, so that whoever joins misses none.
                let mut playing = playing.lock().unwrap();
                playing.push(std::thread::spawn(move || {
                    if let Some(end) = meet(stream, &numbers, &cancelled, &gate) {
                        script(end);
                    }
                }));
            }
        });
        Self {
            address,
            cancels,
            cancel_gate,
            scripts,
            sessions,
        }
    }

    /// One that answers like a healthy pod, for a client that sees its own
    /// queries come back.
    pub(crate) fn echoing() -> Self {
        Self::start(|mut end| {
            end.welcome();
            end.echo();
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until a connection has sent its startup packet.
    pub(crate) fn wait_session(&self) {
        super::poll_kernel(
            || *self.sessions.lock().unwrap() > 0,
            || "nobody has come".to_owned(),
        );
    }

    /// The key given to the latest connection.
    pub(crate) fn last_key(&self) -> BackendKey {
        key_of(*self.sessions.lock().unwrap() - 1)
    }

    /// From now on cancel requests are taken, but their connections closed only when
    /// the gate opens.
    pub(crate) fn hold_cancels(&self) -> Gate {
        let gate = Gate::default();
        *self.cancel_gate.lock().unwrap() = Some(gate.clone());
        gate
    }

    /// The key of the next CancelRequest.
    pub(crate) fn next_cancel(&self) -> BackendKey {
        self.cancels.recv_timeout(super::PATIENCE).unwrap()
    }

    /// The CancelRequests that came and nobody asked for.
    pub(crate) fn further_cancels(&self) -> Vec<BackendKey> {
        self.cancels.try_iter().collect()
    }

    /// Waits for the scripts under way, which end when their clients leave.
    ///
    /// # Panics
    /// If one of them did.
    pub(crate) fn join(&self) {
        loop {
            let Some(script) = self.scripts.lock().unwrap().pop() else {
                return;
            };
            script.join().unwrap();
        }
    }
}

/// Reads what a client begins with.
fn meet(
    stream: TcpStream,
    numbers: &Mutex<usize>,
    cancelled: &Sender<BackendKey>,
    cancel_gate: &Mutex<Option<Gate>>,
) -> Option<ServerEnd> {
    stream.set_nodelay(true).unwrap();
    let mut wire = Wire::over(stream);
    loop {
        let (code, body) = wire.receive_packet()?;
        match code {
            message::SSL_REQUEST | message::GSSENC_REQUEST => wire.send(b"N"),
            message::CANCEL_REQUEST => {
                // The test may be over and its end of the channel with it.
                let _ = cancelled.send(BackendKey(body));
                let gate = cancel_gate.lock().unwrap().clone();
                if let Some(gate) = gate {
                    gate.wait();
                }
                return None;
            }
            version => {
                let mut numbers = numbers.lock().unwrap();
                let number = *numbers;
                *numbers += 1;
                return Some(ServerEnd {
                    wire,
                    number,
                    version,
                    parameters: parameters(&body),
                });
            }
        }
    }
}

fn parameters(body: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let strings: Vec<_> = text.split('\0').collect();
    let pairs = strings
        .chunks_exact(2)
        .map(|pair| (pair[0].to_owned(), pair[1].to_owned()));
    pairs.take_while(|(name, _)| !name.is_empty()).collect()
}
