//! Scripts of message types, as in [`super::super::tests`].

use crate::exchange::tests::check;
use crate::exchange::{Exchange, SkipRule};
use crate::message::{BackendTag, FrontendTag, TransactionStatus};

/// A COPY by Execute, into which one Sync was sent.
const COPY: &str = ">Bb >Eb <2b >Sq <Gc >dc";

/// Runs `behind` after [`COPY`], in full and to the end of the table's doubts.
fn check_behind(table: &[(&str, &str)]) {
    let scripts: Vec<_> = table
        .iter()
        .map(|(name, behind)| (*name, format!("{COPY} {behind}")))
        .collect();
    let scripts: Vec<_> = scripts.iter().map(|(name, it)| (*name, &**it)).collect();
    check(SkipRule::ToSync, &scripts);
}

#[test]
fn what_stands_behind_the_end_of_a_copy_that_fails() {
    check_behind(&[
        ("skipped", ">cc >Cc >Sc <Eq <ZIq >Pq >Sq <1q <ZI."),
        ("skipped, then a query", ">cc >Cc >Sc <Eq <ZIq >Qq <Cq <ZI."),
        (
            "skipped, the same again is no proof",
            ">cc >Cc >Sc <Eq <ZIq >Cq >Sq <3q <ZIq >Bq >Eq >Sq <2q <Cq <ZI.",
        ),
        (
            "carried out",
            ">cc >Cc >Sc <Eq <ZIq <3q <ZI. >Pb >Sq <1q <ZI.",
        ),
        ("fails as well", ">cc >Cc >Sc <Eq <ZIq <Eq <ZI."),
        (
            "sent after the failure",
            ">cc <Eq >Cq >Sq <ZIq >Pq >Sq <1q <ZI.",
        ),
        (
            "two, of which a query is one",
            ">cc >Pc >Pc >Sc >Qc <Eq <ZIq <Tq <Cq <ZI.",
        ),
        ("nothing", ">cc >Sc <Eq <ZIq >Bq >Eq >Sq <2q <Cq <ZI."),
        ("nothing, both answered", ">cc >Sc <Eq <ZIq <ZI."),
        (
            "more behind the end than the types are kept of",
            &format!(
                ">cc {} >Sc >Qc <Eq <ZIq <Tq <Cq <ZI.",
                [">Pc"; 50].join(" ")
            ),
        ),
        (
            "more, carried out",
            &format!(
                ">cc {} >Sc <Eq <ZIq {} <ZI.",
                [">Pc"; 50].join(" "),
                ["<1q"; 50].join(" ")
            ),
        ),
        (
            "a FunctionCall that is not known as one",
            &format!(
                ">cc >Cc >Sc >Fc >Bc >Ec >cc {} >Sc <Eq <ZIq <Vq <ZIq <2q <Gc <Cq {} <ZI.",
                [">Pc"; 50].join(" "),
                ["<1q"; 50].join(" ")
            ),
        ),
        (
            "another COPY, which may be one of two",
            ">cc >Bc >Ec >Sc <Eq <ZIq >Bq >Eq >Sq <2q <Gc >dc >cc <Cb >Sq <ZI.",
        ),
        (
            "the other one fails too",
            ">cc >Bc >Ec >Sc <Eq <ZIq >Bq >Eq >Sq <2q <Gc >dc >fc >Sc <Eq <ZIq >Pq >Sq <1q <ZI.",
        ),
        (
            "a transaction goes on",
            ">cc >Cc >Sc <Eq <ZEt >Qt <Ct <ZI. >Pb >Sq <1q <ZI.",
        ),
    ]);
}

/// It ends the connection, or there is no telling what the server makes of it.
#[test]
fn what_does_not_belong_into_a_copy() {
    check_behind(&[
        ("Close", ">Cc >Sc <Eq <ZIq <ZIq >Qq <Cq <ZIq"),
        ("Query", ">Qc <Eq <ZIq <ZIq"),
    ]);
    let behind = [
        ("Parse, sent before", ">Qq >Pq <Gc <Eq >Sq <ZIq <1q <ZIq"),
        ("Query, sent before", ">Eb >Qq <Gc <Eq <ZIq"),
    ];
    check(SkipRule::ToSync, &behind);
}

/// An answer that no guess expects is a server of another mind, which does not stop us.
#[test]
fn an_answer_that_cannot_come_is_harmless() {
    check_behind(&[("", ">cc >Cc >Sc <Eq <1q <ZI. >Qq <Cq <ZI.")]);
}

/// A message whose type was not known when a doubt began has none when the next one does.
#[test]
fn what_has_no_name_gets_none() {
    // By this rule a Parse within a COPY is one like those behind it, so that its place
    // among the Syncs is lost, and with it the names of all.
    let mut exchange = Exchange::with_skip(SkipRule::Unknown);
    for (side, tag) in [
        ('>', b'B'),
        ('>', b'E'),
        ('<', b'2'),
        ('<', b'G'),
        ('>', b'P'),
        ('>', b'S'),
        ('>', b'c'),
        ('>', b'C'),
        ('>', b'S'),
        ('>', b'P'),
        ('>', b'C'),
        ('>', b'S'),
        ('<', b'E'),
        ('<', b'Z'),
        ('<', b'Z'),
        ('<', b'1'),
    ] {
        match side {
            '>' => exchange.request(FrontendTag(tag)),
            _ => exchange.response(BackendTag(tag), Some(TransactionStatus::Idle)),
        }
    }
    assert!(exchange.doubt.is_none(), "{exchange:?}");
    let last: Vec<u8> = exchange.recent.last(2).map(|tag| tag.0).collect();
    assert_eq!(last, [super::SOME_MESSAGE.0, b'S'], "{exchange:?}");
}

#[test]
fn there_is_a_bound_to_what_is_followed() {
    let failed = |syncs: usize| {
        let mut exchange = Exchange::new();
        for tag in *b"BE" {
            exchange.request(FrontendTag(tag));
        }
        exchange.response(BackendTag::BIND_COMPLETE, None);
        exchange.response(BackendTag::COPY_IN_RESPONSE, None);
        for _ in 0..syncs {
            exchange.request(FrontendTag::SYNC);
        }
        exchange.request(FrontendTag::COPY_FAIL);
        exchange.request(FrontendTag::SYNC);
        exchange.response(BackendTag::ERROR_RESPONSE, None);
        exchange
    };
    let idle = Some(TransactionStatus::Idle);
    for syncs in [1, 10, 50, 100, 10_000] {
        let mut exchange = failed(syncs);
        for answer in 0..=syncs {
            assert!(!exchange.is_safe(), "{syncs}: {answer}");
            assert!(exchange.is_in_doubt());
            exchange.response(BackendTag::READY_FOR_QUERY, idle);
        }
        // With too many it is never called safe again, rather than wrongly.
        assert_eq!(exchange.is_safe(), syncs < super::MAX_GUESSES, "{syncs}");
        for _ in 0..20_000 {
            exchange.request(FrontendTag::SYNC);
        }
        let kept = exchange.doubt.map_or(0, |doubt| doubt.requests.len());
        assert!(kept <= super::MAX_SENT);
    }
    // Nor with too many possibilities at once, each with its own Syncs.
    let mut exchange = failed(1);
    for tag in b"BES".repeat(62) {
        exchange.request(FrontendTag(tag));
    }
    for tag in *b"Z2G" {
        exchange.response(BackendTag(tag), idle);
    }
    for _ in 0..8_000 {
        exchange.request(FrontendTag::SYNC);
    }
    exchange.response(BackendTag::ERROR_RESPONSE, None);
    assert!(exchange.is_in_doubt());
    let kept = exchange.doubt.map_or(0, |doubt| doubt.next.capacity());
    assert!(kept <= 4 * super::MAX_GUESSES, "{kept}");
    // Nor with too much unanswered.
    let mut exchange = failed(1);
    for _ in 0..20_000 {
        exchange.request(FrontendTag::SYNC);
    }
    let doubt = exchange.doubt.as_ref();
    assert!(doubt.is_some_and(|doubt| doubt.is_lost() && doubt.requests.len() == 0));
    assert!(!exchange.is_safe());
}
