//! A relay that parses nothing: two blocking threads a client, each with a buffer, reads
//! and writes.  What a proxy of this shape cannot do without, so the point of comparison.
//!
//! `relay LISTEN SERVER`

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;

/// As large as the proxy's own in bulk.
const BUFFER_BYTES: usize = 64 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, server] = arguments.as_slice() else {
        eprintln!("usage: relay LISTEN SERVER");
        return ExitCode::from(2);
    };
    let listener = match TcpListener::bind(listen) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("relay: {listen}: {error}");
            return ExitCode::from(2);
        }
    };
    for client in listener.incoming() {
        let server = server.clone();
        // A client that cannot be served is closed, and sees that.
        let serve = move || client.and_then(|client| serve(&client, &server));
        let _ = thread::Builder::new().spawn(serve);
    }
    ExitCode::SUCCESS
}

fn serve(client: &TcpStream, server: &str) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from, to) = (server.try_clone()?, client.try_clone()?);
    let answers = thread::Builder::new().spawn(move || copy(&from, &to))?;
    copy(client, &server);
    // Its panic was already reported.
    let _ = answers.join();
    Ok(())
}

/// Until one of the two ends, or fails; the other hears of it.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to
            .write_all(buffer.get(..count).unwrap_or_default())
            .is_err()
        {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
