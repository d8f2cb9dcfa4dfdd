//! Plain tables for a terminal of 100 columns.

use crate::logging::is_active;

/// Wider cells are cut, so that a name of a client's choice moves no column.
const MAX_CELL_CHARS: usize = 28;

/// Rows under their heads, columns two spaces apart, the last one as long as it is.
#[must_use]
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(&heads)
        .chain(rows)
        .map(|row| {
            let last = row.len().saturating_sub(1);
            let cells = row.iter().enumerate();
            cells
                .map(|(index, cell)| match index == last {
                    true => printable(cell, usize::MAX),
                    false => printable(cell, MAX_CELL_CHARS),
                })
                .collect()
        })
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Without what a terminal would act on, and at most so many characters of it.
#[must_use]
pub(super) fn printable(text: &str, most: usize) -> String {
    let shown: String = text
        .chars()
        .flat_map(|c| match is_active(c) {
            true => c.escape_unicode().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect();
    match shown.char_indices().nth(most) {
        Some(_) => {
            let cut: String = shown.chars().take(most.saturating_sub(1)).collect();
            format!("{cut}…")
        }
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_heads() {
        let rows = [
            vec!["1".to_owned(), "maria".to_owned(), "x".to_owned()],
            vec![
                "1000".to_owned(),
                "o".repeat(40),
                "a long reason".to_owned(),
            ],
        ];
        let cut = format!("{}…", "o".repeat(27));
        assert_eq!(
            table(&["CONN", "USER", "WHY"], &rows),
            format!(
                "CONN  USER                          WHY\n1     maria                         \
                 x\n1000  {cut}  a long reason\n"
            )
        );
    }

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_act_on() {
        assert_eq!(printable("a\u{1b}[31m\nb", 99), "a\\u{1b}[31m\\u{a}b");
        assert_eq!(printable("\u{202e}x", 99), "\\u{202e}x");
    }
}
