// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures as bars: a page of HTML with its drawings in it, which asks no network for anything.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// What a figure shall be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shall {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Shall {
    /// Whether a figure is so.
    #[must_use]
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    const fn limit(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) => limit,
        }
    }

    /// For a table's cell; nothing for none.
    #[must_use]
    pub fn text(shall: Option<Self>) -> String {
        shall.map(|shall| shall.to_string()).unwrap_or_default()
    }
}

impl fmt::Display for Shall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if matches!(self, Self::AtMost(_)) { '≤' } else { '≥' };
        write!(f, "{sign} {}", self.limit())
    }
}

/// Figures of one unit.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// What they are.
    pub title: String,
    /// Of all of them.
    pub unit: String,
    /// From above to below.
    pub bars: Vec<Bar>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it is.
    pub label: String,
    /// As measured.
    pub value: f64,
    /// Least and most of the rounds, where there were several.
    pub range: Option<(f64, f64)>,
    /// What it shall be.
    pub shall: Option<Shall>,
}

/// Widths of a drawing's columns, and the height of a line, in pixels.
const LABELS: f64 = 380.0;
const BARS: f64 = 420.0;
const VALUES: f64 = 200.0;
const LINE: f64 = 24.0;

const STYLE: &str = "body{font:14px sans-serif;max-width:1040px;margin:2em auto;color:#222}\
    pre{font:12px monospace;overflow-x:auto}text{font:12px sans-serif;fill:#222}\
    .bar{fill:#4878a8}.missed{fill:#b85450}.range{stroke:#222}.shall{stroke:#1a7f37;stroke-width:2;stroke-dasharray:4 2}";

/// The page: drawings, then the text that the bench has printed.
pub fn page(title: &str, charts: &[Chart], text: &str) -> String {
    let drawings: String = charts.iter().map(Chart::to_html).collect();
    let (title, text) = (escaped(title), escaped(text));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n\
         <p>Thin lines reach from the least to the most of the rounds; dashed green ones are what a figure shall reach, and \
         bars that don't are red.</p>\n{drawings}<h2>Figures</h2>\n<pre>{text}</pre></body></html>\n"
    )
}

impl Chart {
    /// Bars with the titles and units of their drawings; one drawing for each title.
    pub fn group(bars: impl IntoIterator<Item = (String, String, Bar)>) -> Vec<Self> {
        let mut charts: Vec<Self> = Vec::new();
        for (title, unit, bar) in bars {
            match charts.iter_mut().find(|chart| chart.title == title) {
                Some(chart) => chart.bars.push(bar),
                None => charts.push(Self { title, unit, bars: vec![bar] }),
            }
        }
        charts
    }

    fn to_html(&self) -> String {
        let most = self.bars.iter().flat_map(Bar::ends).fold(f64::MIN_POSITIVE, f64::max);
        let height = LINE * self.bars.len() as f64;
        let mut html = format!(
            "<h2>{}</h2>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\">\n",
            escaped(&self.title),
            LABELS + BARS + VALUES
        );
        for (number, bar) in self.bars.iter().enumerate() {
            bar.draw(&mut html, LINE * number as f64, BARS / most, &self.unit);
        }
        html + "</svg>\n"
    }
}

impl Bar {
    /// Of nothing but a value.
    #[must_use]
    pub fn new(label: impl Into<String>, value: f64) -> Self {
        Self { label: label.into(), value, range: None, shall: None }
    }

    /// What must find room in the drawing.
    fn ends(&self) -> impl Iterator<Item = f64> {
        let shall = self.shall.map(Shall::limit);
        [Some(self.value), self.range.map(|(_, most)| most), shall].into_iter().flatten()
    }

    fn draw(&self, html: &mut String, top: f64, scale: f64, unit: &str) {
        let at = |value: f64| LABELS + value.max(0.0) * scale;
        let (middle, bottom) = (top + LINE / 2.0, top + LINE - 4.0);
        let baseline = middle + 4.0;
        let is_met = self.shall.is_none_or(|shall| shall.is_met(self.value));
        let class = if is_met { "bar" } else { "missed" };
        let mut line = |text: String| {
            html.push_str(&text);
            html.push('\n');
        };
        line(format!(
            "<text x=\"{}\" y=\"{baseline}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            escaped(&self.label)
        ));
        line(format!(
            "<rect class=\"{class}\" x=\"{LABELS}\" y=\"{}\" width=\"{:.1}\" height=\"{}\"/>",
            top + 4.0,
            at(self.value) - LABELS,
            LINE - 8.0
        ));
        if let Some((least, most)) = self.range {
            let (from, to) = (at(least), at(most));
            line(format!("<line class=\"range\" x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{to:.1}\" y2=\"{middle}\"/>"));
        }
        if let Some(shall) = self.shall {
            let x = at(shall.limit());
            line(format!("<line class=\"shall\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>"));
        }
        let mut value = format!("{} {unit}", figure(self.value));
        if let Some(shall) = self.shall {
            // Writing to a string can't fail.
            let _ = write!(value, " (shall be {shall})");
        }
        line(format!("<text x=\"{}\" y=\"{baseline}\">{}</text>", LABELS + BARS + 8.0, escaped(&value)));
    }
}

/// With as many decimals as say something.
fn figure(value: f64) -> String {
    let decimals = if value.abs() < 10.0 { 2 } else { usize::from(value.abs() < 1000.0) };
    format!("{value:.decimals$}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_every_figure_and_needs_nothing_else() {
        let bar = |value, shall| Bar { range: Some((1.0, 4.0)), shall, ..Bar::new("a < b", value) };
        let bars = vec![bar(2.0, Some(Shall::AtMost(3.0))), bar(0.5, Some(Shall::AtLeast(1.0))), bar(8.0, None)];
        let page = page("bench x", &[Chart { title: "time".into(), unit: "µs".into(), bars }], "a | b & c");
        for part in ["a &lt; b", "2.00 µs (shall be ≤ 3)", "0.50 µs (shall be ≥ 1)", "a | b &amp; c"] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        assert_eq!(page.matches("class=\"missed\"").count(), 1);
        assert_eq!(page.matches("class=\"bar\"").count(), 2);
        // The longest fills the column.
        assert!(page.contains("width=\"420.0\""), "{page}");
        let addresses: Vec<_> = page.match_indices("http").collect();
        assert_eq!(addresses.len(), 1, "the name of SVG's namespace, which nobody fetches");
    }
}
