//! Reads the statements that the session runs itself, from their first word
//! on.

use crate::error::PgError;
use crate::lexer::{Kind, Token, text};
use crate::statement::{Sql, Statement, quote};
use crate::translate::translate;
use crate::types;

pub(crate) struct Parser<'t, 'a> {
    pub(crate) tokens: &'t [Token<'a>],
}

impl<'a> Parser<'_, 'a> {
    pub(crate) fn next(&mut self) -> Option<Token<'a>> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(*first)
    }

    pub(crate) fn eat(&mut self, word: &str) -> bool {
        let found = self.tokens.first().is_some_and(|token| token.is(word));
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), PgError> {
        if self.eat(word) {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn unexpected(&self) -> PgError {
        match self.tokens.first() {
            Some(token) => PgError::syntax(format!("syntax error at or near \"{}\"", token.text)),
            None => PgError::syntax("syntax error at end of input"),
        }
    }

    pub(crate) fn name(&mut self) -> Result<String, PgError> {
        match self.tokens.first().map(|token| token.kind) {
            Some(Kind::Word | Kind::Quoted) => {
                Ok(self.next().map(|t| t.value()).unwrap_or_default())
            }
            _ => Err(self.unexpected()),
        }
    }

    pub(crate) fn setting_name(&mut self) -> Result<String, PgError> {
        let mut name = self.name()?;
        while self.eat(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name.to_ascii_lowercase())
    }

    pub(crate) fn set(&mut self) -> Result<Statement, PgError> {
        let local = self.eat("local");
        let session = !local && self.eat("session");
        if self.eat("transaction") || (session && self.eat("characteristics")) {
            return Ok(Statement::Ignored("SET"));
        }
        let name = if self.eat("time") {
            self.expect("zone")?;
            "timezone".to_owned()
        } else {
            let name = self.setting_name()?;
            if !self.eat("=") {
                self.expect("to")?;
            }
            name
        };
        if self.tokens.is_empty() {
            return Err(self.unexpected());
        }
        if let [token] = self.tokens
            && token.is("default")
        {
            return Ok(Statement::Set {
                name,
                value: None,
                local,
            });
        }
        let parts = self.tokens.iter().map(|token| match token.text {
            "," => ", ".to_owned(),
            _ if token.kind == Kind::Word => token.text.to_owned(),
            _ => token.value(),
        });
        Ok(Statement::Set {
            name,
            value: Some(parts.collect()),
            local,
        })
    }

    pub(crate) fn show(&mut self) -> Result<Statement, PgError> {
        if self.eat("transfer") {
            self.expect("state")?;
            let key = match (self.eat("with"), self.next()) {
                (false, None) => None,
                (true, Some(token)) if token.kind == Kind::Text => Some(token.value()),
                _ => return Err(self.unexpected()),
            };
            return Ok(Statement::ShowTransferState { key });
        }
        if self.eat("time") {
            return Ok(Statement::Show("timezone".to_owned()));
        }
        if self.eat("tables") {
            let query = "SELECT name AS table_name FROM sqlite_master WHERE type = 'table' \
                         AND name NOT LIKE 'sqlpod_%' AND name NOT LIKE 'sqlite_%' ORDER BY name";
            let (text, tag) = (query.to_owned(), "SHOW TABLES".to_owned());
            return Ok(Statement::Sql(Sql {
                text,
                tag,
                restores: false,
                serializes: false,
            }));
        }
        self.setting_name().map(Statement::Show)
    }

    pub(crate) fn prepare(&mut self, all: &[Token<'_>]) -> Result<Statement, PgError> {
        let name = self.name()?;
        let mut types = Vec::new();
        if self.eat("(") {
            for part in self.list() {
                let word: Vec<_> = part.iter().map(|token| token.text).collect();
                let oid = types::by_name(&word.join(" ")).ok_or_else(|| {
                    PgError::new(
                        "42704",
                        format!("type \"{}\" does not exist", word.concat()),
                    )
                })?;
                types.push(oid);
            }
        }
        self.expect("as")?;
        // The first AS ends the head: neither name nor types may contain it.
        let body = all
            .iter()
            .position(|token| token.is("as"))
            .and_then(|at| all.get(at + 1..));
        Ok(Statement::Prepare {
            name,
            types,
            body: text(body.unwrap_or_default()).trim().to_owned(),
        })
    }

    pub(crate) fn execute(&mut self) -> Result<Statement, PgError> {
        let name = self.name()?;
        let args = if self.eat("(") {
            self.list()
        } else {
            Vec::new()
        };
        let args = args
            .iter()
            .map(|tokens| translate(&spaced(tokens)))
            .collect();
        Ok(Statement::Execute { name, args })
    }

    pub(crate) fn copy(&mut self) -> Result<Statement, PgError> {
        let query = if self.eat("(") {
            let inner: Vec<Vec<Token<'_>>> = self.list();
            let inner: Vec<_> = inner.join(&Token {
                kind: Kind::Op,
                text: ",",
            });
            let query = Sql::new(&spaced(&inner));
            self.expect("to")?;
            query
        } else {
            let mut table = self.name()?;
            if self.eat(".") {
                table = self.name()?;
            }
            let columns: Vec<String> = if self.eat("(") {
                self.list()
                    .iter()
                    .filter_map(|part| Some(part.first()?.value()))
                    .collect()
            } else {
                Vec::new()
            };
            if self.eat("from") {
                self.expect("stdin")?;
                self.copy_options()?;
                return Ok(Statement::CopyIn { table, columns });
            }
            self.expect("to")?;
            let list: Vec<_> = columns.iter().map(|name| quote(name)).collect();
            let list = if list.is_empty() {
                "*".to_owned()
            } else {
                list.join(", ")
            };
            let text = format!("SELECT {list} FROM {}", quote(&table));
            Sql {
                text,
                tag: "COPY".to_owned(),
                restores: false,
                serializes: false,
            }
        };
        self.expect("stdout")?;
        self.copy_options()?;
        Ok(Statement::CopyOut { query })
    }

    fn copy_options(&self) -> Result<(), PgError> {
        let known = ["with", "(", ")", "format", "text"];
        match self
            .tokens
            .iter()
            .find(|token| !known.iter().any(|word| token.is(word)))
        {
            Some(token) => Err(PgError::unsupported(&format!(
                "COPY option \"{}\"",
                token.text
            ))),
            None => Ok(()),
        }
    }

    /// What stands up to the closing parenthesis, cut at its commas.
    fn list(&mut self) -> Vec<Vec<Token<'a>>> {
        let mut parts = vec![Vec::new()];
        let mut depth = 0_usize;
        while let Some(token) = self.next() {
            if token.is("(") {
                depth += 1;
            } else if token.is(")") {
                match depth.checked_sub(1) {
                    Some(less) => depth = less,
                    None => break,
                }
            }
            match parts.last_mut() {
                Some(part) if depth > 0 || !token.is(",") => part.push(token),
                _ => parts.push(Vec::new()),
            }
        }
        parts.retain(|part| !part.is_empty());
        parts
    }
}

/// Puts blanks back between significant tokens.
fn spaced<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let blank = Token {
        kind: Kind::Space,
        text: " ",
    };
    tokens.iter().flat_map(|token| [*token, blank]).collect()
}
