//! Who clients may be, where the proxy itself asks them (`[login] method = "scram"`).
//!
//! What is known of a user comes from a file or by a query on a backend.  A user of whom
//! nothing is known gets a question all the same, always the same one, as PostgreSQL asks
//! it (`mock_scram_secret`): by the question nobody learns who is there.

mod auth_query;
mod lookups;

use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use crate::authentication::Question;
use crate::config::{AuthQuery, Config, Login, UserSource};
use crate::error::Error;
use crate::passfile::Passfile;
use crate::scram::{Credential, DEFAULT_ITERATIONS, LibraryFailed, SALT_BYTES, hmac};
use crate::tls::BadFile;
use crate::userlist::Userlist;
pub(crate) use auth_query::Asking;
use lookups::Lookups;

/// Where it comes from what is known of users.
#[derive(Debug)]
pub(crate) enum Source {
    /// All of it.
    File(Userlist),
    /// Asked anew for each login: what a server has changed holds at once, a secret is kept
    /// for nobody who is not here, and a login costs a short connection more.
    Query(AuthQuery),
}

impl Source {
    /// As `[login]` says; `None`: the proxy asks nobody.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn load(login: &Login) -> Result<Option<Self>, BadFile> {
        match &login.users {
            None => Ok(None),
            Some(UserSource::File(file)) => Userlist::load(file).map(Self::File).map(Some),
            Some(UserSource::Query(query)) => Ok(Some(Self::Query(query.clone()))),
        }
    }
}

/// Whether the files that `[login]` names can be used.
///
/// # Errors
/// The first that cannot.
pub fn check(config: &Config) -> Result<(), BadFile> {
    let passfile = config.login.passfile.as_deref();
    passfile.map(Passfile::load).transpose()?;
    Source::load(&config.login).map(drop)
}

/// All that the proxy knows of users, and what it asks them.
pub(crate) struct Users {
    source: RwLock<Option<Arc<Source>>>,
    /// Of this process, and in no file: what unknown users are asked by.
    secret: [u8; 32],
    /// Of the first verifier that a query has found: what others have as well, most
    /// likely.
    iterations: OnceLock<u32>,
    lookups: Lookups,
}

impl Users {
    /// Begins with what `[login]` says.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(crate) fn new(login: &Login) -> Result<Self, BadFile> {
        let mut secret = [0; 32];
        if let Err(error) = getrandom::fill(&mut secret) {
            let file = std::path::Path::new("random numbers");
            return Err(BadFile::new(file, format!("cannot be had: {error}")));
        }
        Ok(Self {
            source: RwLock::new(Source::load(login)?.map(Arc::new)),
            secret,
            iterations: OnceLock::new(),
            lookups: Lookups::default(),
        })
    }

    /// Takes over another source, for logins that begin later.
    pub(crate) fn configure(&self, source: Option<Source>) {
        *self.source.write() = source.map(Arc::new);
    }

    /// `None`: clients are asked by their servers.
    #[must_use]
    pub(crate) fn source(&self) -> Option<Arc<Source>> {
        self.source.read().clone()
    }

    /// What a client is asked that says it is `user`.
    ///
    /// # Errors
    /// It could not be found out.
    pub(crate) fn question(
        &self,
        source: &Source,
        user: &[u8],
        asking: &Asking<'_>,
    ) -> Result<Question, Error> {
        let (known, iterations) = match source {
            Source::File(list) => {
                let known = list.find(user);
                let known = known.ok_or("auth_file has no such user, or no password for it");
                (known, list.iterations())
            }
            Source::Query(query) => {
                let known = self.lookups.look_up(query, user, asking)?;
                if let Ok(Credential::Verifier(verifier)) = &known {
                    let _ = self.iterations.set(verifier.iterations);
                }
                (known, self.iterations.get().copied())
            }
        };
        Ok(match known {
            Ok(Credential::Verifier(verifier)) => Question {
                salt: verifier.salt.clone(),
                iterations: verifier.iterations,
                known: Ok(Credential::Verifier(verifier)),
            },
            // One of whom the password itself is known could be asked by any salt.
            other => Question {
                known: other,
                salt: self.salt(user).map_err(failed)?,
                iterations: iterations.unwrap_or(DEFAULT_ITERATIONS),
            },
        })
    }

    /// The salt of a user that has none, the same each time.
    fn salt(&self, user: &[u8]) -> Result<Vec<u8>, LibraryFailed> {
        let digest = hmac(&self.secret, &[user])?;
        Ok(digest.iter().copied().take(SALT_BYTES).collect())
    }
}

fn failed(failure: LibraryFailed) -> Error {
    let operation = "asking a client for its password";
    let source = std::io::Error::other(failure);
    Error::Lookup(Box::new(Error::io(
        crate::error::Peer::Client,
        operation,
        source,
    )))
}
