//! Types of parameters and expressions, read off a statement's text and its
//! tables' columns. A glance, not an analysis: what takes more stays unknown.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::lexer::{Kind, Token};
use crate::translate::type_name;
use crate::types;

/// The columns that a statement can name, and their types.
#[derive(Default)]
pub(crate) struct Scope {
    /// By table, in the table's order.
    tables: BTreeMap<String, Vec<(String, u32)>>,
    pub(crate) params: Vec<u32>,
}

impl Scope {
    pub(crate) fn new(tokens: &[Token<'_>], db: &Connection) -> Self {
        let mut scope = Self::default();
        for pair in tokens.windows(2) {
            let [word, name] = pair else { continue };
            let leads = ["from", "join", "into", "update", "only", ",", "."];
            if !leads.iter().any(|lead| word.is(lead))
                || matches!(name.kind, Kind::Op | Kind::Param)
            {
                continue;
            }
            let table = name.value();
            if !scope.tables.contains_key(&table)
                && let Ok(columns) = table_columns(db, &table)
                && !columns.is_empty()
            {
                scope.tables.insert(table, columns);
            }
        }
        scope
    }

    fn column(&self, name: &str) -> u32 {
        let mut columns = self.tables.values().flatten();
        columns
            .find(|(known, _)| known == name)
            .map_or(types::UNKNOWN, |(_, oid)| *oid)
    }

    /// The type that stands around the parameter at this place.
    pub(crate) fn param(&self, tokens: &[Token<'_>], at: usize) -> u32 {
        const COMPARISONS: &[&str] = &["=", "<", ">", "<=", ">=", "<>", "!="];
        let compares = |token: &Token<'_>| COMPARISONS.iter().any(|op| token.is(op));
        let named = |token: Option<&Token<'_>>| match token {
            Some(token) if matches!(token.kind, Kind::Word | Kind::Quoted) => {
                self.column(&token.value())
            }
            _ => types::UNKNOWN,
        };
        let before = tokens.get(..at).unwrap_or_default();
        let after = tokens.get(at + 1..).unwrap_or_default();
        if let [cast, rest @ ..] = after
            && cast.is("::")
        {
            return type_name(rest).0;
        }
        if let [op, name, ..] = after
            && compares(op)
        {
            let found = named(Some(name));
            if found != types::UNKNOWN {
                return found;
            }
        }
        match before {
            [.., name, op] if compares(op) || op.is("between") => named(Some(name)),
            [.., name, between, _, and] if between.is("between") && and.is("and") => {
                named(Some(name))
            }
            [.., word] if word.is("limit") || word.is("offset") => types::INT8,
            [.., word] if word.is("like") || word.is("ilike") || word.is("||") => types::TEXT,
            [.., name, open] if name.is("pg_sleep") && open.is("(") => types::FLOAT8,
            _ => self.listed(before).unwrap_or(types::UNKNOWN),
        }
    }

    /// The type of an item of `IN (…)` or of a VALUES list.
    fn listed(&self, before: &[Token<'_>]) -> Option<u32> {
        let mut depth = 0_i32;
        let open = before.iter().rposition(|token| {
            depth += i32::from(token.is(")")) - i32::from(token.is("("));
            depth < 0
        })?;
        let (head, items) = before.split_at_checked(open)?;
        match head {
            [.., series] if series.is("generate_series") => return Some(types::INT8),
            [.., name, not, word] if not.is("not") && word.is("in") => {
                return Some(self.column(&name.value()));
            }
            [.., name, word] if word.is("in") => return Some(self.column(&name.value())),
            _ => {}
        }
        let values = head.iter().position(|token| token.is("values"))?;
        let into = head.iter().position(|token| token.is("into"))?;
        let target = head.get(into + 1..values)?;
        let names = target
            .iter()
            .position(|token| token.is("("))
            .and_then(|at| target.get(at..));
        let table = match names {
            Some(names) => target.get(target.len() - names.len() - 1)?,
            None => target.iter().rfind(|token| !token.is("as"))?,
        };
        // The first is the opening parenthesis; commas inside calls are few
        // enough to be mistaken for the list's.
        let index = items.iter().skip(1).filter(|token| token.is(",")).count();
        match names {
            Some(names) => {
                let mut names = names
                    .iter()
                    .filter(|t| matches!(t.kind, Kind::Word | Kind::Quoted));
                Some(self.column(&names.nth(index)?.value()))
            }
            None => Some(self.tables.get(&table.value())?.get(index)?.1),
        }
    }

    /// The type of an expression, 0 where that takes more than a glance.
    pub(crate) fn expression(&self, tokens: &[Token<'_>]) -> u32 {
        match tokens {
            [] => types::UNKNOWN,
            [one] => self.operand(one),
            [table, dot, column] if dot.is(".") && table.kind != Kind::Number => {
                self.column(&column.value())
            }
            [case, rest @ .., end] if case.is("case") && end.is("end") => {
                let mut branch = rest.split(|t| t.is("then") || t.is("else") || t.is("when"));
                branch
                    .nth(2)
                    .map_or(types::UNKNOWN, |tokens| self.expression(tokens))
            }
            [cast, open, inner @ .., close] if cast.is("cast") && open.is("(") && close.is(")") => {
                let at = inner.iter().rposition(|token| token.is("as"));
                at.and_then(|at| inner.get(at + 1..))
                    .map_or(types::UNKNOWN, |t| type_name(t).0)
            }
            _ => self.compound(tokens),
        }
    }

    fn operand(&self, token: &Token<'_>) -> u32 {
        match token.kind {
            Kind::Number if token.text.starts_with(['x', 'X']) => types::BYTEA,
            Kind::Number if token.text.contains(['.', 'e', 'E']) => types::FLOAT8,
            Kind::Number => types::INT8,
            Kind::Text => types::TEXT,
            Kind::Param => {
                let at = token.param().and_then(|n| n.checked_sub(1));
                at.and_then(|at| self.params.get(at))
                    .copied()
                    .unwrap_or(types::UNKNOWN)
            }
            _ if token.is("true") || token.is("false") => types::BOOL,
            _ if token.is("null") || token.is("current_user") || token.is("session_user") => {
                types::TEXT
            }
            _ => self.column(&token.value()),
        }
    }

    fn compound(&self, tokens: &[Token<'_>]) -> u32 {
        const LOGIC: &[&str] = &[
            "=", "<", ">", "<=", ">=", "<>", "!=", "and", "or", "not", "is", "in", "like", "ilike",
            "between", "exists",
        ];
        let mut depth = 0_i32;
        let outer: Vec<bool> = tokens
            .iter()
            .map(|token| {
                depth += i32::from(token.is("("));
                let outer = depth == 0;
                depth -= i32::from(token.is(")"));
                outer
            })
            .collect();
        let find = |wanted: &dyn Fn(&Token<'_>) -> bool| {
            tokens
                .iter()
                .zip(&outer)
                .rposition(|(token, outer)| *outer && wanted(token))
        };
        if find(&|token| LOGIC.iter().any(|word| token.is(word))).is_some() {
            return types::BOOL;
        }
        if find(&|token| token.is("||")).is_some() {
            return types::TEXT;
        }
        let arithmetic =
            |token: &Token<'_>| ["+", "-", "*", "/", "%"].iter().any(|op| token.is(op));
        if let Some(at) = find(&arithmetic) {
            let right = self.expression(tokens.get(at + 1..).unwrap_or_default());
            if at == 0 {
                return right;
            }
            let left = self.expression(tokens.get(..at).unwrap_or_default());
            return match (number(left), number(right)) {
                (Some(true), Some(_)) | (Some(_), Some(true)) => types::FLOAT8,
                (Some(false), Some(false)) => types::INT8,
                _ => types::UNKNOWN,
            };
        }
        if let Some(at) = find(&|token| token.is("::")) {
            return type_name(tokens.get(at + 1..).unwrap_or_default()).0;
        }
        match tokens {
            [open, inner @ .., close] if open.is("(") && close.is(")") => self.expression(inner),
            [name, open, args @ .., close] if open.is("(") && close.is(")") => {
                self.function(&name.value(), args)
            }
            [_, dot, call @ ..] if dot.is(".") => self.compound(call),
            _ => types::UNKNOWN,
        }
    }

    fn function(&self, name: &str, args: &[Token<'_>]) -> u32 {
        match name {
            "count" | "length" | "pg_backend_pid" | "row_number" | "instr" => types::INT8,
            "sum" | "min" | "max" | "coalesce" | "abs" | "nullif" => {
                let first = args.split(|token| token.is(",")).next().unwrap_or_default();
                match (name, self.expression(first)) {
                    ("sum", types::INT2 | types::INT4) => types::INT8,
                    (_, oid) => oid,
                }
            }
            "avg" | "random" | "total" => types::FLOAT8,
            "deserialize_session" => types::BOOL,
            "serialize_session" | "decode" => types::BYTEA,
            "lower" | "upper" | "version" | "current_user" | "current_database" | "substr"
            | "current_schema" | "current_setting" | "set_config" | "encode" | "pg_sleep"
            | "sqlpod_name" | "sqlpod_notice" | "replace" | "trim" | "group_concat" | "hex"
            | "printf" | "typeof" | "now" | "string_agg" => types::TEXT,
            "gen_random_uuid" => types::UUID,
            _ => types::UNKNOWN,
        }
    }
}

/// `Some(true)` for a broken number, `Some(false)` for a whole one.
fn number(oid: u32) -> Option<bool> {
    match oid {
        types::INT2 | types::INT4 | types::INT8 => Some(false),
        types::FLOAT8 | types::NUMERIC => Some(true),
        _ => None,
    }
}

/// A table's columns and their types, in order; none for an unknown table.
pub(crate) fn table_columns(db: &Connection, table: &str) -> rusqlite::Result<Vec<(String, u32)>> {
    let mut query = db.prepare_cached("SELECT name, type FROM pragma_table_info(?1)")?;
    let rows = query.query_map([table], |row| {
        let (name, declared): (String, String) = (row.get(0)?, row.get(1)?);
        let oid = types::by_name(&declared).unwrap_or(types::TEXT);
        Ok((name.to_ascii_lowercase(), oid))
    })?;
    rows.collect()
}
