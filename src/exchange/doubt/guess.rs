//! Where the server may be, and where an answer shows it to be next.

use super::MAX_GUESSES;
use super::requests::{Requests, SOME_MESSAGE, Sent, ends_batch, ends_copy};
use crate::exchange::{Place, SkipRule};
use crate::message::{BackendTag, FrontendTag};

/// A guess that is left by an answer, and the request that this was about.
pub(super) type Step = (Guess, Option<Place>);

/// Where the server may be.  Requests are numbered as they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guess {
    /// The next answer is about the request with that number.
    Run {
        at: u64,
        /// Nothing of its batch has been carried out.
        fresh: bool,
    },
    /// It drops everything up to a Sync.
    Skip { from: u64 },
    /// It carries out a Query, and `next` comes after.
    InQuery { next: u64, own: Option<Place> },
    /// Only the ReadyForQuery is to come, then it is at `next`.
    Ending { next: u64, own: Option<Place> },
    /// It reads COPY data from `from` on, for an Execute or a Query.
    Copying {
        from: u64,
        own: Option<Place>,
        by_query: bool,
    },
}

impl Guess {
    /// The first request that it still has to do with.
    pub(super) const fn first(self) -> u64 {
        match self {
            Self::Run { at, .. } => at,
            Self::Skip { from } | Self::Copying { from, .. } => from,
            Self::InQuery { next, .. } | Self::Ending { next, .. } => next,
        }
    }

    /// What it becomes by an answer of that type, into `out`; nothing where that cannot come.
    pub(super) fn step(self, requests: &Requests, tag: BackendTag, out: &mut Vec<Step>) {
        match self {
            Guess::Run { at, fresh } => {
                if let Some(sent) = requests.get(at) {
                    step_run(requests.rule, at, sent, fresh, tag, out);
                }
            }
            Guess::Skip { from } => {
                if tag == BackendTag::READY_FOR_QUERY {
                    let mut from = from;
                    while let Some(at) = requests.find(from, ends_batch) {
                        let sent = requests.get(at);
                        let is_sync = sent.is_some_and(|sent| sent.tag == FrontendTag::SYNC);
                        from = at + 1;
                        if is_sync || requests.rule == SkipRule::Unknown {
                            let run = Guess::Run {
                                at: from,
                                fresh: true,
                            };
                            out.push((run, sent.and_then(|sent| sent.place)));
                        }
                        if is_sync {
                            break;
                        }
                    }
                }
            }
            Guess::InQuery { next, own } => {
                let guess = match tag {
                    BackendTag::READY_FOR_QUERY => Guess::Run {
                        at: next,
                        fresh: true,
                    },
                    BackendTag::COPY_IN_RESPONSE => Guess::Copying {
                        from: next,
                        own,
                        by_query: true,
                    },
                    BackendTag::ERROR_RESPONSE => Guess::Ending { next, own },
                    BackendTag::PARSE_COMPLETE
                    | BackendTag::BIND_COMPLETE
                    | BackendTag::CLOSE_COMPLETE
                    | BackendTag::NO_DATA
                    | BackendTag::PARAMETER_DESCRIPTION
                    | BackendTag::PORTAL_SUSPENDED => return,
                    _ => self,
                };
                out.push((guess, own));
            }
            Guess::Ending { next, own } => {
                if tag == BackendTag::READY_FOR_QUERY {
                    let run = Guess::Run {
                        at: next,
                        fresh: true,
                    };
                    out.push((run, own));
                }
            }
            Guess::Copying {
                from,
                own,
                by_query,
            } => step_copying(requests, from, own, by_query, tag, out),
        }
    }
}

fn step_run(
    rule: SkipRule,
    at: u64,
    sent: Sent,
    fresh: bool,
    tag: BackendTag,
    out: &mut Vec<Step>,
) {
    let own = sent.place;
    let next = at + 1;
    let same = Guess::Run { at, fresh };
    let done = Guess::Run {
        at: next,
        fresh: false,
    };
    let ending = Guess::Ending { next, own };
    let copying = |by_query| Guess::Copying {
        from: next,
        own,
        by_query,
    };
    let (is_execute, is_describe) = match sent.tag {
        SOME_MESSAGE => (true, true),
        other => (
            other == FrontendTag::EXECUTE,
            other == FrontendTag::DESCRIBE,
        ),
    };
    let is = |wanted| sent.tag == wanted || sent.tag == SOME_MESSAGE;
    let guess = match tag {
        BackendTag::ERROR_RESPONSE => match sent.tag {
            // A Sync with nothing before it has nothing that could fail.
            FrontendTag::SYNC if fresh => return,
            FrontendTag::SYNC | FrontendTag::QUERY => ending,
            FrontendTag::FUNCTION_CALL if rule == SkipRule::ToSync => ending,
            _ => Guess::Skip { from: next },
        },
        BackendTag::READY_FOR_QUERY if sent.tag == FrontendTag::SYNC => Guess::Run {
            at: next,
            fresh: true,
        },
        // Of those too far back to be known by their types one counts as the other.
        BackendTag::FUNCTION_CALL_RESPONSE
            if matches!(sent.tag, FrontendTag::FUNCTION_CALL | FrontendTag::QUERY) =>
        {
            ending
        }
        BackendTag::PARSE_COMPLETE if is(FrontendTag::PARSE) => done,
        BackendTag::BIND_COMPLETE if is(FrontendTag::BIND) => done,
        BackendTag::CLOSE_COMPLETE if is(FrontendTag::CLOSE) => done,
        BackendTag::PARAMETER_DESCRIPTION if is_describe => same,
        BackendTag::NO_DATA if is_describe => done,
        BackendTag::PORTAL_SUSPENDED if is_execute => done,
        BackendTag::ROW_DESCRIPTION if is_describe => done,
        BackendTag::COMMAND_COMPLETE | BackendTag::EMPTY_QUERY_RESPONSE if is_execute => done,
        BackendTag::DATA_ROW
        | BackendTag::COPY_OUT_RESPONSE
        | BackendTag::COPY_BOTH_RESPONSE
        | BackendTag::COPY_DATA
        | BackendTag::COPY_DONE
            if is_execute =>
        {
            same
        }
        BackendTag::COPY_IN_RESPONSE if is_execute => copying(false),
        BackendTag::COPY_IN_RESPONSE if sent.tag == FrontendTag::QUERY => copying(true),
        BackendTag::ROW_DESCRIPTION
        | BackendTag::COMMAND_COMPLETE
        | BackendTag::EMPTY_QUERY_RESPONSE
        | BackendTag::DATA_ROW
        | BackendTag::COPY_OUT_RESPONSE
        | BackendTag::COPY_BOTH_RESPONSE
            if sent.tag == FrontendTag::QUERY =>
        {
            Guess::InQuery { next, own }
        }
        _ => return,
    };
    out.push((guess, own));
}

fn step_copying(
    requests: &Requests,
    from: u64,
    own: Option<Place>,
    by_query: bool,
    tag: BackendTag,
    out: &mut Vec<Step>,
) {
    let ended = requests.find(from, ends_copy);
    match (tag, ended) {
        (BackendTag::COMMAND_COMPLETE, Some(end)) => {
            let next = end + 1;
            let guess = match by_query {
                true => Guess::InQuery { next, own },
                false => Guess::Run {
                    at: next,
                    fresh: false,
                },
            };
            out.push((guess, own));
        }
        (BackendTag::ERROR_RESPONSE, _) => {
            let last = ended.map_or(requests.end(), |end| end + 1);
            let mut at = from;
            let mut begins = Vec::new();
            while let Some(sync) = requests.find(at, |tag| tag == FrontendTag::SYNC) {
                if sync >= last || begins.len() > MAX_GUESSES {
                    break;
                }
                begins.push(sync);
                at = sync + 1;
            }
            begins.push(last);
            out.extend(begins.into_iter().map(|at| {
                let guess = match by_query {
                    true => Guess::Ending { next: at, own },
                    false => Guess::Skip { from: at },
                };
                (guess, own)
            }));
        }
        _ => {}
    }
}
