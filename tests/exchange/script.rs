//! Random client scripts that PostgreSQL never answers by closing.

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Run once before the scripts. `refusing` fails a COPY after CopyInResponse
/// and before any data is read; `deferred` fails at the commit.
pub(super) const SCHEMA: &str = "
    CREATE UNLOGGED TABLE filled (value text);
    INSERT INTO filled SELECT repeat('x', 50) FROM generate_series(1, 20);
    CREATE UNLOGGED TABLE sink (value text);
    CREATE UNLOGGED TABLE refusing (value text);
    CREATE UNLOGGED TABLE deferred (value text);
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON refusing EXECUTE FUNCTION refuse();
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON deferred DEFERRABLE
        INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse();";

/// Statements that both protocols take.
const STATEMENTS: &[&str] = &[
    "SELECT 1",
    "",
    "SELEC",
    "SELECT missing",
    "SELECT 1 / 0",
    "SELECT 1 / (3 - n) FROM generate_series(1, 5) n",
    "SELECT generate_series(1, 200)",
    "SELECT pg_sleep(0.001)",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SET application_name = 'exchange'",
    "SET TimeZone = 'UTC'",
    "SHOW TimeZone",
    "EXPLAIN SELECT 1",
    "LISTEN news",
    "NOTIFY news",
    "DO $$ BEGIN RAISE NOTICE 'news'; END $$",
    "INSERT INTO deferred VALUES (1)",
    "COPY filled TO STDOUT",
    "COPY (SELECT 1 / (3 - n) FROM generate_series(1, 5) n) TO STDOUT",
];

/// Statements with a parameter or several commands: one protocol refuses them.
const ODD_STATEMENTS: &[&str] = &[
    "SELECT $1::int",
    "SELECT 1; SELECT 2",
    "SELECT 1; SELECT 1 / 0; SELECT 2",
    "BEGIN; SELECT 1",
    "COPY filled TO STDOUT; SELECT 1; COPY filled TO STDOUT",
    "; ;",
];

/// Queries that read COPY data, with how often they may do so.
const COPY_QUERIES: &[(&str, usize)] = &[
    ("COPY sink FROM STDIN", 1),
    ("SELECT 1; COPY sink FROM STDIN; SELECT 1", 1),
    ("COPY sink FROM STDIN; COPY sink FROM STDIN", 2),
    (
        "COPY sink FROM STDIN; SELECT 1 / 0; COPY sink FROM STDIN",
        2,
    ),
    ("COPY missing FROM STDIN", 1),
];

/// Queries whose COPY fails without the data's fault; `deferred` does in both
/// protocols, but only a Query does so before CommandComplete.
const FAILING_COPY_QUERIES: &[(&str, usize)] = &[
    ("COPY refusing FROM STDIN", 1),
    ("COPY deferred FROM STDIN", 1),
];

const COPY_STATEMENTS: &[&str] = &[
    "COPY sink FROM STDIN",
    "COPY deferred FROM STDIN",
    "COPY missing FROM STDIN",
];

/// Statement and portal for COPY FROM; the rest of the script never runs them,
/// since what follows their Execute has to end a COPY.
const COPY_NAME: &str = "copy";

/// One message of the client.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Query(&'static str),
    /// With a byte too many, by which the server refuses it unread.
    LongQuery(&'static str),
    /// The same of a Parse.
    LongParse(&'static str, &'static str),
    /// Divides by its argument.
    FunctionCall(i32),
    Parse(&'static str, &'static str),
    /// Portal, then statement.
    Bind(&'static str, &'static str),
    /// `S` or `P`, then the name.
    Describe(u8, &'static str),
    Close(u8, &'static str),
    /// Portal, then the limit of rows.
    Execute(&'static str, i32),
    Flush,
    Sync,
    CopyData(&'static str),
    CopyDone,
    CopyFail,
}

impl Request {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut buffer = BytesMut::new();
        let out = &mut buffer;
        match *self {
            Self::Query(sql) => frontend::query(sql, out).unwrap(),
            Self::LongQuery(sql) => {
                frontend::query(sql, out).unwrap();
                lengthen(out);
            }
            Self::LongParse(name, sql) => {
                frontend::parse(name, sql, [], out).unwrap();
                lengthen(out);
            }
            Self::FunctionCall(divisor) => function_call(divisor, out),
            Self::Parse(name, sql) => frontend::parse(name, sql, [], out).unwrap(),
            Self::Bind(portal, statement) => {
                let serialize = |(): (), _: &mut BytesMut| Ok(IsNull::Yes);
                frontend::bind(portal, statement, [], [], serialize, [], out)
                    .unwrap_or_else(|_| unreachable!("no parameters, no errors"));
            }
            Self::Describe(kind, name) => frontend::describe(kind, name, out).unwrap(),
            Self::Close(kind, name) => frontend::close(kind, name, out).unwrap(),
            Self::Execute(portal, rows) => frontend::execute(portal, rows, out).unwrap(),
            Self::Flush => frontend::flush(out),
            Self::Sync => frontend::sync(out),
            Self::CopyData(data) => frontend::CopyData::new(data.as_bytes()).unwrap().write(out),
            Self::CopyDone => frontend::copy_done(out),
            Self::CopyFail => frontend::copy_fail("changed my mind", out).unwrap(),
        }
        buffer.to_vec()
    }
}

/// Puts a byte behind a message and counts it in.
fn lengthen(out: &mut BytesMut) {
    out.extend_from_slice(b"x");
    let length = u32::try_from(out.len() - 1).unwrap().to_be_bytes();
    out[1..5].copy_from_slice(&length);
}

/// FunctionCall of int4div(1, divisor) with text arguments.
fn function_call(divisor: i32, out: &mut BytesMut) {
    /// From pg_proc.dat; the numbers of built-in functions never change.
    const INT4DIV: u32 = 154;
    let mut body = INT4DIV.to_be_bytes().to_vec();
    body.extend(0_i16.to_be_bytes());
    body.extend(2_i16.to_be_bytes());
    for text in ["1".to_owned(), divisor.to_string()] {
        body.extend(i32::try_from(text.len()).unwrap().to_be_bytes());
        body.extend(text.as_bytes());
    }
    body.extend(0_i16.to_be_bytes());
    out.extend_from_slice(b"F");
    out.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend_from_slice(&body);
}

/// What the client does after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// Goes on; what was written may not even have left.
    None,
    /// Reads what has come.
    Read,
    /// Waits until the server waits, and reads everything.
    Quiet,
}

/// A client, with the accidents of the network.
#[derive(Debug, Clone)]
pub(super) struct Script {
    pub(super) steps: Vec<(Request, Pause)>,
    /// Sizes of the writes and of the reads, used in turn.
    pub(super) writes: Vec<usize>,
    pub(super) reads: Vec<usize>,
    /// Whether a safe point is put to the test, used in turn.
    pub(super) markers: Vec<bool>,
}

impl Script {
    /// These requests, each read to its end, in whole messages.
    pub(super) fn of(requests: &[Request]) -> Self {
        Self {
            steps: requests
                .iter()
                .map(|request| (request.clone(), Pause::Quiet))
                .collect(),
            writes: vec![usize::MAX],
            reads: vec![4096],
            markers: vec![false],
        }
    }
}

/// What a script may do that the messages do not tell the end of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Nothing: the tracker must be exact.
    Never,
    /// A Sync sent into a COPY that then fails.
    Syncs,
    /// That, and more requests before the Sync that surely ends the skip.
    Anything,
}

pub(super) fn script(doubt: Doubt) -> impl Strategy<Value = Script> {
    let pause = prop_oneof![
        6 => Just(Pause::None),
        2 => Just(Pause::Read),
        1 => Just(Pause::Quiet),
    ];
    let sizes = || vec(prop_oneof![1..20_usize, 1..5000_usize], 1..8);
    let pauses = prop_oneof![
        1 => Just(vec![Pause::None]),
        1 => Just(vec![Pause::Quiet]),
        4 => vec(pause, 1..40),
    ];
    let markers = vec(prop::bool::weighted(0.3), 1..20);
    (vec(unit(doubt), 1..10), pauses, sizes(), sizes(), markers).prop_map(
        |(units, pauses, writes, reads, markers)| Script {
            steps: units
                .into_iter()
                .flatten()
                .zip(pauses.into_iter().cycle())
                .collect(),
            writes,
            reads,
            markers,
        },
    )
}

/// A few messages that leave no COPY open.
fn unit(doubt: Doubt) -> impl Strategy<Value = Vec<Request>> {
    let ended = |(mut requests, end): (Vec<_>, Option<_>)| {
        requests.extend(end);
        requests
    };
    prop_oneof![
        4 => query().prop_map(|query| vec![query]),
        4 => (batch(), end()).prop_map(ended),
        3 => (vec(extended(), 1..8), end()).prop_map(ended),
        1 => vec(prop_oneof![Just(Request::Sync), Just(Request::Flush), stray()], 1..3),
        3 => simple_copy(doubt),
        3 => extended_copy(doubt),
    ]
}

fn sql() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => select(STATEMENTS), 1 => select(ODD_STATEMENTS)]
}

fn query() -> impl Strategy<Value = Request> {
    prop_oneof![
        12 => sql().prop_map(Request::Query),
        1 => sql().prop_map(Request::LongQuery),
        2 => (0..2).prop_map(Request::FunctionCall),
    ]
}

/// Part of a COPY where there is none.
fn stray() -> impl Strategy<Value = Request> {
    select(vec![
        Request::CopyData("stray\n"),
        Request::CopyDone,
        Request::CopyFail,
    ])
}

/// What comes after extended-protocol messages.
fn end() -> impl Strategy<Value = Option<Request>> {
    prop_oneof![
        6 => Just(Some(Request::Sync)),
        1 => query().prop_map(Some),
        1 => Just(Some(Request::Flush)),
        1 => stray().prop_map(Some),
        1 => Just(None),
    ]
}

/// What a driver sends for one statement.
fn batch() -> impl Strategy<Value = Vec<Request>> {
    (sql(), any::<bool>(), 0..3).prop_map(|(sql, describe, rows)| {
        let mut requests = vec![Request::Parse("", sql), Request::Bind("", "")];
        if describe {
            requests.push(Request::Describe(b'P', ""));
        }
        requests.push(Request::Execute("", rows));
        requests
    })
}

fn extended() -> impl Strategy<Value = Request> {
    let name = || select(vec!["", "named", "absent"]);
    let kind = || select(vec![b'S', b'P']);
    prop_oneof![
        9 => (select(vec!["", "named"]), sql()).prop_map(|(name, sql)| Request::Parse(name, sql)),
        1 => (select(vec!["", "named"]), sql())
            .prop_map(|(name, sql)| Request::LongParse(name, sql)),
        9 => (name(), name()).prop_map(|(portal, statement)| Request::Bind(portal, statement)),
        3 => (kind(), name()).prop_map(|(kind, name)| Request::Describe(kind, name)),
        3 => (kind(), name()).prop_map(|(kind, name)| Request::Close(kind, name)),
        9 => (name(), 0..3).prop_map(|(portal, rows)| Request::Execute(portal, rows)),
        3 => Just(Request::Flush),
    ]
}

fn simple_copy(doubt: Doubt) -> impl Strategy<Value = Vec<Request>> {
    let sound = select(COPY_QUERIES).prop_flat_map(|(sql, copies)| {
        (Just(sql), vec(copy(sound_data(true), sound_end()), copies))
    });
    let risky = prop_oneof![
        3 => select(COPY_QUERIES),
        1 => select(FAILING_COPY_QUERIES),
    ];
    let syncs = doubt != Doubt::Never;
    let risky = risky.prop_flat_map(move |(sql, copies)| {
        (Just(sql), vec(copy(any_data(syncs), any_end()), copies))
    });
    // What an open batch has put off to the commit would fail a sound COPY.
    let sound = sound.prop_map(|(sql, copies)| (Some(Request::Sync), sql, copies));
    let risky = risky.prop_map(|(sql, copies)| (None, sql, copies));
    prop_oneof![sound, risky].prop_map(|(before, sql, copies)| {
        let mut requests = Vec::from_iter(before);
        requests.push(Request::Query(sql));
        requests.extend(copies.into_iter().flatten());
        requests
    })
}

fn extended_copy(doubt: Doubt) -> impl Strategy<Value = Vec<Request>> {
    let sound = (
        select(COPY_STATEMENTS),
        copy(sound_data(true), sound_end()),
        end(),
    );
    let sql = prop_oneof![3 => select(COPY_STATEMENTS), 1 => Just("COPY refusing FROM STDIN")];
    let end = match doubt {
        Doubt::Syncs => Just(Some(Request::Sync)).boxed(),
        Doubt::Never | Doubt::Anything => end().boxed(),
    };
    let risky = (sql, copy(any_data(doubt != Doubt::Never), any_end()), end);
    // What a driver tidies up with before its Sync, or anything.
    let close = select(vec![b'S', b'P']).prop_map(|kind| Request::Close(kind, COPY_NAME));
    let behind = match doubt {
        Doubt::Syncs => close.boxed(),
        Doubt::Never | Doubt::Anything => prop_oneof![close, extended()].boxed(),
    };
    let behind = prop_oneof![2 => Just(Vec::new()), 1 => vec(behind, 1..4)];
    let copies = (prop_oneof![sound, risky], behind, any::<bool>());
    copies.prop_map(|((sql, copy, end), behind, describe)| {
        let mut requests = vec![
            Request::Close(b'P', COPY_NAME),
            Request::Close(b'S', COPY_NAME),
            Request::Parse(COPY_NAME, sql),
            Request::Bind(COPY_NAME, COPY_NAME),
        ];
        if describe {
            requests.push(Request::Describe(b'P', COPY_NAME));
        }
        requests.push(Request::Execute(COPY_NAME, 0));
        requests.extend(copy);
        requests.extend(behind);
        requests.extend(end);
        requests
    })
}

/// What is sent into a COPY, its end included.
fn copy(
    data: impl Strategy<Value = Request>,
    end: impl Strategy<Value = Request>,
) -> impl Strategy<Value = Vec<Request>> {
    (vec(data, 0..5), end).prop_map(|(mut requests, end)| {
        requests.push(end);
        requests
    })
}

/// Data that no COPY into these tables objects to.
fn sound_data(syncs: bool) -> impl Strategy<Value = Request> {
    let data = select(vec!["", "whole\n", "two\nrows\n", "no end", "\n", "\\N\n"]);
    prop_oneof![
        6 => data.prop_map(Request::CopyData),
        1 => Just(Request::Flush),
        if syncs { 3 } else { 0 } => Just(Request::Sync),
    ]
}

fn sound_end() -> impl Strategy<Value = Request> {
    Just(Request::CopyDone)
}

fn any_data(syncs: bool) -> impl Strategy<Value = Request> {
    prop_oneof![
        4 => sound_data(syncs),
        1 => Just(Request::CopyData("too\tmany\tcolumns\n")),
        1 => Just(Request::CopyData("\n\\.\n")),
    ]
}

fn any_end() -> impl Strategy<Value = Request> {
    prop_oneof![2 => Just(Request::CopyDone), 1 => Just(Request::CopyFail)]
}
