//! Sessions of a real PostgreSQL: what is asked of them, moved and refused.

mod asking;
mod custom;
mod kinds;
mod logins;
mod mover;
mod notifications;
mod refusals;
mod rounds;
mod targets;
mod unseen;
mod walk;

use std::sync::OnceLock;

use crate::support::postgres::Cluster;

/// The server of these tests, with what they need in it.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = Cluster::start(
            &["max_replication_slots = 4", "wal_level = replica"],
            |_| {},
        );
        let mut client = cluster.client();
        client.batch_execute(SCHEMA).unwrap();
        client.batch_execute(&hostile_schema()).unwrap();
        cluster
    })
}

const SCHEMA: &str = r#"
CREATE ROLE weak LOGIN;
CREATE ROLE helper;
GRANT helper TO weak;
CREATE SCHEMA app;
CREATE SCHEMA "Odd schema";
CREATE SCHEMA "日本";
CREATE TABLE app.account (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO app.account VALUES (1, 10), (2, 20);
CREATE TABLE "日本"."表" (id int);
CREATE TYPE app.mood AS ENUM ('sad', 'glad');
CREATE SEQUENCE app.numbers;
CREATE EXTENSION dblink;
GRANT USAGE ON SCHEMA app, "日本" TO weak, helper;
GRANT SELECT ON app.account, "日本"."表" TO weak, helper;
"#;

/// A schema that shadows whatever has a name, each with something that fails.
fn hostile_schema() -> String {
    let mut sql = "CREATE SCHEMA evil;\n".to_owned();
    for view in [
        "pg_settings",
        "pg_prepared_statements",
        "pg_locks",
        "pg_cursors",
        "pg_replication_slots",
        "pg_depend",
        "pg_type",
        "pg_namespace",
        "pg_proc",
        "pg_extension",
    ] {
        sql += &format!("CREATE VIEW evil.{view} AS SELECT 1 / (random() * 0)::int AS name;\n");
    }
    for (function, result) in [
        ("set_config(text, text, boolean)", "text"),
        ("current_setting(text)", "text"),
        ("current_setting(text, boolean)", "text"),
        ("convert_to(text, name)", "bytea"),
        ("getdatabaseencoding()", "name"),
        ("pg_backend_pid()", "int"),
        ("pg_is_in_recovery()", "boolean"),
        ("pg_listening_channels()", "text"),
        ("string_to_array(text, text)", "text[]"),
        ("array_to_string(anyarray, text)", "text"),
        ("has_function_privilege(text, text)", "boolean"),
        ("substring(text, text)", "text"),
    ] {
        sql += &format!(
            "CREATE FUNCTION evil.{function} RETURNS {result} LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'the hostile one was called'; END $$;\n"
        );
    }
    for (number, types) in [
        "text, text",
        "name, name",
        "oid, oid",
        "int, int",
        "\"char\", \"char\"",
        "name, text",
        "smallint, smallint",
        "bigint, bigint",
    ]
    .iter()
    .enumerate()
    {
        let (left, right) = types.split_once(", ").unwrap();
        sql += &format!(
            "CREATE FUNCTION evil.operator_{number}({types}) RETURNS boolean LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'the hostile one was called'; END $$;\n"
        );
        for name in ["=", "<>", ">=", "||"] {
            sql += &format!(
                "CREATE OPERATOR evil.{name} (LEFTARG = {left}, RIGHTARG = {right}, \
                 FUNCTION = evil.operator_{number});\n"
            );
        }
    }
    for name in ["text", "oid", "regclass", "int4", "int8", "bit", "regproc"] {
        sql += &format!("CREATE DOMAIN evil.{name} AS pg_catalog.bool;\n");
    }
    sql
}
