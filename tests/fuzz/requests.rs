//! The exchange tracker against a server as the protocol document describes
//! it, without COPY, and against any messages at all.
//!
//! What a real PostgreSQL does beyond that is the property tests' part.

use std::collections::VecDeque;

use bolero::check;
use sqlproxy::internal::{BackendTag, FrontendTag, TransactionStatus};
use sqlproxy::internal::{Exchange, SkipRule};

use super::{INPUTS, Input};

/// Every type byte that means something, and one that does not.
const ANY: &[u8] = b"QPBDECSHFdcfXRK123CdcGHWDIEVvnNAtSsZT!";
const STATUSES: [Option<TransactionStatus>; 4] = [
    Some(TransactionStatus::Idle),
    Some(TransactionStatus::InTransaction),
    Some(TransactionStatus::Failed),
    None,
];

/// Whatever both sides say, nothing panics and the answers fit together.
#[test]
fn any_messages() {
    check!(name = "any_messages")
        .with_iterations(INPUTS)
        .for_each(|bytes: &[u8]| {
            let mut input = Input(bytes);
            let rule = [SkipRule::ToSync, SkipRule::Unknown][input.below(2)];
            let mut exchange = Exchange::with_skip(rule);
            while !input.is_empty() {
                let byte = input.byte();
                let tag = ANY[usize::from(byte & 0x7f) % ANY.len()];
                if byte < 128 {
                    exchange.request(FrontendTag(tag));
                } else {
                    exchange.response(BackendTag(tag), STATUSES[input.below(4)]);
                }
                assert_eq!(exchange.is_safe(), exchange.waiting_for().is_none());
                assert!(!exchange.is_safe() || exchange.is_answered());
                assert!(!exchange.is_safe() || exchange.status() == TransactionStatus::Idle);
                // A batch may begin wherever all is answered.
                assert!(!exchange.is_safe() || exchange.begins_batch(FrontendTag::SYNC));
            }
        });
}

/// The simplest server there is: what it has got and not looked at, and what
/// it has answered and the tracker has not seen.
#[derive(Default)]
struct Server {
    inbox: VecDeque<FrontendTag>,
    outbox: VecDeque<(BackendTag, Option<TransactionStatus>)>,
    /// Drops all up to the next Sync.
    skipping: bool,
    /// Has answered extended messages since the last ReadyForQuery.
    unsynced: bool,
    open: bool,
}

impl Server {
    /// Looks at one message; `choice` decides what becomes of it.
    fn work(&mut self, choice: usize) {
        let Some(tag) = self.inbox.pop_front() else {
            return;
        };
        if self.skipping && tag != FrontendTag::SYNC {
            return;
        }
        let fails = choice.is_multiple_of(4);
        self.unsynced = match tag {
            FrontendTag::SYNC | FrontendTag::QUERY => false,
            FrontendTag::FLUSH => self.unsynced,
            _ => true,
        };
        match tag {
            FrontendTag::SYNC => {
                self.skipping = false;
                self.say_ready();
            }
            FrontendTag::QUERY => {
                match choice {
                    1 => self.open = true,
                    2 => self.open = false,
                    _ => {}
                }
                self.say(if fails {
                    BackendTag::ERROR_RESPONSE
                } else {
                    BackendTag::COMMAND_COMPLETE
                });
                self.say_ready();
            }
            FrontendTag::FLUSH => {}
            _ if fails => {
                self.say(BackendTag::ERROR_RESPONSE);
                self.skipping = true;
            }
            FrontendTag::PARSE => self.say(BackendTag::PARSE_COMPLETE),
            FrontendTag::BIND => self.say(BackendTag::BIND_COMPLETE),
            FrontendTag::CLOSE => self.say(BackendTag::CLOSE_COMPLETE),
            FrontendTag::DESCRIBE => {
                self.say(BackendTag::PARAMETER_DESCRIPTION);
                self.say(BackendTag::NO_DATA);
            }
            _ => {
                self.say(BackendTag::DATA_ROW);
                self.say(BackendTag::COMMAND_COMPLETE);
            }
        }
    }

    fn say(&mut self, tag: BackendTag) {
        self.outbox.push_back((tag, None));
    }

    fn say_ready(&mut self) {
        let status = STATUSES[usize::from(self.open)];
        self.outbox.push_back((BackendTag::READY_FOR_QUERY, status));
    }

    fn owes_nothing(&self) -> bool {
        let flushes = |&tag: &FrontendTag| tag == FrontendTag::FLUSH;
        self.inbox.iter().all(flushes) && self.outbox.is_empty() && !self.skipping
    }
}

/// Where the tracker says safe, the server owes nothing; where the server owes
/// nothing and no batch waits for its Sync, the tracker knows.
#[test]
fn lawful_messages() {
    const REQUESTS: [FrontendTag; 8] = [
        FrontendTag::QUERY,
        FrontendTag::PARSE,
        FrontendTag::BIND,
        FrontendTag::DESCRIBE,
        FrontendTag::EXECUTE,
        FrontendTag::CLOSE,
        FrontendTag::SYNC,
        FrontendTag::FLUSH,
    ];
    check!(name = "lawful_messages")
        .with_iterations(INPUTS)
        .for_each(|bytes: &[u8]| {
            let mut input = Input(bytes);
            let mut exchange = Exchange::new();
            let mut server = Server::default();
            while !input.is_empty() {
                match input.below(4) {
                    0 => {
                        let tag = REQUESTS[input.below(REQUESTS.len())];
                        exchange.request(tag);
                        server.inbox.push_back(tag);
                    }
                    1 => server.work(input.below(8)),
                    _ => {
                        if let Some((tag, status)) = server.outbox.pop_front() {
                            exchange.response(tag, status);
                        }
                    }
                }
                let rests = server.owes_nothing() && !server.unsynced;
                assert!(!exchange.is_answered() || rests, "safe too early");
                assert!(exchange.is_answered() || !rests, "never safe");
                assert!(!exchange.is_safe() || !server.open, "safe in a transaction");
            }
        });
}
