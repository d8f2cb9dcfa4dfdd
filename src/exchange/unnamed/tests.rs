//! Conversations, and the statement behind them.

use super::*;
use crate::exchange::Exchange;
use crate::message::TransactionStatus;

/// A tracker with the exchange that tells it which answer is whose.
#[derive(Default)]
struct Session {
    exchange: Exchange,
    tracker: UnnamedTracker,
}

impl Session {
    fn request(&mut self, tag: FrontendTag, effect: UnnamedEffect, frame: &[u8]) {
        let place = self.exchange.place();
        self.exchange.request(tag);
        self.tracker.request(tag, effect, frame, place);
    }

    fn response(&mut self, tag: BackendTag) {
        self.answer(tag, false);
    }

    fn answer(&mut self, tag: BackendTag, unread: bool) {
        let place = self.exchange.place_of_answer(tag);
        self.exchange.response(tag, Some(TransactionStatus::Idle));
        let answered = self.exchange.answered();
        self.tracker.response(tag, place, answered, unread);
        if tag == BackendTag::READY_FOR_QUERY && self.exchange.is_answered() {
            self.tracker.all_answered();
        }
    }
}

/// Messages as letters: the client's `p` Parse unnamed, `P` named, `L` a long one
/// unnamed, `k` Close of the unnamed statement, the others as in the protocol; behind
/// a colon the server's.
fn after(conversation: &str) -> Unnamed {
    let mut session = Session::default();
    let mut parses = 0;
    for turn in conversation.split_whitespace() {
        let (requests, responses) = turn.split_once(':').unwrap_or((turn, ""));
        for request in requests.bytes() {
            let (tag, effect) = match request {
                b'p' => (b'P', UnnamedEffect::Parse { bytes: 1 }),
                b'L' => (b'P', UnnamedEffect::LongParse),
                b'k' => (b'C', UnnamedEffect::Close),
                other => (other, UnnamedEffect::None),
            };
            parses += u8::from(request == b'p');
            session.request(FrontendTag(tag), effect, &[parses, 0]);
        }
        for response in responses.bytes() {
            // A small `e`: the error of a message that was not read.
            let unread = response == b'e';
            session.answer(BackendTag(if unread { b'E' } else { response }), unread);
        }
    }
    assert!(session.exchange.is_answered(), "{conversation}");
    session.tracker.statement
}

#[test]
fn the_statement_is_what_the_server_keeps() {
    let parsed = |number: u8| Unnamed::Parsed(vec![number]);
    let table = [
        ("", Unnamed::None),
        ("pS:1Z", parsed(1)),
        ("pBES:12CZ", parsed(1)),
        ("pS:1Z pS:1Z", parsed(2)),
        ("LS:1Z", Unnamed::TooLong),
        ("LS:1Z pS:1Z", parsed(1)),
        ("pS:1Z PBES:12CZ", parsed(1)),
        // A simple Query takes it away, whatever comes of it.
        ("pS:1Z Q:TDCZ", Unnamed::None),
        ("pS:1Z Q:EZ", Unnamed::None),
        ("pS:1Z F:VZ", parsed(1)),
        ("pS:1Z kS:3Z", Unnamed::None),
        // A Parse that fails takes the one before it away.
        ("pS:1Z pS:EZ", Unnamed::None),
        // Unless it could not be read, of which the messages tell too little.
        ("pS:1Z pS:eZ", Unnamed::Unknown),
        ("pS:1Z Q:eZ", Unnamed::Unknown),
        ("pS:eZ", Unnamed::None),
        ("pS:1Z BpS:eZ", parsed(1)),
        // One that is skipped does not.
        ("pS:1Z BpS:EZ", parsed(1)),
        ("pBEpBES:12EZ", parsed(1)),
        ("pBES:12EZ", parsed(1)),
        // Batches behind each other, the second without the first one's error.
        ("pBESpBES:12EZ12CZ", parsed(2)),
        ("pBESQpBES:12EZTCZ12CZ", parsed(2)),
        ("pBESQ:12EZTCZ", Unnamed::None),
        // A Query within a skip is dropped with it.
        ("pS:1Z BQS:EZ", parsed(1)),
        ("pS:1Z BDQpS:EZ", parsed(1)),
        ("pS:1Z PBQS:12TCZZ", Unnamed::None),
        ("QpS:TCZ1Z", parsed(1)),
        ("pDS:1tTZ", parsed(1)),
        // A COPY swallows Syncs: as psql copies, as pg8000 does, and pipelined.
        ("pS:1Z QSdc:GCZ", Unnamed::None),
        ("pS:1Z BESS:2G dcS:CZ pS:1Z", parsed(2)),
        ("pS:1Z BESS:2G dcS:EZ pS:1Z", parsed(2)),
        ("pS:1Z BES:2G dcS:EZ kS:3Z", Unnamed::None),
        ("pS:1Z BES:2G dcS:EZ BpS:EZ Q:CZ", Unnamed::None),
        ("PBESScSpBESkPBEcS:12GCZ12CZ312GCZ", Unnamed::None),
        ("PBESScSpBESPBEcS:12GCZ12CZ12GCZ", parsed(1)),
        ("PBESScSpBESPBEcSBS:12GCZ1EZ12GCZEZ", parsed(1)),
        // Behind a COPY's failure, and before it is known how far the server skips.
        ("pS:1Z BES:2G f:E pBES:Z PBS:12Z", Unnamed::Unknown),
        // What stands between a COPY's end and its Sync is skipped with it.
        ("pS:1Z BES:2G fCS:EZ pS:1Z", parsed(2)),
        ("PpS:11Z BES:2G fCS:EZ PPpS:111Z PS:EZ S:Z CS:3Z", parsed(2)),
        ("PpS:11Z BESS:2G cCPS:EZ PPpSPSS:111ZEZZ CS:3Z", parsed(2)),
        ("pS:1Z BESS:2G cpS:EZ CS:3Z pS:1Z", parsed(3)),
        ("pS:1Z BESS:2G cpS:EZ CS:3Z", Unnamed::Unknown),
        ("pS:1Z BES:2G dcCpS:EZ PS:1Z", Unnamed::Unknown),
        // Behind one that succeeds it is not.
        ("pS:1Z BES:2G dcPBpS:C1EZ", parsed(1)),
        ("pS:1Z BES:2G cPCpS:CEZ", parsed(1)),
        ("pS:1Z BES:2G cPCpS:C13EZ", Unnamed::None),
        ("pS:1Z BES:2G cpS:C1Z", parsed(2)),
        // The Sync in the COPY ends the skip, and another batch begins behind it.
        ("pS:1Z BE:2G S:EZ pBS:1EZ", parsed(2)),
        ("pS:1Z BE:2G S:EZ pS:EZ", Unnamed::None),
        // All sent before the CopyInResponse.
        ("pS:1Z BEdScCpS:2GEZ31Z", Unnamed::Unknown),
    ];
    for (conversation, expected) in table {
        assert_eq!(after(conversation), expected, "{conversation}");
    }
}

#[test]
fn a_count_that_went_wrong_is_not_believed() {
    let parse = UnnamedEffect::Parse { bytes: 1 };
    let mut session = Session::default();
    let place = session.exchange.place();
    (session.tracker).request(FrontendTag::PARSE, parse, b"x", place);
    session.tracker.all_answered();
    assert_eq!(session.tracker.statement, Unnamed::Unknown);
    session.request(FrontendTag::PARSE, parse, b"x");
    session.request(FrontendTag::SYNC, UnnamedEffect::None, b"");
    session.response(BackendTag::PARSE_COMPLETE);
    session.response(BackendTag::READY_FOR_QUERY);
    assert_eq!(session.tracker.statement, Unnamed::Parsed(b"x".to_vec()));
    // A batch is over, and its Parse was neither answered nor skipped.
    session.request(FrontendTag::PARSE, parse, b"y");
    session.request(FrontendTag::SYNC, UnnamedEffect::None, b"");
    session.response(BackendTag::READY_FOR_QUERY);
    assert_eq!(session.tracker.statement, Unnamed::Unknown);
}

#[test]
fn a_statement_parsed_again_and_again_takes_no_new_memory() {
    let mut session = Session::default();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        let parse = UnnamedEffect::Parse { bytes: 3 };
        session.request(FrontendTag::PARSE, parse, b"abc");
        session.request(FrontendTag::SYNC, UnnamedEffect::None, b"");
        session.response(BackendTag::PARSE_COMPLETE);
        session.response(BackendTag::READY_FOR_QUERY);
        if let Unnamed::Parsed(frame) = session.tracker.statement() {
            seen.insert(frame.as_ptr());
        }
    }
    assert!(seen.len() <= 2, "{seen:?}");
}

#[test]
fn one_that_fails_again_and_again_leaves_nothing_behind() {
    let mut session = Session::default();
    let frame = vec![b'x'; 60_000];
    let parse = UnnamedEffect::Parse { bytes: frame.len() };
    for answer in [BackendTag::ERROR_RESPONSE; 20] {
        session.request(FrontendTag::PARSE, parse, &frame);
        session.request(FrontendTag::SYNC, UnnamedEffect::None, b"");
        session.response(answer);
        session.response(BackendTag::READY_FOR_QUERY);
        assert_eq!(*session.tracker.statement(), Unnamed::None);
        assert_eq!(session.tracker.pending_bytes, 0);
    }
}

#[test]
fn what_is_sent_behind_an_error_for_ever_takes_no_memory_for_ever() {
    let mut session = Session::default();
    let frame = vec![b'x'; 60_000];
    let bytes = frame.len();
    for effect in [UnnamedEffect::Parse { bytes }, UnnamedEffect::Close] {
        for _ in 0..10_000 {
            let tag = match effect {
                UnnamedEffect::Close => FrontendTag::CLOSE,
                _ => FrontendTag::PARSE,
            };
            session.request(tag, effect, &frame);
            assert!(session.tracker.pending_bytes <= MAX_PENDING_BYTES + bytes);
            assert!(session.tracker.pending.len() <= MAX_PENDING + 1);
        }
        session.response(BackendTag::ERROR_RESPONSE);
        session.request(FrontendTag::SYNC, UnnamedEffect::None, &[]);
        session.response(BackendTag::READY_FOR_QUERY);
        assert_eq!(*session.tracker.statement(), Unnamed::Unknown);
    }
    // And heals with the next one.
    session.request(
        FrontendTag::PARSE,
        UnnamedEffect::Parse { bytes: 3 },
        b"abc",
    );
    session.response(BackendTag::PARSE_COMPLETE);
    assert_eq!(
        *session.tracker.statement(),
        Unnamed::Parsed(b"abc".to_vec())
    );
}
