//! One HTTP/1.1 request in, one response out, then the connection is closed.
//!
//! Owned by `admin`, which knows the pages. Every call works against one absolute
//! deadline. Non-goals: keep-alive, request bodies (nothing here takes one).

use std::borrow::Cow;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use thiserror::Error;

/// What common servers take for a whole request header.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// A browser sends some 20, a proxy in front a few more.
const MAX_HEADERS: usize = 64;

/// The request line.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
}

/// Why there is no request.
#[derive(Debug, Error)]
pub(super) enum RequestError {
    #[error("not an HTTP request")]
    Malformed,
    #[error("the header is larger than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} lines")]
    TooLarge,
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// What is answered.
pub(super) struct Response {
    status: u16,
    content_type: &'static str,
    /// Of a page: what its browser may run and load.
    policy: Option<&'static str>,
    body: Cow<'static, str>,
}

impl Response {
    pub(super) fn new(
        status: u16,
        content_type: &'static str,
        body: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            content_type,
            policy: None,
            body: body.into(),
        }
    }

    /// HTML under a Content-Security-Policy.
    pub(super) fn page(html: &'static str, policy: &'static str) -> Self {
        Self {
            policy: Some(policy),
            ..Self::new(200, "text/html; charset=utf-8", html)
        }
    }

    pub(super) fn text(status: u16, body: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }
}

/// Reads up to the end of the header.
pub(super) fn read_request(stream: &TcpStream, deadline: Instant) -> Result<Request, RequestError> {
    let mut head = Vec::new();
    let mut chunk = [0_u8; 1024];
    loop {
        if let Some(request) = parse(&head)? {
            return Ok(request);
        }
        if head.len() >= MAX_HEAD_BYTES {
            return Err(RequestError::TooLarge);
        }
        let count = read_by(stream, &mut chunk, deadline)?;
        if count == 0 {
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        head.extend(chunk.iter().take(count));
    }
}

/// `None`: the header is not complete yet.
pub(super) fn parse(head: &[u8]) -> Result<Option<Request>, RequestError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(status) if status.is_partial() => Ok(None),
        Ok(_) => match (request.method, request.path) {
            (Some(method), Some(target)) => Ok(Some(Request {
                method: method.to_owned(),
                target: target.to_owned(),
            })),
            _ => Err(RequestError::Malformed),
        },
        Err(httparse::Error::TooManyHeaders) => Err(RequestError::TooLarge),
        Err(_) => Err(RequestError::Malformed),
    }
}

/// Writes the response and waits for the client to close: closing first while
/// bytes of it are still unread would reset the connection, and the client might
/// lose the answer.
pub(super) fn write_response(
    stream: &TcpStream,
    response: &Response,
    with_body: bool,
    deadline: Instant,
) -> io::Result<()> {
    let allow = match response.status {
        405 => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    let policy = match response.policy {
        Some(policy) => {
            format!("Content-Security-Policy: {policy}\r\nReferrer-Policy: no-referrer\r\n")
        }
        None => String::new(),
    };
    // What is said is so now, and no browser is to guess what kind of text it is.
    let mut message = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{policy}{allow}Connection: close\r\n\r\n",
        response.status,
        reason(response.status),
        response.content_type,
        response.body.len(),
    );
    if with_body {
        message.push_str(&response.body);
    }
    write_by(stream, message.as_bytes(), deadline)?;
    stream.shutdown(Shutdown::Write)?;
    let mut rest = [0_u8; 1024];
    while read_by(stream, &mut rest, deadline)? > 0 {}
    Ok(())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "",
    }
}

fn read_by(mut stream: &TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn write_by(mut stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Never zero, which would mean no timeout at all.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    Ok(left)
}
