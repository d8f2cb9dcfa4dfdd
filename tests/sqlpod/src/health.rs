//! The page that says whether a pod is to be sent clients, as CockroachDB's
//! `/health?ready=1`: 503 from the moment that the pod is told to end, while it still
//! serves SQL.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// For a request, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_REQUEST_BYTES: u64 = 8 * 1024;

/// The page, served until the process ends.
#[derive(Debug)]
pub struct Health {
    address: SocketAddr,
    leaving: Arc<AtomicBool>,
}

impl Health {
    /// Serves it on `address`, `host:port`.
    ///
    /// # Errors
    /// The address cannot be listened on, or there is no thread.
    pub fn start(address: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let leaving = Arc::new(AtomicBool::new(false));
        let shown = Arc::clone(&leaving);
        thread::Builder::new()
            .name("health".to_owned())
            .spawn(move || {
                // One after the other: who asks is one proxy.
                for stream in listener.incoming().flatten() {
                    let _ = answer(&stream, shown.load(Ordering::SeqCst));
                }
            })?;
        Ok(Self { address, leaving })
    }

    /// Where it is.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on: 503.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }
}

fn answer(mut stream: &TcpStream, leaving: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = BufReader::new(stream.take(MAX_REQUEST_BYTES));
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let (status, body) = match leaving {
        true => (
            "503 Service Unavailable",
            "{\"error\": \"node is shutting down\"}\n",
        ),
        false => ("200 OK", "{}\n"),
    };
    let head = "Content-Type: application/json\r\nConnection: close";
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes())
}
