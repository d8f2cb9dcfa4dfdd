//! Cuts SQL into tokens, as PostgreSQL does: quotes, dollar quotes, nested
//! comments, parameters. Concatenated, the tokens are the text again.

use crate::error::PgError;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blanks and comments.
    Space,
    /// Keyword or plain identifier.
    Word,
    /// `"identifier"`.
    Quoted,
    /// `'text'`, `E'text'`, `$$text$$`.
    Text,
    Number,
    /// `$1`.
    Param,
    /// Everything else, one operator each.
    Op,
}

/// One token and its text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
}

impl Token<'_> {
    /// True for this keyword or operator, whatever its case.
    pub(crate) fn is(&self, word: &str) -> bool {
        matches!(self.kind, Kind::Word | Kind::Op) && self.text.eq_ignore_ascii_case(word)
    }

    /// The name, string or word that the token stands for: unquoted, and
    /// plain words in lower case.
    pub(crate) fn value(&self) -> String {
        match self.kind {
            Kind::Quoted => inner(self.text, 1).replace("\"\"", "\""),
            Kind::Text => literal(self.text),
            Kind::Word => self.text.to_ascii_lowercase(),
            _ => self.text.to_owned(),
        }
    }

    /// The number of a `$1`.
    pub(crate) fn param(&self) -> Option<usize> {
        let digits = self
            .text
            .strip_prefix('$')
            .filter(|_| self.kind == Kind::Param)?;
        digits.parse().ok()
    }
}

fn inner(text: &str, quote: usize) -> &str {
    text.get(quote..text.len().saturating_sub(quote))
        .unwrap_or_default()
}

fn literal(text: &str) -> String {
    if text.starts_with('$') {
        let quote = text.match_indices('$').nth(1).map_or(0, |(at, _)| at + 1);
        return inner(text, quote).to_owned();
    }
    if text.starts_with('\'') {
        let body = inner(text, 1);
        // Most literals have no quote inside, and some are very large.
        let plain = !body.contains('\'');
        return if plain {
            body.to_owned()
        } else {
            body.replace("''", "'")
        };
    }
    let body = inner(text.get(1..).unwrap_or_default(), 1).replace("''", "'");
    let mut result = String::new();
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        result.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(other) => other,
                None => '\\',
            },
            c => c,
        });
    }
    result
}

/// Cuts the text into tokens.
///
/// # Errors
/// 42601 for a quote or comment that never ends.
pub(crate) fn lex(sql: &str) -> Result<Vec<Token<'_>>, PgError> {
    let mut tokens = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = scan(rest, first).ok_or_else(|| {
            PgError::syntax(format!(
                "unterminated quoted string or comment at or near \"{first}\""
            ))
        })?;
        let (text, tail) = rest.split_at_checked(length).unwrap_or((rest, ""));
        tokens.push(Token { kind, text });
        rest = tail;
    }
    Ok(tokens)
}

/// Kind and length of the first token; `None` where it never ends.
fn scan(rest: &str, first: char) -> Option<(Kind, usize)> {
    let second = rest.chars().nth(1).unwrap_or('\0');
    let found = match (first, second) {
        (c, _) if c.is_whitespace() => (Kind::Space, span(rest, char::is_whitespace)),
        ('-', '-') => (Kind::Space, span(rest, |c| c != '\n')),
        ('/', '*') => (Kind::Space, comment(rest)?),
        ('\'', _) => (Kind::Text, quoted(rest, 0, false)?),
        ('e' | 'E', '\'') => (Kind::Text, quoted(rest, 1, true)?),
        ('"', _) => (Kind::Quoted, quoted(rest, 0, false)?),
        ('$', '0'..='9') => (
            Kind::Param,
            1 + span(rest.get(1..)?, |c| c.is_ascii_digit()),
        ),
        ('$', c) if c == '$' || is_word(c) => (Kind::Text, dollar(rest)?),
        ('0'..='9', _) | ('.', '0'..='9') => (Kind::Number, number(rest)),
        // A blob literal keeps its prefix and goes to SQLite as it stands.
        ('x' | 'X', '\'') => (Kind::Number, quoted(rest, 1, false)?),
        (c, _) if is_word(c) => (Kind::Word, span(rest, |c| is_word(c) || c == '$')),
        (':', ':') | ('<', '=' | '>') | ('>' | '!', '=') | ('|', '|') => (Kind::Op, 2),
        ('-', '>') => (Kind::Op, if rest.starts_with("->>") { 3 } else { 2 }),
        (c, _) => (Kind::Op, c.len_utf8()),
    };
    Some(found)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn span(text: &str, inside: impl Fn(char) -> bool) -> usize {
    text.find(|c| !inside(c)).unwrap_or(text.len())
}

fn number(text: &str) -> usize {
    let mantissa = span(text, |c| c.is_ascii_digit() || c == '.');
    let tail = text.get(mantissa..).unwrap_or_default();
    let exponent = tail
        .strip_prefix(['e', 'E'])
        .map(|tail| tail.trim_start_matches(['+', '-']));
    match exponent {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_digit()) => {
            text.len() - digits.len() + span(digits, |c| c.is_ascii_digit())
        }
        _ => mantissa,
    }
}

/// Length of a quoted token whose quote stands at `open`. Jumps from quote to
/// quote: a literal may be as large as a message.
fn quoted(text: &str, open: usize, escapes: bool) -> Option<usize> {
    let quote = text.get(open..)?.chars().next()?;
    let mut at = open + 1;
    loop {
        let rest = text.get(at..)?;
        let found = if escapes {
            rest.find([quote, '\\'])
        } else {
            rest.find(quote)
        }?;
        let mut chars = rest.get(found..)?.chars();
        let first = chars.next()?;
        match chars.next() {
            Some(next) if first == '\\' || next == quote => at += found + 1 + next.len_utf8(),
            _ => return Some(at + found + 1),
        }
    }
}

fn dollar(text: &str) -> Option<usize> {
    let tag = text.get(..text.match_indices('$').nth(1)?.0 + 1)?;
    let body = text.get(tag.len()..)?;
    Some(tag.len() + body.find(tag)? + tag.len())
}

fn comment(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        let opens = rest.find("/*").unwrap_or(usize::MAX);
        let closes = rest.find("*/")?;
        if opens < closes {
            depth += 1;
            at += opens + 2;
        } else {
            depth = depth.checked_sub(1)?;
            at += closes + 2;
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Cuts at the semicolons; a statement of blanks alone is kept, so that the
/// caller can tell an empty query.
pub(crate) fn split<'a>(tokens: &[Token<'a>]) -> Vec<Vec<Token<'a>>> {
    tokens
        .split(|token| token.is(";"))
        .map(<[Token<'_>]>::to_vec)
        .collect()
}

/// The tokens that count, without blanks and comments.
pub(crate) fn significant<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    tokens
        .iter()
        .filter(|token| token.kind != Kind::Space)
        .copied()
        .collect()
}

/// The text that the tokens were cut from.
pub(crate) fn text(tokens: &[Token<'_>]) -> String {
    tokens.iter().map(|token| token.text).collect()
}
