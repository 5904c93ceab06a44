//! What was seen, line by line: as a table for the terminal, as Markdown, and as JSON that several runs can be
//! put together from.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::contender::Kind;

/// Queries that leave later than this were held up by the machine, not by whom they ask.
const LATE: Duration = Duration::from_millis(100);

/// One line of the report: who, under what circumstance, and figures with their names.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    who: String,
    circumstance: String,
    figures: Vec<(String, String)>,
    /// Promises about nodens that were not kept.
    broken: Vec<String>,
    /// Why the figures may say more of the machine than of the contender.
    doubts: Vec<String>,
}

impl Row {
    /// A line about a contender under some circumstance.
    pub fn new(kind: Kind, circumstance: &str) -> Self {
        Self {
            who: kind.name().to_owned(),
            circumstance: circumstance.to_owned(),
            figures: Vec::new(),
            broken: Vec::new(),
            doubts: Vec::new(),
        }
    }

    /// Adds a figure.
    pub fn cell(mut self, name: &str, value: impl Display) -> Self {
        self.figures.push((name.to_owned(), value.to_string()));
        self
    }

    /// Holds nodens to a promise.
    pub fn promise(mut self, words: &str, is_kept: bool) -> Self {
        if self.who.starts_with("nodens") && !is_kept {
            self.broken.push(words.to_owned());
        }
        self
    }

    /// Tells how late queries left, where that is too late for an open loop.
    pub fn pace(mut self, late: Duration) -> Self {
        if late > LATE {
            let words =
                format!("this machine was busy: queries left up to {} ms late", late.as_millis());
            self.doubts.push(words);
        }
        self
    }

    /// The line's cells as they stand in a table.
    fn cells(&self) -> Vec<String> {
        let who = [self.who.clone(), self.circumstance.clone()];
        who.into_iter().chain(self.figures.iter().map(|(_, value)| value.clone())).collect()
    }
}

/// What one scenario showed of all contenders.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Table {
    pub scenario: String,
    /// How it was run.
    pub terms: String,
    /// Held to all promises, not only to those that no busy machine can spoil.
    pub judged: bool,
    pub rows: Vec<Row>,
}

impl Table {
    /// Promises that were not kept, one line each.
    pub fn broken(&self) -> impl Iterator<Item = String> {
        self.remarks("NOT KEPT", |row| &row.broken)
    }

    /// Promises that were not kept and reasons for doubt, one line each.
    fn footnotes(&self) -> impl Iterator<Item = String> {
        self.broken().chain(self.remarks("IN DOUBT", |row| &row.doubts))
    }

    /// What there is to say about each row, under this heading.
    fn remarks(&self, heading: &str, of: fn(&Row) -> &[String]) -> impl Iterator<Item = String> {
        self.rows.iter().flat_map(move |row| {
            let who = format!("{}, {}, {}", self.scenario, row.who, row.circumstance);
            of(row).iter().map(move |words| format!("{heading} ({who}): {words}"))
        })
    }

    /// Lines with columns aligned: `left` and `right` frame a row, `between` stands between its cells.
    fn lines(&self, [left, between, right]: [&str; 3]) -> Vec<String> {
        let figures = self.rows.first().map(|row| row.figures.as_slice()).unwrap_or_default();
        let names = ["contender".to_owned(), "circumstance".to_owned()];
        let head = names.into_iter().chain(figures.iter().map(|(name, _)| name.clone())).collect();
        let rows: Vec<Vec<String>> =
            std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let aligned = |row: &Vec<String>| {
            let cell = |(column, text): (usize, &String)| {
                format!("{text:<width$}", width = width(column).unwrap_or_default())
            };
            let cells: Vec<String> = row.iter().enumerate().map(cell).collect();
            format!("{left}{}{right}", cells.join(between)).trim_end().to_owned()
        };
        rows.iter().map(aligned).collect()
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let lines = self.lines(["", "  ", ""]).join("\n");
        let notes: String = self.footnotes().map(|line| format!("{line}\n")).collect();
        format!("\n== {} ({})\n{lines}\n{notes}", self.scenario, self.terms)
    }

    /// For a page.
    fn markdown(&self) -> String {
        let mut lines = self.lines(["| ", " | ", " |"]);
        let columns = self.rows.first().map_or(2, |row| 2 + row.figures.len());
        lines.insert(1.min(lines.len()), format!("|{}", "---|".repeat(columns)));
        let notes: String = self.footnotes().map(|line| format!("\n{line}\n")).collect();
        format!("### {}\n\n{}\n\n{}\n{notes}\n", self.scenario, self.terms, lines.join("\n"))
    }
}

/// Writes the report as Markdown.
pub fn write_markdown(path: &Path, tables: &[Table]) -> io::Result<()> {
    let text: String = tables.iter().map(Table::markdown).collect();
    std::fs::write(path, text)
}

/// Writes the report so that [`read`] understands it.
pub fn write_json(path: &Path, tables: &[Table]) -> io::Result<()> {
    let text = serde_json::to_string_pretty(tables).map_err(io::Error::other)?;
    std::fs::write(path, text + "\n")
}

/// Reads what [`write_json`] wrote.
pub fn read(path: &Path) -> io::Result<Vec<Table>> {
    let read = std::fs::read_to_string(path)
        .and_then(|text| serde_json::from_str(&text).map_err(io::Error::other));
    read.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}
