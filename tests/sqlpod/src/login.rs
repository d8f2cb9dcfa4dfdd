//! From the first byte to the first ReadyForQuery.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::auth::{Scram, Secret};
use crate::config::Auth;
use crate::error::{Failure, PgError};
use crate::faults::Step;
use crate::session::Session;
use crate::settings::VERSION;
use crate::state::State;
use crate::transfer::verify_token;
use crate::wire::{Fields, Message, parameter_status, utf8};

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const PROTOCOL_3_0: u32 = 3 << 16;
/// The startup parameter that a transfer logs in with.
const TOKEN_PARAMETER: &str = "crdb:session_revival_token_base64";
const REMOTE_PARAMETER: &str = "crdb:remote_addr";
const SCRAM: &str = "SCRAM-SHA-256";

impl Session {
    /// Logs the client in; `false` for a connection that was no session.
    pub(crate) fn login(&mut self) -> Result<bool, Failure> {
        self.output.step(Some(Step::Accept), &[])?;
        let (version, packet) = loop {
            match self.output.wire.read_startup()? {
                (SSL_REQUEST, _) if self.pod.tls.is_some() && !self.output.wire.is_tls() => {
                    self.output.wire.send(b"S")?;
                    self.output.wire.flush()?;
                    if let Some(acceptor) = &self.pod.tls {
                        let socket = Arc::clone(&self.handle.socket);
                        self.output.wire.start_tls(acceptor, socket)?;
                    }
                }
                (SSL_REQUEST | GSSENC_REQUEST, _) => {
                    self.output.wire.send(b"N")?;
                    self.output.wire.flush()?;
                }
                (CANCEL_REQUEST, key) => {
                    let mut fields = Fields(&key);
                    self.pod.cancel(fields.u32()?, fields.u32()?);
                    return Ok(false);
                }
                (version, packet) if version >> 16 == 3 => break (version, packet),
                (version, _) => {
                    let (major, minor) = (version >> 16, version & 0xffff);
                    let text = format!(
                        "unsupported frontend protocol {major}.{minor}: server supports 3.0"
                    );
                    return Err(PgError::fatal("0A000", text).into());
                }
            }
        };
        let mut params = BTreeMap::new();
        let mut fields = Fields(&packet);
        loop {
            match fields.text()? {
                "" => break,
                name => params.insert(name.to_ascii_lowercase(), fields.text()?.to_owned()),
            };
        }
        let token = params.remove(TOKEN_PARAMETER);
        self.output.token_login = Some(token.is_some());
        self.output.user = params.get("user").cloned().unwrap_or_default();
        self.output.step(Some(Step::Startup), &[])?;
        self.negotiate(version, &params)?;
        self.take_parameters(params)?;
        match token {
            Some(_) if !self.pod.config.tokens => {
                let text = "session revival tokens are not supported on this cluster";
                return Err(PgError::fatal("28000", text).into());
            }
            Some(token) => verify_token(&self.pod.key, &token, &self.user, SystemTime::now())?,
            None => self.authenticate()?,
        }
        self.welcome()?;
        Ok(true)
    }

    /// Answers a newer minor version, or options of the protocol itself.
    fn negotiate(
        &mut self,
        version: u32,
        params: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let options: Vec<_> = params
            .keys()
            .filter(|name| name.starts_with("_pq_."))
            .collect();
        if version == PROTOCOL_3_0 && options.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(options.len()).unwrap_or(u32::MAX);
        let message = Message::new(b'v').u32(PROTOCOL_3_0).u32(count);
        let message = options
            .iter()
            .fold(message, |message, name| message.text(name));
        Ok(self.output.wire.send(&message.finish())?)
    }

    fn take_parameters(&mut self, mut params: BTreeMap<String, String>) -> Result<(), PgError> {
        let Some(user) = params.remove("user").filter(|user| !user.is_empty()) else {
            let text = "no PostgreSQL user name specified in startup packet";
            return Err(PgError::fatal("28000", text));
        };
        let database = params.remove("database").unwrap_or_else(|| user.clone());
        let mut settings =
            crate::settings::Settings::new(&database, &self.pod.config.server_version);
        let peer = self
            .handle
            .socket
            .peer_addr()
            .map_or(String::new(), |addr| addr.to_string());
        self.remote_addr = params.remove(REMOTE_PARAMETER).unwrap_or(peer);
        let options = params.remove("options").unwrap_or_default();
        for (name, value) in command_line(&options) {
            settings.start(&name, &value)?;
        }
        for (name, value) in params {
            let elsewhere = name.starts_with("_pq_.") || name.starts_with("crdb:");
            if !elsewhere && name != "replication" {
                settings.start(&name, &value)?;
            }
        }
        self.user.clone_from(&user);
        *self.state.lock() = State::new(&user, settings);
        Ok(())
    }

    fn authenticate(&mut self) -> Result<(), Failure> {
        let refuse = format!("password authentication failed for user \"{}\"", self.user);
        let refuse = || PgError::fatal("28P01", &refuse);
        let pod = Arc::clone(&self.pod);
        let secret = pod.secrets.get(&self.user);
        match pod.config.auth {
            Auth::Trust => Ok(()),
            Auth::Password => {
                self.request(3, &[])?;
                let answer = self.password()?;
                let password = Fields(&answer).text()?;
                match secret.is_some_and(|secret| secret.matches(password)) {
                    true => Ok(()),
                    false => Err(refuse().into()),
                }
            }
            Auth::ScramSha256 => {
                self.request(10, format!("{SCRAM}\0\0").as_bytes())?;
                // An unknown user takes the same way, and fails at its end.
                let nobody = Secret::new("");
                let known = secret.is_some();
                let secret = secret.unwrap_or(&nobody);
                let answer = self.password()?;
                let mut fields = Fields(&answer);
                if fields.text()? != SCRAM {
                    return Err(PgError::protocol("unknown SASL mechanism").into());
                }
                let first = fields.field()?.unwrap_or_default();
                let (scram, challenge) = Scram::begin(secret, utf8(first)?)?;
                self.request(11, challenge.as_bytes())?;
                let answer = self.password()?;
                let verdict = scram.finish(utf8(&answer)?)?.filter(|_| known);
                let verdict = verdict.ok_or_else(refuse)?;
                self.request(12, verdict.as_bytes())
            }
        }
    }

    /// An authentication request other than AuthenticationOk.
    fn request(&mut self, code: i32, data: &[u8]) -> Result<(), Failure> {
        let message = Message::new(b'R').i32(code).bytes(data).finish();
        self.output.step(Some(Step::Authentication), &message)?;
        Ok(self.output.wire.flush()?)
    }

    fn password(&mut self) -> Result<Vec<u8>, Failure> {
        match self.receive()? {
            (b'p', body) => Ok(body),
            (tag, _) => {
                let text = format!("expected password response, got message type {tag}");
                Err(PgError::protocol(text).into())
            }
        }
    }

    fn welcome(&mut self) -> Result<(), Failure> {
        let ok = Message::new(b'R').i32(0).finish();
        self.output.step(Some(Step::AuthenticationOk), &ok)?;
        self.reported = self.state.lock().settings.reported();
        let superuser = if self.user == "root" { "on" } else { "off" };
        let version = self.pod.config.server_version.clone();
        let fixed = [
            ("crdb_version", VERSION),
            ("integer_datetimes", "on"),
            ("is_superuser", superuser),
            ("server_encoding", "UTF8"),
            ("server_version", &version),
            ("session_authorization", &self.user),
        ];
        let mut messages: Vec<_> = fixed
            .iter()
            .map(|(name, value)| parameter_status(name, value))
            .collect();
        let reported = self.reported.iter();
        messages.extend(reported.map(|(name, value)| parameter_status(name, value)));
        for message in messages {
            self.output.step(Some(Step::ParameterStatus), &message)?;
        }
        let (pid, secret) = (self.handle.pid, self.handle.secret);
        let key = Message::new(b'K').u32(pid).u32(secret).finish();
        self.output.step(Some(Step::BackendKeyData), &key)?;
        self.pod.logged_in(pid);
        self.output.step(
            Some(Step::LoginReady),
            &Message::new(b'Z').u8(b'I').finish(),
        )?;
        Ok(self.output.wire.flush()?)
    }
}

/// Settings in the startup parameter `options`: `-c name=value` and
/// `--name=value`, a backslash before a blank that does not separate.
fn command_line(options: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match (c, words.last_mut()) {
            ('\\', Some(word)) => word.extend(chars.next()),
            (c, _) if c.is_whitespace() => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    let pairs = words.iter().filter_map(|word| {
        let pair = word
            .strip_prefix("--")
            .or_else(|| word.strip_prefix("-c"))
            .unwrap_or(word);
        pair.split_once('=')
            .map(|(name, value)| (name.replace('-', "_"), value.to_owned()))
    });
    // CockroachDB Cloud routes by `--cluster`; it is no setting.
    pairs.filter(|(name, _)| name != "cluster").collect()
}
