//! `[login]`.

use std::path::PathBuf;

use super::ConfigError;
use super::reader::Section;
use crate::dialect::LoginMethod;
use crate::tls::{ServerTls, SslMode};

const METHODS: [(&str, LoginMethod); 3] = [
    ("trust", LoginMethod::Trust),
    ("cert", LoginMethod::Cert),
    ("passfile", LoginMethod::Passfile),
];

/// How the proxy logs in, and the file that it needs for it.
pub(super) fn read_login(
    root: &Section<'_>,
    server_tls: &ServerTls,
) -> Result<(Option<LoginMethod>, Option<PathBuf>), ConfigError> {
    let Some(section) = root.section("login", &["method", "file"])? else {
        return Ok((None, None));
    };
    let method = section.choice("method", &METHODS)?.ok_or_else(|| {
        section.missing(
            "method",
            "how the proxy logs in: \"trust\", \"cert\" or \"passfile\"",
        )
    })?;
    let file = section.path("file")?;
    match method {
        LoginMethod::Passfile if file.is_none() => Err(section.missing(
            "file",
            "the passwords' file, which method = \"passfile\" needs",
        )),
        LoginMethod::Trust | LoginMethod::Cert if file.is_some() => {
            Err(section.error("file", "only method = \"passfile\" reads one"))
        }
        LoginMethod::Cert if server_tls.cert_file.is_none() => {
            let message = "\"cert\" needs the proxy's own certificate: cert_file and key_file in \
                           [server_tls]";
            Err(section.error("method", message))
        }
        LoginMethod::Cert if matches!(server_tls.sslmode, SslMode::Disable | SslMode::Prefer) => {
            let message = "\"cert\" needs TLS: sslmode = \"require\" or stricter in [server_tls]";
            Err(section.error("method", message))
        }
        LoginMethod::Trust | LoginMethod::Cert | LoginMethod::Passfile => Ok((Some(method), file)),
    }
}
