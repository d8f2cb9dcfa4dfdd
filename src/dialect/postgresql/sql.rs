//! The statements that ask a session for its state.
//!
//! Everything is named with its schema, operators too, since the session's
//! search_path may lead anywhere.  No literal has a backslash, which
//! standard_conforming_strings could change.  Every result is `bytea` in binary
//! form: no client_encoding, bytea_output or DateStyle changes it.

/// Settings of a transaction, which end with it (guc_tables.c).
const OF_A_TRANSACTION: [&str; 3] = [
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
];

/// The first OID that is no built-in object's (transam.h, `FirstNormalObjectId`).
const FIRST_NORMAL_OID: u32 = 16384;

/// An expression of type text as the bytes that the database holds.
pub(super) fn bytes(text: &str) -> String {
    format!("pg_catalog.convert_to({text}, pg_catalog.getdatabaseencoding())")
}

fn columns(texts: &[&str]) -> String {
    let columns: Vec<_> = texts.iter().map(|text| bytes(text)).collect();
    columns.join(", ")
}

/// The value of a query of one value, which only runs where `condition` holds;
/// `query` is itself an expression.  A function that the session may not call
/// fails a statement that names it, even where it is not reached.
fn value_where(condition: &str, query: &str) -> String {
    format!(
        "CASE WHEN {condition} THEN pg_catalog.substring(\
         pg_catalog.query_to_xml({query}, false, false, '')::pg_catalog.text, '<v>(.*)</v>') END"
    )
}

fn may_call(function: &str) -> String {
    format!("pg_catalog.has_function_privilege('pg_catalog.{function}', 'execute')")
}

pub(super) fn place() -> String {
    let system = value_where(
        &may_call("pg_control_system()"),
        "'SELECT system_identifier AS v FROM pg_catalog.pg_control_system()'",
    );
    let recovery = "pg_catalog.pg_is_in_recovery()";
    let values = columns(&[
        &system,
        &format!("CASE WHEN {recovery} THEN 't' ELSE 'f' END"),
        &format!(
            "CASE WHEN {recovery} THEN pg_catalog.pg_last_wal_replay_lsn() \
             ELSE pg_catalog.pg_current_wal_insert_lsn() END::pg_catalog.text"
        ),
        "pg_catalog.getdatabaseencoding()::pg_catalog.text",
        "pg_catalog.current_setting('role')",
        "pg_catalog.current_setting('session_authorization')",
    ]);
    format!("SELECT {values}")
}

pub(super) fn settings() -> String {
    let values = columns(&[
        "s.name",
        "s.setting",
        "CASE WHEN s.source OPERATOR(pg_catalog.=) 'session' THEN 't' ELSE 'f' END",
        "CASE WHEN s.name OPERATOR(pg_catalog.=) 'default_transaction_read_only' THEN s.reset_val END",
    ]);
    let without = OF_A_TRANSACTION.map(|name| format!("'{name}'")).join(", ");
    format!(
        "SELECT {values} FROM pg_catalog.pg_settings AS s \
         WHERE s.context OPERATOR(pg_catalog.=) ANY (ARRAY['user', 'superuser']::pg_catalog.text[]) \
         AND s.name OPERATOR(pg_catalog.<>) ALL (ARRAY[{without}]::pg_catalog.text[])"
    )
}

pub(super) fn custom_settings() -> String {
    let values = columns(&["n", "pg_catalog.current_setting(n, true)"]);
    format!("SELECT {values} FROM pg_catalog.unnest(pg_catalog.string_to_array($1, ',')) AS n")
}

pub(super) fn statements(own: &str, version: u32) -> String {
    // A column since PostgreSQL 16.
    let results = if version >= 16 {
        "pg_catalog.array_to_string(p.result_types::pg_catalog.oid[], ',')"
    } else {
        "NULL"
    };
    let names = format!(
        "(SELECT pg_catalog.string_agg(t.oid::pg_catalog.text OPERATOR(pg_catalog.||) ':' \
         OPERATOR(pg_catalog.||) n.nspname::pg_catalog.text OPERATOR(pg_catalog.||) '.' \
         OPERATOR(pg_catalog.||) t.typname::pg_catalog.text, ',' ORDER BY t.oid) \
         FROM pg_catalog.pg_type AS t, pg_catalog.pg_namespace AS n \
         WHERE n.oid OPERATOR(pg_catalog.=) t.typnamespace \
         AND t.oid OPERATOR(pg_catalog.>=) '{FIRST_NORMAL_OID}'::pg_catalog.oid \
         AND t.oid OPERATOR(pg_catalog.=) ANY (p.parameter_types::pg_catalog.oid[]))"
    );
    let values = columns(&[
        "p.name",
        "p.statement",
        "pg_catalog.array_to_string(p.parameter_types::pg_catalog.oid[], ',')",
        &names,
        "CASE WHEN p.from_sql THEN 't' ELSE 'f' END",
        results,
    ]);
    format!(
        "SELECT {values} FROM pg_catalog.pg_prepared_statements AS p \
         WHERE p.name OPERATOR(pg_catalog.<>) '{own}'"
    )
}

pub(super) fn channels() -> String {
    let value = bytes("c");
    format!("SELECT {value} FROM pg_catalog.pg_listening_channels() AS c")
}

pub(super) fn obstacles() -> String {
    // pg_my_temp_schema() stays set after a DROP, so the objects are asked for.
    // A table first: its columns' sequences say less.
    let temporary = format!(
        "(SELECT {} FROM pg_catalog.pg_depend AS d, \
         LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) AS i \
         WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
         AND d.refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() \
         ORDER BY i.type OPERATOR(pg_catalog.<>) 'table', d.objid LIMIT 1)",
        columns(&["'temporary'", "i.type", "COALESCE(i.name, i.identity)"])
    );
    let cursor = format!(
        "(SELECT {} FROM pg_catalog.pg_cursors AS c WHERE c.is_holdable LIMIT 1)",
        columns(&["'cursor'", "c.name", "NULL"])
    );
    // One number, or two (lockfuncs.c, `pg_lock_status`: objsubid is 1 or 2).
    let advisory = format!(
        "(SELECT {} FROM pg_catalog.pg_locks AS l \
         WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' \
         AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() LIMIT 1)",
        columns(&[
            "'advisory'",
            "CASE WHEN l.objsubid OPERATOR(pg_catalog.=) 1::pg_catalog.int2 THEN \
             ((l.classid::pg_catalog.int8 OPERATOR(pg_catalog.<<) 32) \
             OPERATOR(pg_catalog.|) l.objid::pg_catalog.int8)::pg_catalog.text \
             ELSE pg_catalog.format('(%s, %s)', \
             l.classid::pg_catalog.int8::pg_catalog.bit(32)::pg_catalog.int4, \
             l.objid::pg_catalog.int8::pg_catalog.bit(32)::pg_catalog.int4) END",
            "NULL",
        ])
    );
    let slot = format!(
        "(SELECT {} FROM pg_catalog.pg_replication_slots AS r \
         WHERE r.temporary AND r.active_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() \
         LIMIT 1)",
        columns(&["'slot'", "r.slot_name::pg_catalog.text", "NULL"])
    );
    // A standby refuses the question.
    let origin = value_where(
        &format!(
            "NOT pg_catalog.pg_is_in_recovery() AND {}",
            may_call("pg_replication_origin_session_is_setup()")
        ),
        "'SELECT pg_catalog.pg_replication_origin_session_is_setup() AS v'",
    );
    let origin = format!("(SELECT {})", columns(&["'origin'", &origin, "NULL"]));
    // Only where the extension is in this database: the call loads its library.
    let dblink = value_where(
        "pg_catalog.has_schema_privilege(f.pronamespace, 'usage') \
         AND pg_catalog.has_function_privilege(f.oid, 'execute')",
        "pg_catalog.format('SELECT pg_catalog.array_to_string(%s(), '', '') AS v', \
         f.oid::pg_catalog.regproc)",
    );
    let dblink = format!(
        "(SELECT {} FROM pg_catalog.pg_proc AS f \
         WHERE f.proname OPERATOR(pg_catalog.=) 'dblink_get_connections' \
         AND EXISTS (SELECT FROM pg_catalog.pg_depend AS d, pg_catalog.pg_extension AS e \
         WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
         AND d.objid OPERATOR(pg_catalog.=) f.oid AND d.deptype OPERATOR(pg_catalog.=) 'e' \
         AND d.refobjid OPERATOR(pg_catalog.=) e.oid \
         AND e.extname OPERATOR(pg_catalog.=) 'dblink') LIMIT 1)",
        columns(&["'dblink'", &dblink, "NULL"])
    );
    [temporary, cursor, advisory, slot, origin, dblink].join(" UNION ALL ")
}
