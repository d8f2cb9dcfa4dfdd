//! Faults strike where and when they are told to, and only there.

use std::io;
use std::time::{Duration, Instant};

use sqlpod::{Fault, Pod, Rule, Step};

use crate::raw::{DEADLINE, Message, Raw, Tenant, tags};

/// Goes through login, state query and restore; what came, up to the end.
fn journey(pod: &Pod) -> (Vec<Message>, io::Result<()>) {
    let mut raw = Raw::open(pod.address());
    let mut seen = Vec::new();
    // A reset may come before the packet is out.
    if let Err(error) = raw.startup(3 << 16, &[("user", "alice")]) {
        return (seen, Err(error));
    }
    let mut state = String::new();
    for step in 0..3 {
        match step {
            0 => {}
            2 if state.is_empty() => break,
            1 => raw.send('Q', b"SHOW TRANSFER STATE\0"),
            _ => {
                let sql = format!(
                    "SELECT crdb_internal.deserialize_session(decode('{state}', 'base64'))\0"
                );
                raw.send('Q', sql.as_bytes());
            }
        }
        loop {
            let message = match raw.read() {
                Ok(message) => message,
                Err(error) => return (seen, Err(error)),
            };
            if step == 1 && message.tag == 'D' {
                let values = message.values();
                state = values.get(1).cloned().flatten().unwrap_or_default();
            }
            let fatal = message.tag == 'E' && message.body.starts_with(b"SFATAL");
            let last = message.tag == 'Z' || fatal;
            seen.push(message);
            if fatal {
                return (seen, Ok(()));
            }
            if last {
                break;
            }
        }
    }
    (seen, Ok(()))
}

/// What comes before and after a step's message in an undisturbed journey.
fn position(step: Step) -> Option<usize> {
    // Authentication is not asked for by a trusting pod.
    match step {
        Step::Accept | Step::Startup => Some(0),
        Step::Authentication => None,
        Step::AuthenticationOk => Some(0),
        Step::ParameterStatus => Some(1),
        Step::BackendKeyData => Some(13),
        Step::LoginReady => Some(14),
        Step::StateRowDescription => Some(15),
        Step::StateDataRow => Some(16),
        Step::StateCommandComplete => Some(17),
        Step::StateReady => Some(18),
        Step::RestoreRowDescription => Some(19),
        Step::RestoreDataRow => Some(20),
        Step::RestoreCommandComplete => Some(21),
        Step::RestoreReady => Some(22),
    }
}

const UNDISTURBED: &str = "RSSSSSSSSSSSSKZTDCZTDCZ";

#[test]
fn every_fault_strikes_at_every_step() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    assert_eq!(tags(&journey(&pod).0), UNDISTURBED);
    let refuse = Fault::Refuse("XX000".to_owned(), "no".to_owned());
    let mut hits = 0;
    for step in Step::ALL {
        let Some(before) = position(step) else {
            continue;
        };
        let bare = matches!(step, Step::Accept | Step::Startup);
        for fault in [
            Fault::Observe,
            Fault::Delay(Duration::from_millis(1)),
            refuse.clone(),
            Fault::Cut,
            Fault::Reset,
            Fault::Garble,
            Fault::OneByteAtATime,
            Fault::CloseAfter,
            Fault::Truncate,
        ] {
            pod.faults().add(Rule::new(step, fault.clone()).times(1));
            let (seen, end) = journey(&pod);
            hits += 1;
            let case = format!("{step:?} {fault:?}: {seen:?} {end:?}");
            let seen = tags(&seen);
            match &fault {
                Fault::Refuse(..) if step.is_login() => {
                    assert_eq!(seen, format!("{}E", &UNDISTURBED[..before]), "{case}");
                }
                Fault::Refuse(..) => {
                    assert!(end.is_ok() && seen.matches('E').count() == 1, "{case}");
                    assert!(
                        seen.starts_with(&format!("{}E", &UNDISTURBED[..before])),
                        "{case}"
                    );
                }
                Fault::Garble if bare => assert_eq!(seen, UNDISTURBED, "{case}"),
                Fault::Garble => {
                    assert_eq!(seen, UNDISTURBED[..before], "{case}");
                    assert_eq!(
                        end.unwrap_err().kind(),
                        io::ErrorKind::InvalidData,
                        "{case}"
                    );
                }
                Fault::Reset => {
                    assert_eq!(seen, UNDISTURBED[..before], "{case}");
                    assert_eq!(
                        end.unwrap_err().kind(),
                        io::ErrorKind::ConnectionReset,
                        "{case}"
                    );
                }
                Fault::Cut | Fault::Truncate | Fault::CloseAfter => {
                    let after = fault == Fault::CloseAfter && !bare;
                    let seen_before = before + usize::from(after);
                    assert_eq!(seen, UNDISTURBED[..seen_before], "{case}");
                    // A request to a closed connection turns its end into a
                    // reset; so does a startup packet that nobody read.
                    let asked = matches!(step, Step::LoginReady | Step::StateReady);
                    let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
                    match end {
                        Err(error) if bare || asked => {
                            assert!(kinds.contains(&error.kind()), "{case}")
                        }
                        Err(error) => assert_eq!(error.kind(), kinds[0], "{case}"),
                        Ok(()) => assert_eq!(seen, UNDISTURBED, "{case}"),
                    }
                }
                _ => assert_eq!(seen, UNDISTURBED, "{case}"),
            }
        }
    }
    let counted: u64 = Step::ALL.iter().map(|step| pod.faults().hits(*step)).sum();
    assert_eq!(counted, hits);
    assert_eq!(tags(&journey(&pod).0), UNDISTURBED, "each struck once");
}

#[test]
fn answers_are_shaped() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    let sql = "SHOW TRANSFER STATE WITH 'k'";
    let mut shaped = |fault| {
        pod.faults()
            .add(Rule::new(Step::StateDataRow, fault).times(1));
        raw.query(sql)
    };
    let answer = shaped(Fault::WrongColumnCount);
    assert_eq!((answer[0].names().len(), answer[1].values().len()), (3, 3));
    assert_eq!(shaped(Fault::WrongColumnNames)[0].names()[0], "xerror");
    assert_eq!(
        shaped(Fault::WrongKey)[1].values()[3].as_deref(),
        Some("wrong")
    );
    assert_eq!(shaped(Fault::WrongTag)[2].text(), "SELECT 0");
    assert_eq!(tags(&shaped(Fault::MissingRow)), "TCZ");
    assert_eq!(tags(&shaped(Fault::ExtraRow)), "TDDCZ");
    let row = shaped(Fault::EmptyStringInsteadOfNull)[1].values();
    assert_eq!(row[0].as_deref(), Some(""));
    assert_eq!(raw.query(sql)[1].values()[0], None);
}

#[test]
fn a_stall_lasts_until_lifted_or_closed() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    let rule: Rule = "StateDataRow:stall".parse().unwrap();
    pod.faults().add(rule);
    raw.send('Q', b"SHOW TRANSFER STATE\0");
    assert_eq!(raw.read().unwrap().tag, 'T');
    assert!(pod.faults().wait_hit(Step::StateDataRow, DEADLINE));
    pod.faults().clear();
    assert_eq!(tags(&raw.until_ready().unwrap()), "DCZ");

    pod.faults().set(Step::StateDataRow, Fault::Stall);
    raw.send('Q', b"SHOW TRANSFER STATE\0");
    assert!(pod.faults().wait_hits(Step::StateDataRow, 2, DEADLINE));
    drop(raw);
    assert!(
        pod.wait_sessions(0, DEADLINE),
        "the client's end ends a stalled session"
    );
}

#[test]
fn rules_tell_logins_apart_and_are_set_by_sql() {
    let tenant = Tenant::new();
    let pod = tenant.pod("a");
    let mut raw = Raw::alice(&pod);
    let token = raw.query("SHOW TRANSFER STATE")[1].values()[2]
        .clone()
        .unwrap();
    raw.query("SET sqlpod.fault = 'AuthenticationOk:refuse=53300@token'");
    let with_token = [
        ("user", "alice"),
        ("crdb:session_revival_token_base64", token.as_str()),
    ];
    let client = Raw::login(pod.address(), &with_token[..1]).unwrap();
    assert_eq!(client.greeting[0].tag, 'R');
    let transfer = Raw::login(pod.address(), &with_token).unwrap();
    assert_eq!(transfer.greeting[0].error().0, "53300");
    raw.query("SET sqlpod.fault = 'clear'");
    assert_eq!(
        Raw::login(pod.address(), &with_token).unwrap().greeting[0].tag,
        'R'
    );
    assert_eq!(raw.refused("SET sqlpod.fault = 'Nowhere:stall'").0, "22023");

    pod.faults()
        .add("AuthenticationOk:delay=50ms*1@client".parse().unwrap());
    let start = Instant::now();
    drop(Raw::alice(&pod));
    assert!(start.elapsed() >= Duration::from_millis(50));
}
