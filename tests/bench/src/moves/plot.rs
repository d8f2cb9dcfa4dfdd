//! What sessions cost by their number, as SVG: one small plot a figure, the numbers on a
//! logarithmic axis.

use std::fmt::Write as _;

use crate::moves::growth::Row;
use crate::table::absolute;

/// All in pixels.
const PLOT_WIDTH: f64 = 200.0;
const PLOT_HEIGHT: f64 = 150.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 38.0;
const RIGHT: f64 = 18.0;
const POINT: f64 = 3.0;
/// Lines across, above the axis.
const STEPS: u8 = 4;

/// A figure, and a colour for it.
type Curve = (&'static str, &'static str, fn(&Row) -> f64);

const CURVES: [Curve; 3] = [
    ("proxy's CPU a move, µs", "#1f5fa8", |row| row.cpu_us),
    ("proxy's memory a session, KiB", "#b8860b", |row| row.kib),
    ("round time a session, ms", "#5b8c5a", |row| {
        row.round_ms / number(row)
    }),
];

fn number(row: &Row) -> f64 {
    f64::from(u32::try_from(row.sessions).unwrap_or(u32::MAX))
}

/// The whole file.
pub(crate) fn svg(rows: &[Row]) -> String {
    let panel = LEFT + PLOT_WIDTH + RIGHT;
    let width = panel * CURVES.iter().map(|_| 1.0).sum::<f64>();
    let height = TOP + PLOT_HEIGHT + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let mut left = LEFT;
    for curve in &CURVES {
        draw(&mut out, left, curve, rows);
        left += panel;
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, left: f64, (title, color, figure): &Curve, rows: &[Row]) {
    let mut add = |element: String| {
        out.push_str(&element);
        out.push('\n');
    };
    let text = |x: f64, y: f64, anchor: &str, words: &str| {
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>")
    };
    let decades = rows
        .iter()
        .map(|row| number(row).log10())
        .fold(1.0, f64::max);
    let most = round_up(rows.iter().map(figure).fold(0.0, f64::max));
    let x = |row: &Row| left + number(row).log10() / decades * PLOT_WIDTH;
    let y = |value: f64| TOP + PLOT_HEIGHT * (1.0 - value / most);
    add(text(left - 8.0, 16.0, "start", title));
    for step in 0..=STEPS {
        let value = most * f64::from(step) / f64::from(STEPS);
        let (at, end) = (y(value), left + PLOT_WIDTH);
        add(format!(
            "<path d=\"M{left:.1} {at:.1}H{end:.1}\" stroke=\"#ccc\"/>"
        ));
        let shown = if step == 0 {
            "0".to_owned()
        } else {
            absolute(value)
        };
        add(text(left - 6.0, at + 4.0, "end", &shown));
    }
    let mut line = String::new();
    for row in rows {
        let (at, value) = (x(row), figure(row));
        // Writing to a String cannot fail.
        let _ = write!(line, "{at:.1},{:.1} ", y(value));
        add(format!(
            "<circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"{POINT}\" fill=\"{color}\"/>",
            y(value)
        ));
        let foot = TOP + PLOT_HEIGHT + 16.0;
        add(text(at, foot, "middle", &row.sessions.to_string()));
    }
    add(format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\"/>",
        line.trim_end()
    ));
    let middle = left + PLOT_WIDTH / 2.0;
    add(text(middle, TOP + PLOT_HEIGHT + 32.0, "middle", "sessions"));
}

/// The next of 1, 2, 4, 8 and so on by tens: a fourth of it can be read.
fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.max(1e-6).log10().floor());
    let steps = [1.0, 2.0, 4.0, 8.0, 10.0].map(|step| step * decade);
    steps
        .into_iter()
        .find(|step| *step >= value)
        .unwrap_or(value)
}
