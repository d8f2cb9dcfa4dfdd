//! One HTTP/1.1 request as bytes, one response as bytes.
//!
//! Knows no sockets; `clients` reads and writes.  Non-goals: keep-alive, request bodies
//! (nothing here takes one).

use std::borrow::Cow;

use thiserror::Error;

/// What common servers take for a whole request header.
pub(super) const MAX_HEAD_BYTES: usize = 8 * 1024;
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

impl Response {
    /// As it is sent.
    pub(super) fn to_bytes(&self, with_body: bool) -> Vec<u8> {
        let allow = match self.status {
            405 => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let policy = match self.policy {
            Some(policy) => {
                format!("Content-Security-Policy: {policy}\r\nReferrer-Policy: no-referrer\r\n")
            }
            None => String::new(),
        };
        // What is said is so now, and no browser is to guess what kind of text it is.
        let mut message = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{policy}{allow}Connection: close\r\n\r\n",
            self.status,
            reason(self.status),
            self.content_type,
            self.body.len(),
        );
        if with_body {
            message.push_str(&self.body);
        }
        message.into_bytes()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}
