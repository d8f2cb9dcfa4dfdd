//! Commands to the running proxy, over a Unix socket (`control_socket`).
//!
//! One request a connection, a line of JSON; lines of progress and one last answer
//! come back.  Whoever may open the socket and is the proxy's own user, or root, may
//! ask for anything (unix(7), SO_PEERCRED).  What changes the proxy goes to the
//! server's own thread, where signals are handled as well.
//!
//! Invariants: at most `MAX_CLIENTS` at once; a request has `REQUEST_TIMEOUT` to
//! arrive; the socket's file goes with the proxy.

mod commands;
mod holding;
pub(crate) mod protocol;
mod ready;
pub(crate) mod table;

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde_json::json;

use crate::balancer::BackendId;
use crate::connection_limit::{Limit, Permit};
use crate::health::LookOver;
use crate::proxy_state::ProxyState;
use crate::round::{Aim, Round};
use crate::session::Session;
use crate::threads;
use commands::Running;
use protocol::{Command, Done, MAX_REQUEST_BYTES, Reply};

/// Operators and their scripts; a `--wait` keeps its connection.
const MAX_CLIENTS: usize = 16;
/// From connect to the end of the request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// For one line of the answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// After an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a command asks of the server's own thread.
pub(crate) enum Order {
    /// A round.
    Migrate {
        /// Over these.
        sessions: Vec<Arc<Session>>,
        /// What it is about.
        aim: Aim,
        /// How long a busy session may take; else `[migration] wait`.
        wait: Option<Duration>,
        /// Gets the round; `None`: it could not be started.
        reply: Sender<Option<Arc<Round>>>,
    },
    /// A look at a backend.
    Look {
        /// At this one.
        backend: BackendId,
        /// Is dropped when it is over, or where nobody looks.
        over: LookOver,
    },
    /// As SIGHUP.
    Reload {
        /// What came of it, or what is wrong with the file.
        reply: Sender<Result<Reloaded, String>>,
    },
}

/// A reload that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// What differs now, in the file's words.
    pub changed: Vec<String>,
    /// What takes effect later, and when.
    pub later: Vec<&'static str>,
}

/// The listening socket.  Dropped, its file is removed.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    /// Of the socket's file: another process may have put its own there.
    file: (u64, u64),
    listener: Arc<UnixListener>,
}

impl Control {
    /// Listens on `path` with a thread of its own.  A file that a proxy has left
    /// behind which is no more is taken over; with `replaces`, that of one which is.
    ///
    /// # Errors
    /// The path is another file's, another proxy listens there, or what the kernel
    /// says.
    pub(crate) fn start(
        path: &Path,
        replaces: bool,
        state: Arc<ProxyState>,
        orders: Sender<Order>,
    ) -> io::Result<Self> {
        let listener = Arc::new(listen(path, replaces)?);
        let control = Self {
            path: path.to_owned(),
            file: file_of(path)?,
            listener: Arc::clone(&listener),
        };
        let clients = Limit::new(MAX_CLIENTS);
        let work = move || accept(&listener, &state, &orders, &clients);
        threads::spawn("control".to_owned(), work)?;
        Ok(control)
    }

    /// Where it listens.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if file_of(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
        // Wakes the thread that is blocked in accept.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn file_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn listen(path: &Path, replaces: bool) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                ErrorKind::AlreadyExists,
                "it is a file of another kind",
            ));
        }
        // Nobody listens: a proxy that was killed has left it. Anything else, such as
        // a socket that may not be opened, is not ours to take.
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) if replaces => return take_over(path),
            Ok(_) => {
                return Err(io::Error::new(
                    ErrorKind::AddrInUse,
                    "another sqlproxy listens there",
                ));
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// In one step: there is no moment without somebody who takes commands.
fn take_over(path: &Path) -> io::Result<UnixListener> {
    // A short name: the whole path has its limit (unix(7)).
    let own = path.with_file_name(format!(".{}", std::process::id()));
    let own = own.as_path();
    let listener = UnixListener::bind(own)?;
    fs::set_permissions(own, fs::Permissions::from_mode(0o660))
        .and_then(|()| fs::rename(own, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(own);
        })?;
    Ok(listener)
}

fn accept(
    listener: &UnixListener,
    state: &Arc<ProxyState>,
    orders: &Sender<Order>,
    clients: &Arc<Limit>,
) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            // Shut down by the server's end.
            Err(error) if error.kind() == ErrorKind::InvalidInput => return,
            Err(error) => {
                log::warn!(reason:% = error; "cannot accept a command");
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        let Some(permit) = clients.take() else {
            // Closed: the client says that it could not ask.
            log::warn!("command refused: too many at once");
            continue;
        };
        let (state, orders) = (Arc::clone(state), orders.clone());
        let work = move || serve(stream, &state, &orders, permit);
        let spawned = threads::spawn("control client".to_owned(), work);
        if let Err(error) = spawned {
            log::warn!(reason:% = error; "command refused: no thread for it");
        }
    }
}

fn serve(mut stream: UnixStream, state: &Arc<ProxyState>, orders: &Sender<Order>, _permit: Permit) {
    let done = match read_command(&stream) {
        Ok(command) => {
            let mut progress = |line| send(&stream, &Reply::Progress(line)).is_ok();
            let mut running = Running {
                state,
                orders,
                progress: &mut progress,
            };
            commands::run(command, &mut running)
        }
        // Another process looks whether somebody listens here.
        Err(reason) if reason.is_empty() => return,
        Err(reason) => {
            log::warn!(reason; "command refused");
            Done {
                code: 2,
                text: format!("{reason}\n"),
                json: json!({ "error": reason }),
            }
        }
    };
    // A client that has gone wants no answer.
    let _ = send(&stream, &Reply::Done(done));
    let _ = stream.flush();
}

/// The request, of somebody who may ask.
///
/// # Errors
/// Why there is none; nothing where the client has left without a word.
fn read_command(stream: &UnixStream) -> Result<Command, String> {
    let peer = socket_peercred(stream).map_err(|error| error.to_string())?;
    if peer.uid != geteuid() && !peer.uid.is_root() {
        return Err(format!("user {} may not give commands", peer.uid.as_raw()));
    }
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let mut reader = BufReader::new(stream.take(MAX_REQUEST_BYTES));
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("the command did not arrive in time".to_owned());
        }
        stream
            .set_read_timeout(Some(left))
            .map_err(|error| error.to_string())?;
        let received = reader.fill_buf().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                "the command did not arrive in time".to_owned()
            }
            _ => error.to_string(),
        })?;
        let end = received.iter().position(|&byte| byte == b'\n');
        let count = end.map_or(received.len(), |end| end + 1);
        line.extend_from_slice(received.get(..count).unwrap_or_default());
        reader.consume(count);
        if end.is_some() || count == 0 {
            break;
        }
    }
    if line.is_empty() {
        return Err(String::new());
    }
    serde_json::from_slice(&line).map_err(|error| format!("not a command: {error}"))
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
