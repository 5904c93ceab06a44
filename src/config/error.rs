//! What is wrong with a configuration, where it stands, and how to mend it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of the configuration file, counted from 1; 0 is the file as a whole.
    File { path: Arc<Path>, line: usize },
    /// An environment variable.
    Variable(String),
    /// A command-line flag with its dashes.
    Flag(&'static str),
    /// A file of the system that a default comes from.
    System(&'static str),
}

impl Source {
    /// The line in the file; whatever stands elsewhere comes behind all lines.
    pub fn line(&self) -> usize {
        match self {
            Self::File { line, .. } => *line,
            _ => usize::MAX,
        }
    }

    /// Tells whether both belong to the same layer: the file, the environment, the flags.
    pub fn is_same_layer(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
            Self::System(path) => f.write_str(path),
        }
    }
}

/// A place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub source: Source,
    /// The dotted key (`cache.size`); empty where no key is meant.
    pub key: String,
}

impl fmt::Display for Place {
    /// Writes `/etc/nodens/nodens.toml:7: [cache] size`; the key is left out where the source names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if !matches!(self.source, Source::File { .. }) || self.key.is_empty() {
            return Ok(());
        }
        match self.key.split_once('.') {
            Some(("forward", key)) => write!(f, ": [[forward]] {key}"),
            Some((table, key)) => write!(f, ": [{table}] {key}"),
            None if self.key == "forward" => f.write_str(": [[forward]]"),
            None => write!(f, ": {}", self.key),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{place}: {fault}")]
pub struct ConfigError {
    pub place: Place,
    pub fault: Fault,
}

/// What is wrong, in words that follow a [`Place`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("is not TOML: {0}")]
    Syntax(String),
    #[error("unknown key `{key}`{}", suggest(suggestion))]
    UnknownKey { key: String, suggestion: Option<String> },
    #[error("unknown environment variable{}", suggest(suggestion))]
    UnknownVariable { suggestion: Option<String> },
    #[error(
        "cannot be set from the environment; write [[forward]] in the file, or set NODENS_UPSTREAMS"
    )]
    FileOnly,
    #[error("is {found}, but must be {expected}")]
    WrongKind { found: &'static str, expected: &'static str },
    #[error("\"{text}\" is not {what}; write e.g. {example}")]
    NotA { text: String, what: &'static str, example: &'static str },
    #[error("\"{text}\" is not one of {choices}")]
    NotOneOf { text: String, choices: &'static str },
    #[error("{written} is out of bounds; write {min} to {max}")]
    OutOfBounds { written: String, min: String, max: String },
    #[error("the list is empty; leave the key out for the default, or name at least one {what}")]
    Empty { what: &'static str },
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what} stands here and at {first}; take one of them out")]
    Duplicate { what: String, first: String },
    #[error(
        "{address} stands in `listen` too; what is intercepted is never listened on: take it out there"
    )]
    Listened { address: std::net::IpAddr },
    #[error("zone {zone} has no upstreams; add `upstreams = [\"ADDR\"]` to it")]
    NoUpstreams { zone: String },
    #[error(
        "zone {zone} is known by names only, and whoever asks for them asks this zone: add an upstream's \
         address, or a zone for the names that has one"
    )]
    NamesInARing { zone: String },
    #[error("there is no interface `{name}` with an IPv6 address; `ip -6 address` lists them")]
    NoInterface { name: String },
    #[error("{text} needs a zone index: fe80::1%eth0")]
    NoZoneIndex { text: String },
    #[error("{0}")]
    Loop(#[from] super::loops::Loop),
    #[error(
        "{first}-{last} leaves one of the three port classes {usable} source ports, and each needs {least}; \
         take a wider range"
    )]
    FewPorts { first: u16, last: u16, usable: usize, least: usize },
    #[error("{0}")]
    Record(String),
    #[error("is larger than {other}; turn them round")]
    Crossed { other: &'static str },
    #[error("is smaller than {other}; turn them round")]
    Below { other: &'static str },
    #[error("makes no sense beside {other}; take one of them out")]
    Conflict { other: &'static str },
}

/// The tail of a message about an unknown name.
fn suggest(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}

/// Everything that is wrong with one configuration, in the order in which it was found; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    /// Writes one line per error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
