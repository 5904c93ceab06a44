//! The configuration as written: values by key, each with the place where it stands.
//!
//! A layer is read from the file, the environment or the flags; a later layer replaces single keys
//! of an earlier one. Names are checked against [`super::keys`] here, values in `build`.
//! The reading is ours rather than serde's, so that one look names every error with its line.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Fault, Place, Source};
use super::keys::{self, Kind};

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub value: Value,
    pub place: Place,
}

/// What a TOML value, a variable or a flag holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Switch(bool),
    List(Vec<Written>),
    Table(Table),
    /// A date or time: no key takes one.
    Date,
}

impl Value {
    /// The kind in words, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Switch(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Date => "a date",
        }
    }
}

/// Values by key. The topmost table has dotted names; `forward` holds a list of tables.
pub type Table = BTreeMap<String, Written>;

/// One layer, or several merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec(pub Table);

/// Values given on the command line, as written there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub listen: Vec<String>,
    pub upstreams: Vec<String>,
    pub intercept: Option<String>,
    pub admin: Option<String>,
    pub log_level: Option<String>,
}

impl Spec {
    /// Reads the text of the file at `path`; what is wrong is added to `errors`, the rest is kept.
    pub fn from_toml(path: &Path, text: &str, errors: &mut Vec<ConfigError>) -> Self {
        let (table, broken) = DeTable::parse_recoverable(text);
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let mut reader =
            FileReader { path: path.into(), line_ends: breaks.map(|(at, _)| at).collect(), errors };
        for error in broken {
            let span = error.span().unwrap_or_default();
            reader.fail(span, "", Fault::Syntax(error.message().replace('\n', ", ")));
        }
        let mut out = Table::new();
        reader.read_table(table.get_ref(), "", &mut out);
        Self(out)
    }

    /// Reads the variables that begin with `NODENS_`, but for `NODENS_CONFIG` and those that
    /// Kubernetes makes for a Service of our name.
    pub fn from_environment<'a>(
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
        errors: &mut Vec<ConfigError>,
    ) -> Self {
        let mut out = Table::new();
        for (variable, text) in variables {
            let Some(rest) = variable.strip_prefix("NODENS_") else { continue };
            if rest == "CONFIG" || is_service_link(rest) {
                continue;
            }
            let name = rest.to_ascii_lowercase().replace("__", ".");
            let source = Source::Variable(variable.to_owned());
            let place = Place { source, key: name.clone() };
            match keys::find(&name).map(|key| key.kind) {
                Some(Kind::Tables) => errors.push(ConfigError { place, fault: Fault::FileOnly }),
                Some(_) if name.starts_with("forward.") => {
                    errors.push(ConfigError { place, fault: Fault::FileOnly });
                }
                Some(kind) => {
                    let value = value_from_text(text, kind, &place);
                    out.insert(name, Written { value, place });
                }
                None => {
                    let suggestion = keys::suggest(&name).map(keys::variable);
                    errors
                        .push(ConfigError { place, fault: Fault::UnknownVariable { suggestion } });
                }
            }
        }
        Self(out)
    }

    /// Turns flags into a layer; a flag that was not given leaves its key alone.
    pub fn from_flags(flags: &Flags) -> Self {
        let mut out = Table::new();
        let mut put = |key: &str, flag: &'static str, texts: &[String], kind: Kind| {
            let Some(first) = texts.first() else { return };
            let place = Place { source: Source::Flag(flag), key: key.to_owned() };
            let value = match kind {
                Kind::List => list_of(texts.iter().map(String::as_str), &place),
                _ => Value::Text(first.clone()),
            };
            out.insert(key.to_owned(), Written { value, place });
        };
        put("listen", "--listen", &flags.listen, Kind::List);
        put("upstreams", "--upstream", &flags.upstreams, Kind::List);
        put("intercept.mode", "--intercept", flags.intercept.as_slice(), Kind::Text);
        put("admin.listen", "--admin", flags.admin.as_slice(), Kind::List);
        put("log.level", "--log-level", flags.log_level.as_slice(), Kind::Text);
        Self(out)
    }

    /// Puts a later layer on top: a key that it has replaces ours whole.
    pub fn overlay(&mut self, later: Self) {
        self.0.extend(later.0);
    }
}

/// Tells whether Kubernetes made the variable `NODENS_{rest}` for a Service named `nodens…`.
///
/// Source: Kubernetes "Discovering services": `{NAME}_SERVICE_HOST`, `{NAME}_PORT_53_UDP_ADDR` …
fn is_service_link(rest: &str) -> bool {
    let linked = |protocol: &str| {
        rest.split_once(protocol).is_some_and(|(before, after)| {
            before.contains("PORT_") && matches!(after, "" | "_PROTO" | "_PORT" | "_ADDR")
        })
    };
    rest == "PORT"
        || rest.ends_with("_PORT")
        || rest.ends_with("SERVICE_HOST")
        || rest.ends_with("SERVICE_PORT")
        || rest.contains("SERVICE_PORT_")
        || ["_UDP", "_TCP", "_SCTP"].iter().any(|protocol| linked(protocol))
}

/// A list of texts that all stand at one place.
fn list_of<'a>(texts: impl Iterator<Item = &'a str>, place: &Place) -> Value {
    let item = |text: &str| Written { value: Value::Text(text.to_owned()), place: place.clone() };
    Value::List(texts.map(item).collect())
}

/// Reads a variable's text as what its key wants; a text that is no such thing stays a text.
fn value_from_text(text: &str, kind: Kind, place: &Place) -> Value {
    let as_text = || Value::Text(text.to_owned());
    let integer = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match kind {
        Kind::Text | Kind::Tables => as_text(),
        Kind::Integer => integer(text).map_or_else(|_| as_text(), Value::Integer),
        Kind::Float => text.parse().map_or_else(|_| as_text(), Value::Float),
        Kind::Switch => text.parse().map_or_else(|_| as_text(), Value::Switch),
        Kind::List => {
            list_of(text.split(',').map(str::trim).filter(|item| !item.is_empty()), place)
        }
    }
}

/// Reads one file; knows which byte stands on which line.
struct FileReader<'a> {
    path: Arc<Path>,
    /// Where the line feeds are.
    line_ends: Vec<usize>,
    errors: &'a mut Vec<ConfigError>,
}

impl FileReader<'_> {
    /// The place of `key`, whose first byte is `span`'s.
    fn place(&self, span: Range<usize>, key: &str) -> Place {
        let line = 1 + self.line_ends.partition_point(|end| *end < span.start);
        let source = Source::File { path: Arc::clone(&self.path), line };
        Place { source, key: key.to_owned() }
    }

    /// Notes an error.
    fn fail(&mut self, span: Range<usize>, key: &str, fault: Fault) {
        let place = self.place(span, key);
        self.errors.push(ConfigError { place, fault });
    }

    /// Reads the keys of the table `prefix` (with its final dot; empty for the topmost) into `out`.
    fn read_table(&mut self, table: &DeTable<'_>, prefix: &str, out: &mut Table) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            match (keys::find(&name), value.get_ref()) {
                (Some(known), _) if known.kind == Kind::Tables => {
                    if let Some(written) = self.read_tables(value, &name) {
                        out.insert(name, written);
                    }
                }
                (Some(_), _) => {
                    let written = self.read_value(value, &name);
                    out.insert(name, written);
                }
                (None, DeValue::Table(inner)) if keys::is_table(&name) => {
                    self.read_table(inner, &format!("{name}."), out);
                }
                (None, other) if keys::is_table(&name) => {
                    let fault = Fault::WrongKind { found: kind_of(other), expected: "a table" };
                    self.fail(key.span(), &name, fault);
                }
                _ => {
                    let suggestion = keys::suggest(&name).map(in_toml);
                    let key_name = in_toml(&name);
                    self.fail(key.span(), "", Fault::UnknownKey { key: key_name, suggestion });
                }
            }
        }
    }

    /// Reads `[[name]]`: a list of tables, each with the keys of `name` without the prefix.
    fn read_tables(&mut self, value: &Spanned<DeValue<'_>>, name: &str) -> Option<Written> {
        let DeValue::Array(array) = value.get_ref() else {
            let found = kind_of(value.get_ref());
            let fault = Fault::WrongKind { found, expected: "a list of tables, each [[forward]]" };
            self.fail(value.span(), name, fault);
            return None;
        };
        let prefix = format!("{name}.");
        let mut list = Vec::new();
        for item in array {
            let DeValue::Table(inner) = item.get_ref() else {
                let found = kind_of(item.get_ref());
                self.fail(item.span(), name, Fault::WrongKind { found, expected: "a table" });
                continue;
            };
            let mut table = Table::new();
            self.read_table(inner, &prefix, &mut table);
            let place = self.place(item.span(), name);
            list.push(Written { value: Value::Table(table), place });
        }
        Some(Written { value: Value::List(list), place: self.place(value.span(), name) })
    }

    /// Reads any value; tables inside of it keep their names as written.
    fn read_value(&self, value: &Spanned<DeValue<'_>>, name: &str) -> Written {
        let place = self.place(value.span(), name);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Value::Text(number.as_str().to_owned()), Value::Integer),
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .map_or_else(|_| Value::Text(number.as_str().to_owned()), Value::Float),
            DeValue::Boolean(switch) => Value::Switch(*switch),
            DeValue::Datetime(_) => Value::Date,
            DeValue::Array(items) => {
                Value::List(items.iter().map(|item| self.read_value(item, name)).collect())
            }
            DeValue::Table(table) => Value::Table(
                table
                    .iter()
                    .map(|(key, value)| (key.to_string(), self.read_value(value, name)))
                    .collect(),
            ),
        };
        Written { value, place }
    }
}

/// A TOML value's kind in words.
fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A dotted name as people write it in the file: `[cache] size`.
fn in_toml(name: &str) -> String {
    match name.split_once('.') {
        Some(("forward", key)) => format!("[[forward]] {key}"),
        Some((table, key)) => format!("[{table}] {key}"),
        None if keys::is_table(name) && keys::find(name).is_none() => format!("[{name}]"),
        None => name.to_owned(),
    }
}
