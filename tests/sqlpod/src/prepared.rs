//! Prepared statements, and the types of their parameters and columns.
//!
//! SQLite types values, not expressions: what a client must be told before
//! the first row is read off the statement's text and its tables' columns.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rusqlite::Connection;

use crate::error::PgError;
use crate::lexer::{Kind, Token, lex, significant};
use crate::statement::{Statement, parse};
use crate::translate::type_name;
use crate::types;

/// A result column; the OID is 0 while its type is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) oid: u32,
}

impl Column {
    pub(crate) fn text(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            oid: types::TEXT,
        }
    }
}

/// A statement that was parsed, and may be run many times.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// In the client's own words.
    pub(crate) sql: String,
    pub(crate) statement: Statement,
    /// OIDs of the parameters.
    pub(crate) params: Vec<u32>,
    /// Set when first described; binding from then on.
    pub(crate) described: OnceLock<Vec<Column>>,
}

impl Prepared {
    /// For a single run by the simple protocol, which has no parameters.
    pub(crate) fn simple(sql: &str) -> Result<Self, PgError> {
        Self::restored(sql, Vec::new())
    }

    /// With types known from another session.
    pub(crate) fn restored(sql: &str, params: Vec<u32>) -> Result<Self, PgError> {
        let (sql, statement) = (sql.to_owned(), parse(sql)?);
        Ok(Self {
            sql,
            statement,
            params,
            described: OnceLock::new(),
        })
    }

    /// With types as declared, and found out where 0 or not declared.
    pub(crate) fn typed(sql: &str, declared: &[u32], db: &Connection) -> Result<Self, PgError> {
        let mut prepared = Self::simple(sql)?;
        let tokens = lex(sql)?;
        let tokens = significant(&tokens);
        let count = tokens.iter().filter_map(Token::param).max().unwrap_or(0);
        // The protocol counts parameters in 16 bits.
        if count > usize::from(u16::MAX) {
            return Err(PgError::new("42P02", "too many parameters"));
        }
        let mut params = vec![types::UNKNOWN; count.max(declared.len())];
        if !params.is_empty() {
            let scope = Scope::new(&tokens, db);
            for at in 0..tokens.len() {
                let slot = tokens
                    .get(at)
                    .and_then(Token::param)
                    .and_then(|n| n.checked_sub(1));
                if let Some(slot) = slot.and_then(|slot| params.get_mut(slot))
                    && *slot == types::UNKNOWN
                {
                    *slot = scope.param(&tokens, at);
                }
            }
            for (slot, oid) in params.iter_mut().zip(declared) {
                if *oid != types::UNKNOWN {
                    *slot = *oid;
                }
            }
        }
        prepared.params = params
            .iter()
            .map(|oid| {
                if *oid == types::UNKNOWN {
                    types::TEXT
                } else {
                    *oid
                }
            })
            .collect();
        Ok(prepared)
    }

    /// The columns of a statement for SQLite, as far as they are known
    /// without running it. `deep` looks at the tables' columns too.
    pub(crate) fn columns(
        &self,
        statement: &rusqlite::Statement<'_>,
        tables: Option<&Connection>,
    ) -> Vec<Column> {
        let tokens = lex(&self.sql).unwrap_or_default();
        let tokens = significant(&tokens);
        let mut scope = tables.map_or_else(Scope::default, |db| Scope::new(&tokens, db));
        scope.params.clone_from(&self.params);
        let items = select_items(&tokens);
        let known = items.len() == statement.column_count();
        let columns = statement.columns();
        let column = |(at, column): (usize, &rusqlite::Column<'_>)| {
            let item = if known {
                items.get(at).copied().unwrap_or_default()
            } else {
                &[]
            };
            let (expression, aliased) = without_alias(item);
            let declared = column.decl_type().filter(|name| !name.is_empty());
            let oid = match declared {
                Some(name) => types::by_name(name).unwrap_or(types::TEXT),
                None => scope.expression(expression),
            };
            let name = if aliased {
                None
            } else {
                expression_name(expression)
            };
            Column {
                name: name.unwrap_or_else(|| column.name().to_owned()),
                oid,
            }
        };
        columns.iter().enumerate().map(column).collect()
    }
}

/// The items of the select list or of RETURNING.
fn select_items<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    const END: &[&str] = &[
        "from",
        "where",
        "union",
        "except",
        "intersect",
        "order",
        "limit",
        "group",
        "having",
    ];
    let mut depth = 0_i32;
    let mut start = None;
    let mut items = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        depth += i32::from(token.is("(")) - i32::from(token.is(")"));
        if depth != 0 {
            continue;
        }
        match start {
            None if token.is("select") || token.is("returning") => {
                let more = tokens
                    .get(at + 1)
                    .is_some_and(|t| t.is("distinct") || t.is("all"));
                start = Some(at + 1 + usize::from(more));
            }
            Some(from) if END.iter().any(|word| token.is(word)) => {
                items.push(tokens.get(from..at).unwrap_or_default());
                return items;
            }
            Some(from) if token.is(",") => {
                items.push(tokens.get(from..at).unwrap_or_default());
                start = Some(at + 1);
            }
            _ => {}
        }
    }
    items.extend(start.and_then(|from| tokens.get(from..)));
    items
}

/// The expression of a select item, and whether it had an alias.
fn without_alias<'t, 'a>(item: &'t [Token<'a>]) -> (&'t [Token<'a>], bool) {
    const ENDS: &[&str] = &["null", "true", "false", "end", "isnull", "notnull"];
    if let [expression @ .., word, _] = item
        && word.is("as")
    {
        return (expression, true);
    }
    match item {
        [expression @ .., before, last]
            if matches!(last.kind, Kind::Word | Kind::Quoted)
                && !ENDS.iter().any(|word| last.is(word))
                && (before.kind != Kind::Op || before.is(")")) =>
        {
            // `x::text` ends with a word as well, but after an operator.
            let length = expression.len() + 1;
            (item.get(..length).unwrap_or_default(), true)
        }
        _ => (item, false),
    }
}

/// What PostgreSQL calls a column without an alias; `None` leaves the name
/// to SQLite.
fn expression_name(tokens: &[Token<'_>]) -> Option<String> {
    match tokens {
        [] => None,
        [.., star] if star.is("*") => None,
        [one] if matches!(one.kind, Kind::Word | Kind::Quoted) => match one.value().as_str() {
            "true" | "false" => Some("bool".to_owned()),
            "null" => Some("?column?".to_owned()),
            _ => Some(one.value()),
        },
        [.., dot, last] if dot.is(".") => Some(last.value()),
        [schema, dot, name, open, ..] if dot.is(".") && open.is("(") => {
            let catalog = schema.is("pg_catalog");
            Some(if catalog {
                name.value()
            } else {
                format!("{}.{}", schema.value(), name.value())
            })
        }
        [case, .., end] if case.is("case") && end.is("end") => Some("case".to_owned()),
        [name, open, .., close] if name.kind == Kind::Word && open.is("(") && close.is(")") => {
            Some(name.value())
        }
        [name, cast, ..] if name.kind == Kind::Word && cast.is("::") => Some(name.value()),
        _ => Some("?column?".to_owned()),
    }
}

/// The columns that a statement can name, and their types.
#[derive(Default)]
struct Scope {
    /// By table, in the table's order.
    tables: BTreeMap<String, Vec<(String, u32)>>,
    params: Vec<u32>,
}

impl Scope {
    fn new(tokens: &[Token<'_>], db: &Connection) -> Self {
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
    fn param(&self, tokens: &[Token<'_>], at: usize) -> u32 {
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
    fn expression(&self, tokens: &[Token<'_>]) -> u32 {
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
