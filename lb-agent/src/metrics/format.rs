// SPDX-License-Identifier: MIT OR Apache-2.0
//! In which of its two text formats `/metrics` answers, and how one is made of the other. Pure.
//!
//! The encoder writes OpenMetrics. The older format, which everything reads, names a counter in its header as in its lines, and
//! knows neither units, nor `info`, nor an end.

use axum::http::{HeaderMap, header::ACCEPT};

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus's own, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the client asks for (RFC 9110, section 12.5.1). OpenMetrics is for those who name it, as Prometheus does, and do not
    /// like the other better.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let lists = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<(&str, f32)> = lists.flat_map(|list| list.split(',')).map(range).collect();
        let quality = |name: &str| ranges.iter().find(|(own, _)| *own == name).map(|(_, quality)| *quality);
        let open = quality("application/openmetrics-text").unwrap_or(0.0);
        let text = quality("text/plain").or_else(|| quality("text/*")).unwrap_or(0.0);
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The page in this format.
    pub(super) fn of_open_metrics(self, page: String) -> String {
        match self {
            Self::OpenMetrics => page,
            Self::Text => to_text(&page),
        }
    }
}

/// A media range without its parameters, and how much it is liked.
fn range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
    (name, quality.unwrap_or(1.0))
}

fn to_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len() + page.len() / 16);
    // The line before a type is the help for it.
    let mut help = None;
    for line in page.lines() {
        match line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
            Some(("HELP", rest)) => help = rest.split_once(' '),
            Some(("TYPE", rest)) => push_header(&mut text, rest, help.take()),
            Some(("UNIT", _)) => {}
            _ if line == "# EOF" => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

fn push_header(text: &mut String, rest: &str, help: Option<(&str, &str)>) {
    let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
    let (suffix, kind) = match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        // Some of kube-proxy's own names are gauges that end as counters do: `promtool check metrics` wants that of no gauge.
        "gauge" if name.ends_with("_total") => ("", "untyped"),
        "unknown" => ("", "untyped"),
        kind => ("", kind),
    };
    if let Some((_, help)) = help.filter(|(own, _)| *own == name) {
        text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
    }
    text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn wanted(accept: &'static str) -> Format {
        Format::wanted(&[(ACCEPT, HeaderValue::from_static(accept))].into_iter().collect())
    }

    #[test]
    fn open_metrics_is_for_who_names_it() {
        for accept in [
            // Prometheus's own.
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0, text/plain",
        ] {
            assert_eq!(wanted(accept), Format::OpenMetrics, "{accept}");
        }
        for accept in [
            "text/plain",
            "*/*",
            "",
            "text/plain;q=0.9,application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0",
        ] {
            assert_eq!(wanted(accept), Format::Text, "{accept}");
        }
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::Text);
    }

    #[test]
    fn a_gauge_that_is_named_as_a_counter_is_of_no_type_in_the_older_format() {
        let page = "# HELP a_total Services.\n# TYPE a_total gauge\na_total 3\n# EOF\n";
        let expected = "# HELP a_total Services.\n# TYPE a_total untyped\na_total 3\n";
        assert_eq!(Format::Text.of_open_metrics(page.to_owned()), expected);
    }

    #[test]
    fn the_older_format_names_counters_in_full_and_has_no_end() {
        let page = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\na_seconds_sum 1.5\n\
                    a_seconds_bucket{le=\"+Inf\"} 2\n# HELP b Answers.\n# TYPE b counter\nb_total{code=\"200\"} 3\n\
                    # HELP c What.\n# TYPE c info\nc_info{version=\"1\"} 1\n# TYPE d unknown\nd 4\n# EOF\n";
        let expected = "# HELP a_seconds Time.\n# TYPE a_seconds histogram\na_seconds_sum 1.5\n\
                        a_seconds_bucket{le=\"+Inf\"} 2\n# HELP b_total Answers.\n# TYPE b_total counter\n\
                        b_total{code=\"200\"} 3\n# HELP c_info What.\n# TYPE c_info gauge\nc_info{version=\"1\"} 1\n\
                        # TYPE d untyped\nd 4\n";
        assert_eq!(Format::Text.of_open_metrics(page.to_owned()), expected);
        assert_eq!(Format::OpenMetrics.of_open_metrics(page.to_owned()), page);
    }
}
