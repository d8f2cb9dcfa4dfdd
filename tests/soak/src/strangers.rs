//! Strangers at the proxy's doors: silent, slow, flooding, lying, cancelling, and
//! those who keep the admin busy.  Whatever becomes of them, the sessions beside them
//! must not notice, and the admin must answer those who ask.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use demo::Result;

use crate::board::Board;

/// Sockets that say nothing: more than there are places beside the sessions.
pub(crate) const SILENT: usize = 150;
/// Sockets that send their startup packet byte by byte.
const SLOW: usize = 20;
/// Threads that connect and leave.
const FLOODS: usize = 2;
/// Idle connections to the admin.
const ADMIN: usize = 40;
/// How long `/healthz` may take beside all that, on a loaded machine.
const ADMIN_LIMIT: Duration = Duration::from_secs(10);

/// Sends them all; they go when the board says stop.
pub(crate) fn send(
    board: &Arc<Board>,
    proxy: SocketAddr,
    admin: SocketAddr,
) -> Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    let mut begin = |name: &str, stranger: fn(&Board, SocketAddr), address: SocketAddr| {
        let board = Arc::clone(board);
        let thread = thread::Builder::new().name(name.to_owned());
        threads.push(thread.spawn(move || stranger(&board, address))?);
        Ok::<_, std::io::Error>(())
    };
    begin("silent", silent, proxy)?;
    begin("slow", slow, proxy)?;
    for _ in 0..FLOODS {
        begin("flood", flood, proxy)?;
    }
    begin("liar", liar, proxy)?;
    begin("canceller", canceller, proxy)?;
    begin("admin idler", admin_idler, admin)?;
    begin("admin prober", admin_prober, admin)?;
    Ok(threads)
}

/// A connection that never blocks its stranger; `None` where there is no place.
fn dial(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

/// Whether the proxy has closed it, or told it something and closes it.
fn is_gone(stream: &mut TcpStream) -> bool {
    // An end is an answer here as well.
    let read = stream.read(&mut [0; 512]).map(drop);
    read.map_or_else(
        |error| error.kind() != std::io::ErrorKind::WouldBlock,
        |()| true,
    )
}

fn silent(board: &Board, proxy: SocketAddr) {
    let mut sockets = Vec::new();
    while !board.pause(Duration::from_millis(100)) {
        sockets.retain_mut(|stream| !is_gone(stream));
        while sockets.len() < SILENT {
            let Some(stream) = dial(proxy) else { break };
            sockets.push(stream);
        }
    }
}

fn slow(board: &Board, proxy: SocketAddr) {
    let packet = b"\0\0\x27\x10\0\x03\0\0user\0slow\0";
    let mut sockets: Vec<(TcpStream, usize)> = Vec::new();
    while !board.pause(Duration::from_millis(300)) {
        sockets.retain_mut(|(stream, sent)| {
            let byte = packet
                .get(*sent % packet.len())
                .copied()
                .unwrap_or_default();
            *sent += 1;
            !is_gone(stream) && stream.write_all(&[byte]).is_ok()
        });
        while sockets.len() < SLOW {
            let Some(stream) = dial(proxy) else { break };
            sockets.push((stream, 0));
        }
    }
}

fn flood(board: &Board, proxy: SocketAddr) {
    while !board.pause(Duration::from_millis(5)) {
        drop(dial(proxy));
    }
}

fn liar(board: &Board, proxy: SocketAddr) {
    let user = "u".repeat(9000);
    let lies: [Vec<u8>; 7] = [
        vec![0xff; 4000],
        b"GET / HTTP/1.1\r\nHost: proxy\r\n\r\n".to_vec(),
        // A TLS handshake that is none.
        b"\x16\x03\x01\xff\xff\x01\0\0\x00".to_vec(),
        // An SSLRequest with data behind it.
        b"\0\0\0\x08\x04\xd2\x16\x2fgarbage".to_vec(),
        startup(&[
            ("user", "liar"),
            ("crdb:session_revival_token_base64", "eA=="),
        ]),
        startup(&[("user", &user)]),
        startup(&[("user", "liar"), ("USER", "root")]),
    ];
    let mut count = 0;
    while !board.pause(Duration::from_millis(20)) {
        count += 1;
        if let (Some(mut stream), Some(lie)) = (dial(proxy), lies.get(count % lies.len())) {
            let _ = stream.write_all(lie);
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or_default();
    [&length.to_be_bytes(), body.as_slice()].concat()
}

/// Keys that nobody has.
fn canceller(board: &Board, proxy: SocketAddr) {
    while !board.pause(Duration::from_millis(10)) {
        if let Some(mut stream) = dial(proxy) {
            let mut request = b"\0\0\0\x10\x04\xd2\x16\x2e".to_vec();
            request.extend_from_slice(&fastrand::u64(..).to_be_bytes());
            let _ = stream.write_all(&request);
        }
    }
}

fn admin_idler(board: &Board, admin: SocketAddr) {
    let mut sockets = Vec::new();
    while !board.pause(Duration::from_millis(100)) {
        sockets.retain_mut(|stream| !is_gone(stream));
        while sockets.len() < ADMIN {
            let Some(mut stream) = dial(admin) else { break };
            if fastrand::bool() {
                let _ = stream.write_all(b"GET /metrics HT");
            }
            sockets.push(stream);
        }
    }
}

/// No stranger: the one who has to be answered.
fn admin_prober(board: &Board, admin: SocketAddr) {
    while !board.pause(Duration::from_millis(500)) {
        let began = Instant::now();
        // One whose place another took in this moment asks again, as probers do.
        let answered = (0..5).any(|_| probe(admin).is_ok());
        if !answered || began.elapsed() > ADMIN_LIMIT {
            let text = format!("/healthz took {:?}, answered: {answered}", began.elapsed());
            board.error(None, &text);
        }
    }
}

fn probe(admin: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&admin, ADMIN_LIMIT)?;
    stream.set_read_timeout(Some(ADMIN_LIMIT))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: proxy\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.contains("200 OK") {
        true => Ok(()),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}
