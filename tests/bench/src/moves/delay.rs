//! A way to a server that takes time: what goes in comes out later, in both directions.
//!
//! Two threads a connection read; one for all writes each piece when its time has come.
//! Since all take equally long, pieces leave in the order in which they came.  It stays
//! until the program ends.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use demo::Result;

/// A login or a session's state at a time.
const BUFFER_BYTES: usize = 16 * 1024;
/// The threads have little to keep: there are thousands of them.
const STACK_BYTES: usize = 64 * 1024;

struct Piece {
    due: Instant,
    to: Arc<TcpStream>,
    /// Without any it is the end.
    bytes: Vec<u8>,
}

/// Where `server` is reached in `round_trip`, there and back.
pub(crate) fn start(server: SocketAddr, round_trip: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (pieces, due) = mpsc::channel();
    thread::Builder::new().spawn(move || write_when_due(&due))?;
    thread::Builder::new().spawn(move || {
        for client in listener.incoming() {
            // A client that cannot be served is closed, and sees that.
            let _ = client.and_then(|client| serve(client, server, round_trip, &pieces));
        }
    })?;
    Ok(address)
}

fn serve(
    client: TcpStream,
    server: SocketAddr,
    round_trip: Duration,
    pieces: &Sender<Piece>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client, server) = (Arc::new(client), Arc::new(server));
    let delay = round_trip / 2;
    let (from, to, out) = (Arc::clone(&server), Arc::clone(&client), pieces.clone());
    let reader = || thread::Builder::new().stack_size(STACK_BYTES);
    reader().spawn(move || read(&from, &to, delay, &out))?;
    let out = pieces.clone();
    reader().spawn(move || {
        // The connection's own handshake.
        thread::sleep(round_trip);
        read(&client, &server, delay, &out);
    })?;
    Ok(())
}

/// Until `from` ends, or fails; `to` hears of it.
fn read(mut from: &TcpStream, to: &Arc<TcpStream>, delay: Duration, out: &Sender<Piece>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        let piece = Piece {
            due: Instant::now() + delay,
            to: Arc::clone(to),
            bytes: buffer.get(..count).unwrap_or_default().to_vec(),
        };
        if out.send(piece).is_err() || count == 0 {
            return;
        }
    }
}

fn write_when_due(pieces: &Receiver<Piece>) {
    for Piece { due, to, bytes } in pieces {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let written = (&*to).write_all(&bytes);
        if bytes.is_empty() || written.is_err() {
            // Its peer has gone where this fails.
            let _ = to.shutdown(Shutdown::Write);
        }
    }
}
