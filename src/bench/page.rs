//! One HTML page that needs nothing but itself: no script, no font, no request.
//!
//! It reads on a laptop and in print. Whoever builds a report hands in sections; here is the paper.

use std::fmt::Write;

/// What the page looks like.
const STYLE: &str = "\
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1180px;margin:2em auto;padding:0 1.2em}
h1{font-size:1.6em;margin:0 0 .2em}h2{font-size:1.2em;margin:2em 0 .4em;border-bottom:1px solid #ccc}
p{margin:.4em 0;max-width:95ch}.quiet{color:#555}
table{border-collapse:collapse;margin:.6em 0;font-variant-numeric:tabular-nums;font-size:.93em}
th,td{padding:.2em .6em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:9em}th{background:#f3f3f3;font-weight:600}
.scroll{overflow-x:auto}
svg{display:block;width:100%;height:auto}
h2,h2+p,p:has(+svg){break-after:avoid}
pre{background:#f6f6f6;padding:.6em .8em;white-space:pre-wrap;font-size:.9em}
.bad{color:#a30000;font-weight:600}.good{color:#00612e;font-weight:600}
@media print{@page{size:A4 landscape;margin:12mm}body{margin:0;max-width:none;font-size:11px}
h2{margin-top:1em}svg{width:auto;max-width:100%;max-height:76mm;break-inside:avoid}tr,p{break-inside:avoid}
.scroll{overflow:visible}
th{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
";

/// A part of a page, in HTML that is already well-formed.
#[derive(Default)]
pub struct Section {
    heading: String,
    html: String,
}

impl Section {
    /// An empty part under a heading.
    pub fn new(heading: &str) -> Self {
        Self { heading: heading.to_owned(), html: String::new() }
    }

    /// Adds a paragraph of plain text.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.html += &format!("<p>{}</p>\n", escape(text));
        self
    }

    /// Adds a paragraph of plain text that says good or bad news.
    #[must_use]
    pub fn news(mut self, is_good: bool, text: &str) -> Self {
        let class = if is_good { "good" } else { "bad" };
        self.html += &format!("<p class=\"{class}\">{}</p>\n", escape(text));
        self
    }

    /// Adds plain text whose lines and columns stay as they are.
    #[must_use]
    pub fn verbatim(mut self, text: &str) -> Self {
        self.html += &format!("<pre>{}</pre>\n", escape(text));
        self
    }

    /// Adds a plot.
    #[must_use]
    pub fn plot(mut self, svg: &str) -> Self {
        self.html += svg;
        self
    }

    /// Adds a table; cells are plain text.
    #[must_use]
    pub fn table(mut self, head: &[&str], rows: &[Vec<String>]) -> Self {
        let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cells: String =
                cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
            format!("<tr>{cells}</tr>\n")
        };
        self.html += "<div class=\"scroll\"><table>\n<thead>";
        self.html += &row("th", &mut head.iter().copied());
        self.html += "</thead>\n<tbody>\n";
        for cells in rows {
            self.html += &row("td", &mut cells.iter().map(String::as_str));
        }
        self.html += "</tbody>\n</table></div>\n";
        self
    }
}

/// The whole page; `subtitle` is one line of plain text.
pub fn page(title: &str, subtitle: &str, sections: &[Section]) -> String {
    let (title, subtitle) = (escape(title), escape(subtitle));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p class=\"quiet\">{subtitle}</p>\n"
    );
    for section in sections {
        // Writing to a text does not fail.
        let _ = writeln!(out, "<section>\n<h2>{}</h2>", escape(&section.heading));
        out += &section.html;
        out += "</section>\n";
    }
    out += "</body>\n</html>\n";
    out
}

/// Plain text as text of HTML or XML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // XML has no way to write the other control characters.
            control if control.is_control() && !['\n', '\t'].contains(&control) => {
                out.push('\u{fffd}')
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_nothing_but_itself_and_strangers_text_stays_text() {
        let section = Section::new("A <heading>")
            .text("1 < 2 & \"3\"")
            .table(&["server", "p50"], &[vec!["<script>".to_owned(), "1 ms".to_owned()]])
            .news(false, "a\u{1b}[2Jb")
            .verbatim("x  y")
            .plot("<svg></svg>");
        let html = page("DNS", "198.18.0.1", &[section]);
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
        for outside in ["<script", "src=", "href=", "@import", "url(", "\u{1b}"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(html.contains("<td>&lt;script&gt;</td><td>1 ms</td>"), "{html}");
        assert!(html.contains("A &lt;heading&gt;") && html.contains("<svg></svg>"));
    }
}
