//! Host names to addresses, with a deadline that the C library's resolver has not.
//!
//! A few threads sit in that resolver; whoever needs an address waits for their
//! answer as long as he has time.  One lookup of a name at a time, shared by all
//! who ask meanwhile: a silent name server costs as many threads as there are
//! here, however many clients connect.  An address is not looked up.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use crate::config::Address;
use crate::error::{Error, Peer};
use crate::threads;

/// How many names can be waited for at once; started when the first is asked for.
/// Counted in `limits`' reserve.
const THREADS: usize = 4;

const RESOLVING: &str = "resolving its name";

/// What the C library said; cloned for each who waits.
type Answer = Result<Vec<IpAddr>, (ErrorKind, String)>;

/// One lookup of one name.
struct Lookup {
    host: String,
    answer: Mutex<Option<Answer>>,
    answered: Condvar,
}

#[derive(Default)]
struct Lookups {
    by_host: HashMap<String, Arc<Lookup>>,
    threads: usize,
}

/// Looks names up, on threads of its own, which end when it is dropped and their
/// last lookup is over.
pub(crate) struct Resolver {
    lookups: Arc<Mutex<Lookups>>,
    queue: Sender<Arc<Lookup>>,
    queued: Receiver<Arc<Lookup>>,
    ask: fn(&str) -> io::Result<Vec<IpAddr>>,
}

impl Resolver {
    /// Asks the C library.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self::asking(|host| {
            let found = (host, 0).to_socket_addrs()?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }

    fn asking(ask: fn(&str) -> io::Result<Vec<IpAddr>>) -> Self {
        let (queue, queued) = crossbeam_channel::unbounded();
        Self {
            lookups: Arc::default(),
            queue,
            queued,
            ask,
        }
    }

    /// The addresses of a name.
    ///
    /// # Errors
    /// That there are none, or a timeout at `deadline`.
    pub(crate) fn resolve(
        &self,
        address: &Address,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, Error> {
        let Address { host, port } = address;
        let with_port = |ip| SocketAddr::new(ip, *port);
        if let Ok(ip) = host.parse() {
            return Ok(vec![with_port(ip)]);
        }
        let failed = |source| Error::io(Peer::Server, RESOLVING, source);
        let lookup = self.lookup(host).map_err(failed)?;
        let mut answer = lookup.answer.lock();
        while answer.is_none() {
            let waited = lookup.answered.wait_until(&mut answer, deadline);
            if waited.timed_out() && answer.is_none() {
                return Err(failed(ErrorKind::TimedOut.into()));
            }
        }
        match &*answer {
            Some(Ok(found)) => Ok(found.iter().copied().map(with_port).collect()),
            Some(Err((kind, text))) => Err(failed(io::Error::new(*kind, text.clone()))),
            None => Err(failed(ErrorKind::TimedOut.into())),
        }
    }

    /// The lookup of `host` that is under way, or a new one.
    fn lookup(&self, host: &str) -> io::Result<Arc<Lookup>> {
        let mut lookups = self.lookups.lock();
        if let Some(lookup) = lookups.by_host.get(host) {
            return Ok(Arc::clone(lookup));
        }
        let idle = self.queued.is_empty() && lookups.by_host.len() < lookups.threads;
        if !idle && lookups.threads < THREADS {
            match self.start_thread() {
                Ok(()) => lookups.threads += 1,
                Err(error) if lookups.threads == 0 => return Err(error),
                // The others will come to it.
                Err(error) => log::warn!(reason:% = error; "no further resolver thread"),
            }
        }
        let lookup = Arc::new(Lookup {
            host: host.to_owned(),
            answer: Mutex::new(None),
            answered: Condvar::new(),
        });
        lookups.by_host.insert(host.to_owned(), Arc::clone(&lookup));
        // Its receiver is here as well.
        let _ = self.queue.send(Arc::clone(&lookup));
        Ok(lookup)
    }

    fn start_thread(&self) -> io::Result<()> {
        let (queued, lookups) = (self.queued.clone(), Arc::clone(&self.lookups));
        let ask = self.ask;
        threads::spawn("resolve".to_owned(), move || {
            for lookup in queued {
                let answer = ask(&lookup.host).map_err(|e| (e.kind(), e.to_string()));
                // Whoever asks from now on wants a newer answer.
                lookups.lock().by_host.remove(&lookup.host);
                *lookup.answer.lock() = Some(answer);
                lookup.answered.notify_all();
            }
        })
        .map(drop)
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    reason = "a failed expectation is the test's failure"
)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn name(host: &str) -> Address {
        Address {
            host: host.to_owned(),
            port: 7,
        }
    }

    #[test]
    fn an_address_is_not_looked_up_and_a_name_is() {
        let resolver = Resolver::asking(|host| match host {
            "known" => Ok(vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]),
            _ => Err(io::Error::other(format!("{host} is not known"))),
        });
        let deadline = Instant::now() + PATIENCE;
        let resolve = |host| resolver.resolve(&name(host), deadline);
        assert_eq!(
            resolve("127.0.0.1").unwrap(),
            ["127.0.0.1:7".parse().unwrap()]
        );
        assert_eq!(resolve("::1").unwrap(), ["[::1]:7".parse().unwrap()]);
        assert_eq!(resolver.lookups.lock().threads, 0);
        let found = ["10.0.0.1:7", "10.0.0.2:7"].map(|a| a.parse().unwrap());
        assert_eq!(resolve("known").unwrap(), found);
        assert_eq!(
            resolve("strange").unwrap_err().to_string(),
            "server connection failed while resolving its name: strange is not known"
        );
        assert_eq!(resolve("known").unwrap(), found);
    }

    /// Names that are never answered, until the test says so.
    #[test]
    fn a_silent_name_server_costs_few_threads_and_nobody_more_than_his_time() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static SILENCE: (Mutex<bool>, Condvar) = (Mutex::new(true), Condvar::new());
        let resolver = Resolver::asking(|_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            let mut silent = SILENCE.0.lock();
            SILENCE.1.wait_while(&mut silent, |silent| *silent);
            Ok(vec![[10, 0, 0, 1].into()])
        });
        thread::scope(|scope| {
            let wait = |host: String, patience| {
                let resolver = &resolver;
                scope.spawn(move || resolver.resolve(&name(&host), Instant::now() + patience))
            };
            // Two hundred clients of six names, all out of time.
            let hasty: Vec<_> = (0..200)
                .map(|n| wait(format!("n{}", n % 6), Duration::from_millis(1)))
                .collect();
            for client in hasty {
                let error = client.join().unwrap().unwrap_err();
                assert!(matches!(error, Error::Timeout { .. }), "{error}");
            }
            assert_eq!(resolver.lookups.lock().threads, THREADS);
            assert_eq!(resolver.lookups.lock().by_host.len(), 6);
            let patient = wait("n5".to_owned(), PATIENCE);
            *SILENCE.0.lock() = false;
            SILENCE.1.notify_all();
            assert_eq!(patient.join().unwrap().unwrap().len(), 1);
        });
        // And once more, where the patient one came behind the answer.
        assert!((6..=7).contains(&ASKED.load(Ordering::SeqCst)));
    }
}
