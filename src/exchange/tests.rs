//! Scripts of message types and what the tracker must say after each message.
//!
//! A step is `>` (client) or `<` (server), the type byte, for a ReadyForQuery
//! its status byte, and the expectation: `.` safe, `c` COPY, `t` open
//! transaction, `q` query running, `b` batch without Sync.

use super::*;

/// Runs a script and returns the steps after which the tracker said something
/// else than expected, with what it said.
fn run(exchange: &mut Exchange, script: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, step) in script.split_whitespace().enumerate() {
        let mut bytes = step.bytes();
        let (side, tag, last) = (bytes.next(), bytes.next().unwrap_or(0), bytes.next_back());
        if side == Some(b'>') {
            exchange.request(FrontendTag(tag));
        } else {
            let status = bytes.next().and_then(TransactionStatus::from_byte);
            exchange.response(BackendTag(tag), status);
        }
        let said = match exchange.waiting_for() {
            None => b'.',
            Some(WaitingFor::Copy) => b'c',
            Some(WaitingFor::OpenTransaction) => b't',
            Some(WaitingFor::QueryRunning) => b'q',
            Some(WaitingFor::BatchWithoutSync) => b'b',
        };
        if last != Some(said) || exchange.is_safe() != (said == b'.') {
            wrong.push(format!("step {index} {step}: {}", char::from(said)));
        }
    }
    wrong
}

pub(super) fn check(rule: SkipRule, table: &[(&str, &str)]) {
    let wrong: Vec<_> = table
        .iter()
        .map(|(name, script)| (name, run(&mut Exchange::with_skip(rule), script)))
        .filter(|(_, wrong)| !wrong.is_empty())
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn simple_queries() {
    check(
        SkipRule::ToSync,
        &[
            ("one query", ">Qq <Tq <Dq <Cq <ZI."),
            ("several statements", ">Qq <Tq <Dq <Cq <Cq <Tq <Cq <ZI."),
            ("empty query", ">Qq <Iq <ZI."),
            ("failed query", ">Qq <Eq <ZI."),
            ("pipelined", ">Qq >Qq <Cq <ZIq >Qq <Cq <ZIq <Cq <ZI."),
            ("failed query does not skip", ">Qq >Qq <Eq <ZIq <Cq <ZI."),
            ("transaction", ">Qq <Cq <ZTt >Qt <Et <ZEt >Qt <Ct <ZI."),
            ("function call", ">Fq <Vq <ZI. >Fq <Eq <ZI."),
            (
                "asynchronous messages",
                "<N. <S. <A. >Qq <Nq <Cq <Sq <ZI. <A.",
            ),
            ("unknown status byte", ">Qq <Cq <Z?t >Qt <Ct <ZI."),
            ("Terminate and unknown types", ">X. >p. >!. <!. <v. <R. <K."),
            ("FATAL while idle", "<E. >Qq <Eq"),
        ],
    );
}

#[test]
fn extended_batches() {
    check(
        SkipRule::ToSync,
        &[
            ("batch", ">Pb >Bb >Db >Eb >Sq <1q <2q <Tq <Dq <Cq <ZI."),
            ("statement described", ">Pb >Db >Sq <1q <tq <nq <ZI."),
            ("lone Sync", ">Sq <ZI."),
            ("lone Flush", ">H."),
            (
                "answered but not synced",
                ">Pb >Hb <1b >Bb >Eb >Hb <2b <sb >Sq <ZI.",
            ),
            ("two batches", ">Pb >Sq >Pq >Sq <1q <ZIq <1q <ZI."),
            (
                "batch ended by a Query",
                ">Pb >Bb >Eb >Qq <1q <2q <Cq <Cq <ZI.",
            ),
            ("error skips to Sync", ">Pb >Bb >Eb >Sq <Eq <ZI."),
            (
                "error after a Describe",
                ">Pb >Db >Pb >Qq <1q <tq <nq <Eb >Sq <ZI.",
            ),
            (
                "error before the Sync is sent",
                ">Pb <Eb >Bb >Eb >Cb >Sq <ZI.",
            ),
            (
                "error drops a Query",
                ">Pb >Qq >Fq <Eb >Qb >cb >Pb >Sq <ZI.",
            ),
            (
                "error of the Query after a batch",
                ">Pb >Bb >Qq <1q <2q <Eq <ZI. >Qq <Cq <ZI.",
            ),
            ("error of the commit", ">Bb >Eb >Sq <2q <Cq <Eq <ZI."),
            (
                "error in the second batch",
                ">Bb >Sq >Bq >Qq >Bq >Sq <2q <ZIq <Eq <ZI.",
            ),
            (
                "error drops equal batches but one",
                ">Bb >Qq >Bq >Qq >Bq >Sq >Bq >Sq <Eq <ZIq <2q <ZI.",
            ),
            (
                "error after all answers of an open batch",
                ">Pb <1b <Eb >Qb >Sq <ZI.",
            ),
            (
                "transaction of a batch",
                ">Bb >Eb >Sq <2q <Cq <ZTt >Bt >St <Et <ZEt",
            ),
        ],
    );
}

#[test]
fn copy() {
    check(
        SkipRule::ToSync,
        &[
            ("in", ">Qq <Gc >dc >cc <Cq <ZI."),
            ("in, failed by the client", ">Qq <Gc >dc >fc <Eq <ZI."),
            ("in, failed by the server", ">Qq <Gc >dc <Eq <ZI. >d. >c."),
            (
                "in, failed by the server, ended late",
                ">Qq <Gc <Eq >dq >cq <ZI.",
            ),
            ("in, data sent early", ">Qq >dq >cq <Gc <Cq <ZI."),
            (
                "in, data sent early, refused",
                ">Qq >dq >cq >Qq <Eq <ZIq <Cq <ZI.",
            ),
            ("in, twice in a query", ">Qq >cq <Gc <Cq <Gc >cc <Cq <ZI."),
            (
                "in, twice, ended early",
                ">Qq >cq >cq >Qq <Gc <Cq <Gc <Cq <ZIq <Iq <ZI.",
            ),
            (
                "in, twice, first fails",
                ">Qq >cq >cq >Qq <Gc <Eq <ZIq <Iq <ZI.",
            ),
            (
                "in, with Syncs",
                ">Qq >Sq >Sq >cq >Sq <Gc >Sc <Cq <ZIq <ZIq <ZI.",
            ),
            ("in, with Syncs, refused", ">Qq >Sq >cq <Eq <ZIq <ZI."),
            ("out", ">Qq <Hc <dc <cc <Cq <ZI."),
            ("both", ">Qq <Wc <dc >dc >cc <dc <cc <Cq <Cq <ZI."),
            ("end outside a COPY", ">d. >c. >f. >Qq >cq <Cq <ZI. >c."),
            (
                "extended",
                ">Pb >Bb >Eb >Sq <1q <2q <Gc >dc >cc >Sc <Cq <ZI.",
            ),
            (
                "extended, early",
                ">Pb >Bb >Eb >Sq >cq >Sq <1q <2q <Gc <Cq <ZI.",
            ),
            (
                "extended, refused",
                ">Pb >Bb >Eb >Sq >cq >Sq <1q <2q <Eq <ZIq <ZI.",
            ),
            ("extended, not synced", ">Bb >Eb >cb <2b <Gc <Cb >Sq <ZI."),
            (
                "extended, not a COPY",
                ">Bb >Eb >cb <2b <Cb >Bb >Sq <2q <ZI.",
            ),
            (
                "extended, twice",
                ">Bb >Eb >cb >Bb >Eb >cb >Sq <2q <Gc <Cq <2q <Gc <Cq <ZI.",
            ),
            (
                "extended, not a COPY, twice",
                ">Bb >Eb >cb >Eb >cb >Eb >cb <2b <Cb <Cb <Cb >Sq <ZI.",
            ),
            (
                "extended, Sync after the CopyInResponse",
                ">Eb <Gc >Sc >cc <Cb >Sq <ZI.",
            ),
            ("extended out", ">Bb >Eb >Sq <2q <Hc <dc <cc <Cq <ZI."),
            (
                "extended, fails, no Sync before",
                ">Bb >Eb <2b <Gc >dc <Eb >db >cb >Qb >Sq <ZI.",
            ),
            (
                "next batch after an open COPY",
                ">Bb >Eb <2b <Gc >cc >Bc >Ec >Sc <Cq <2q <Cq <ZI.",
            ),
        ],
    );
}

/// The one ambiguity: the Sync may have been read before the failure or after.
#[test]
fn swallowed_sync() {
    let failed = ">Eb >Sq <Gc >dc <Eq >cq";
    check(
        SkipRule::ToSync,
        &[
            ("answered", &format!("{failed} <ZI. >Sq <ZI.")),
            ("ignored", &format!("{failed} >Sq <ZIq >Qq <Tq <Cq <ZI.")),
            (
                "ignored, then a batch",
                &format!("{failed} >Sq <ZIq >Pq >Sq <1q <ZI."),
            ),
            (
                "ignored, then an error",
                &format!("{failed} >Sq <ZIq >Qq <Eq <ZI."),
            ),
            (
                "both answered",
                &format!("{failed} >Sq <ZIq <ZI. >Qq <Eq <ZI."),
            ),
            (
                "both answered late",
                &format!("{failed} >Sq >Qq <ZIq <ZIq <Cq <ZI."),
            ),
            ("by a query", ">Qq >Sq <Gc <Eq <ZIq >Qq <Cq <ZI."),
        ],
    );
}

#[test]
fn unknown_skip_rule() {
    check(
        SkipRule::Unknown,
        &[
            ("Query ends the skip", ">Pb >Qq <Eq <ZI. >Qq <Cq <ZI."),
            ("Query was dropped", ">Pb >Qq >Sq <Eq <ZIq >Qq <Cq <ZI."),
            ("Query after the error", ">Pb <Eb >Qq <ZI."),
            ("Sync ends the skip", ">Pb >Sq <Eq <ZI."),
            (
                "a Query and a batch dropped, the next Query shows it",
                ">Pb >Qq >Pq >Bq >Eq >Sq <Eq <ZIq >Qq <Tq <Cq <ZI.",
            ),
            (
                "a Query and a batch dropped, a shorter batch shows it",
                ">Pb >Qq >Pq >Bq >Eq >Sq <Eq <ZIq >Bq >Eq >Sq <2q <Cq <ZI.",
            ),
            (
                "by a query, answered",
                ">Qq >Sq <Gc >Qc <Eq <ZIq <ZIq >Qq <ZIq <Cq <ZI.",
            ),
            (
                "by a query like the next, answered",
                ">Qq >Sq >fq <Gc >Qc <Eq >Qq <ZIq <ZIq <Cq <ZIq <Cq <ZI.",
            ),
            ("FunctionCall is unknown", ">Fb <Eb >Sq <ZI."),
            (
                "FunctionCall is unknown, a Query is dropped",
                ">Fb >Qq <Eq <ZI.",
            ),
            ("FunctionCall is known after all", ">Fb <Vb <ZI."),
        ],
    );
}

#[test]
fn batches_begin() {
    let begins = |script: &str, tags: &str| -> String {
        let mut exchange = Exchange::new();
        let _ = run(&mut exchange, script);
        tags.bytes()
            .filter(|tag| exchange.begins_batch(FrontendTag(*tag)))
            .map(char::from)
            .collect()
    };
    let all = "QFPBDECSHdcfXp";
    for (name, script, expected) in [
        ("idle", "", "QFPBDECS"),
        ("query running", ">Qq", "QFPBDEC"),
        ("batch begun", ">Pb", ""),
        ("batch begun behind a query", ">Qq >Pb", ""),
        ("batch synced", ">Pb >Sq", "QFPBDEC"),
        ("skipping", ">Pb <Eb", ""),
        ("COPY begun", ">Qq <Gc", ""),
        ("COPY ended", ">Qq <Gc >cc", "QFPBDEC"),
        ("COPY ended early", ">Qq >cq", ""),
        ("extended COPY begun", ">Eb >Sq <Gc", ""),
        ("extended COPY ended, Sync ignored", ">Eb >Sq <Gc >cc", ""),
        (
            "extended COPY ended and synced",
            ">Eb >Sq <Gc >cc >Sc",
            "QFPBDEC",
        ),
    ] {
        assert_eq!(begins(script, all), expected, "{name}");
    }
}

#[test]
fn reasons_read_as_in_the_log() {
    for (reason, text) in [
        (WaitingFor::Copy, "COPY"),
        (WaitingFor::OpenTransaction, "open transaction"),
        (WaitingFor::QueryRunning, "query running"),
        (WaitingFor::BatchWithoutSync, "batch without Sync"),
    ] {
        assert_eq!(reason.to_string(), text);
    }
}

#[test]
fn deep_pipelines_stay_small_and_keep_their_memory() {
    let mut exchange = Exchange::new();
    for _ in 0..100_000 {
        "PBDES"
            .bytes()
            .for_each(|tag| exchange.request(FrontendTag(tag)));
    }
    assert_eq!(exchange.queue.entries(), 1);
    for left in (0..100_000).rev() {
        "12TDC"
            .bytes()
            .for_each(|tag| exchange.response(BackendTag(tag), None));
        assert!(!exchange.is_safe());
        exchange.response(BackendTag::READY_FOR_QUERY, Some(TransactionStatus::Idle));
        assert_eq!(exchange.is_safe(), left == 0);
    }
    let capacity = exchange.queue.capacity();
    assert!(run(&mut exchange, ">Qq <Cq <ZI. >Pb >Sq <1q <ZI.").is_empty());
    assert_eq!(exchange.queue.capacity(), capacity);
}

/// Whatever the two sides send, no panic, and the queue holds no more entries
/// than requests were sent.
#[test]
fn hostile_sequences_are_harmless() {
    // A fixed linear congruential generator (Knuth's MMIX constants) keeps
    // every run the same.
    let mut state = 1_u64;
    let mut random = |below: usize| -> usize {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap_or(0) % below
    };
    let requests = b"QQFPBDECHSSdccfX!";
    let responses = b"123TnCCIsEEGHWVtDdNZZZ!";
    for round in 0..20_000 {
        let rule = if round % 2 == 0 {
            SkipRule::ToSync
        } else {
            SkipRule::Unknown
        };
        let mut exchange = Exchange::with_skip(rule);
        let mut sent = 0;
        for _ in 0..random(60) {
            if random(3) > 0 {
                sent += 1;
                exchange.request(FrontendTag(
                    requests.get(random(requests.len())).copied().unwrap_or(0),
                ));
            } else {
                let tag = responses.get(random(responses.len())).copied().unwrap_or(0);
                exchange.response(BackendTag(tag), Some(TransactionStatus::Idle));
            }
            assert!(exchange.queue.entries() <= sent);
            assert_eq!(exchange.waiting_for().is_none(), exchange.is_safe());
        }
    }
}

/// Scripts without expectations.
fn feed(exchange: &mut Exchange, script: &str) -> FrontendTag {
    let mut last = FrontendTag::SYNC;
    for step in script.split_whitespace() {
        let mut bytes = step.bytes();
        let (side, tag) = (bytes.next(), bytes.next().unwrap_or(0));
        if side == Some(b'>') {
            last = FrontendTag(tag);
            exchange.request(last);
        } else {
            let status = bytes.next().and_then(TransactionStatus::from_byte);
            exchange.response(BackendTag(tag), status);
        }
    }
    last
}

#[test]
fn whose_turn_it_is() {
    use SkipRule::{ToSync, Unknown};
    // Rule, script, whether its last message is there in part only, the client's turn.
    let table = [
        (ToSync, "", false, true),
        (ToSync, ">Q", false, false),
        (ToSync, ">Q <T <D", false, false),
        (ToSync, ">Q <C <ZT", false, true),
        (ToSync, ">Q", true, true),
        (ToSync, ">Q >Q", true, false),
        (ToSync, ">Q >Q <C <ZI", true, true),
        (ToSync, ">F", true, true),
        (Unknown, ">F", true, true),
        (Unknown, ">Q >F", true, false),
        (ToSync, ">P", true, true),
        (ToSync, ">Q >P", true, false),
        (ToSync, ">P >B >E", false, true),
        (ToSync, ">P >B >E >H", false, false),
        (ToSync, ">P >B >E >H <1 <2", false, false),
        (ToSync, ">P >B >E >H <1 <2 <C", false, true),
        (ToSync, ">P >B >E >H >P", true, true),
        (ToSync, ">P >H >Q", true, false),
        (ToSync, ">P >H <1 >Q", true, true),
        (ToSync, ">P >B >E >S", false, false),
        (ToSync, ">P >B >E >S <1 <2 <C", false, false),
        (ToSync, ">P >B >E >S >P", true, false),
        (ToSync, ">P >H <E >B", false, true),
        (ToSync, ">P >H <E >Q", true, true),
        (Unknown, ">P >H <E >Q", false, true),
        (ToSync, ">Q <G", false, true),
        (ToSync, ">Q <G >d", true, true),
        (ToSync, ">Q <G >c", false, false),
        (ToSync, ">Q <G >f", false, false),
        (ToSync, ">Q <G >f", true, true),
        (ToSync, ">Q <G >c >f", true, false),
        (ToSync, ">Q <G >c >P", true, false),
        (ToSync, ">Q <G >c >Q", true, false),
        (ToSync, ">Q <H <d", false, false),
        (ToSync, ">P >B >E >S <1 <2 <G", false, true),
        (ToSync, ">P >B >E >S <1 <2 <G >c >S", false, false),
        // Whether the Sync into the COPY is answered is not known.
        (ToSync, ">Q <G >S <E <ZI", false, true),
        (ToSync, ">Q <G >S <E <ZI >Q", false, false),
    ];
    for (rule, script, in_part, clients) in table {
        let mut exchange = Exchange::with_skip(rule);
        let last = feed(&mut exchange, script);
        let unfinished = in_part.then_some(last);
        assert_eq!(
            exchange.awaits_client(unfinished),
            clients,
            "{rule:?} {script} {in_part}"
        );
    }
}
