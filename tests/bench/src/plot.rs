//! CPU for each load as bars, ratios to the relay's, as SVG.

use std::fmt::Write as _;

use crate::peers::Kind;
use crate::samples::{Of, Samples};

/// By the place among the peers that are shown.
const COLORS: [&str; 5] = ["#1f5fa8", "#7fa8d4", "#b8860b", "#8a8a8a", "#5b8c5a"];
/// All in pixels.
const LABEL_WIDTH: f64 = 170.0;
const PLOT_WIDTH: f64 = 470.0;
const BAR_HEIGHT: f64 = 9.0;
const GROUP_GAP: f64 = 9.0;
const HEAD_HEIGHT: f64 = 44.0;
const FOOT_HEIGHT: f64 = 24.0;
/// Longer bars are cut and say how long they are.
const MOST: f64 = 3.0;

/// The whole file.
pub(crate) fn svg(samples: &Samples) -> String {
    let relay = samples.place(Kind::Relay.name()).unwrap_or_default();
    let shown: Vec<_> = (samples.peers.iter().enumerate())
        .filter(|(_, name)| ![Kind::Direct.name(), Kind::Relay.name()].contains(&name.as_str()))
        .collect();
    let bars: f64 = shown.iter().map(|_| BAR_HEIGHT).sum();
    let body: f64 = samples.loads.iter().map(|_| bars + GROUP_GAP).sum();
    let (width, height) = (
        LABEL_WIDTH + PLOT_WIDTH + 40.0,
        HEAD_HEIGHT + body + FOOT_HEIGHT,
    );
    let at = |ratio: f64| LABEL_WIDTH + ratio / MOST * PLOT_WIDTH;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"16\" font-size=\"12\">CPU of the proxy for the same work, as a ratio to \
         that of a relay that parses nothing</text>\n"
    );
    let mut text = |x: f64, y: f64, anchor: &str, words: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
        );
    };
    let mut shapes = String::new();
    let mut rect = |x: f64, y: f64, width: f64, height: f64, color: &str| {
        let _ = writeln!(
            shapes,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"{color}\"/>"
        );
    };
    let mut x = LABEL_WIDTH;
    for ((_, name), color) in shown.iter().zip(COLORS) {
        rect(x, 26.0, 10.0, 10.0, color);
        text(x + 14.0, 35.0, "start", name);
        x += 110.0;
    }
    let mut y = HEAD_HEIGHT;
    for rounds in &samples.loads {
        let middle = y + bars / 2.0 + 4.0;
        text(LABEL_WIDTH - 8.0, middle, "end", &rounds.load.name());
        for ((peer, _), color) in shown.iter().zip(COLORS) {
            if let Some(ratio) = rounds.ratio(Of::Cpu, *peer, relay) {
                let end = at(ratio.median.min(MOST));
                rect(LABEL_WIDTH, y, end - LABEL_WIDTH, BAR_HEIGHT - 1.0, color);
                if ratio.median > MOST {
                    text(end + 4.0, y + 8.0, "start", &format!("{:.1}", ratio.median));
                }
            }
            y += BAR_HEIGHT;
        }
        y += GROUP_GAP;
    }
    for tenths in [0_u8, 5, 10, 15, 20, 25, 30] {
        let ratio = f64::from(tenths) / 10.0;
        let color = if tenths == 10 { "#c00" } else { "#ccc" };
        rect(at(ratio), HEAD_HEIGHT - 4.0, 1.0, body, color);
        text(
            at(ratio),
            HEAD_HEIGHT + body + 12.0,
            "middle",
            &ratio.to_string(),
        );
    }
    out.push_str(&shapes);
    out.push_str("</svg>\n");
    out
}
