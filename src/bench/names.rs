//! What is asked for: names from the command line, a file in dnsperf's format, or a set of our own.

use std::fmt;

use thiserror::Error;

use crate::dns::Qtype;
use crate::dns::name::Name;
use crate::stub::wanted::Wanted;

/// Bad lines of a file that are told one by one.
const TOLD: usize = 10;
/// Names of the set in which no name comes twice.
const UNIQUE: u32 = 100_000;

/// Sets of names that need no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuiltIn {
    /// Services that every Kubernetes cluster has.
    Cluster,
    /// Names that will stay on the internet.
    Internet,
    /// 100,000 names below example.org that do not exist: a cache has none of them.
    Unique,
}

/// How names become questions.
#[derive(Clone, Debug)]
pub struct Form {
    /// A and AAAA at once.
    pub is_pairs: bool,
    /// Domains for names without a trailing dot; all names are absolute when there are none.
    pub search: Vec<Name>,
    /// With so many dots a name is tried as it is first.
    pub ndots: usize,
}

/// A bad line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// From 1.
    pub line: usize,
    pub what: String,
}

/// Why there is nothing to ask for.
#[derive(Debug, Error)]
pub enum NamesError {
    #[error("{}", told(.0))]
    Lines(Vec<BadLine>),
    #[error("there is no name in it")]
    Empty,
    #[error("{name:?} is no domain name: {reason}")]
    Name { name: String, reason: String },
}

/// Bad lines, the first ones one by one.
fn told(bad: &[BadLine]) -> String {
    let mut lines: Vec<String> = bad.iter().take(TOLD).map(ToString::to_string).collect();
    if bad.len() > TOLD {
        lines.push(format!("and {} more bad lines", bad.len() - TOLD));
    }
    lines.join("\n")
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl Form {
    /// What a name, with the type that a file names, is asked as.
    ///
    /// # Errors
    /// When it is no domain name.
    pub fn wanted(&self, name: &str, qtype: Option<Qtype>) -> Result<Wanted, NamesError> {
        let qtype = qtype.unwrap_or(Qtype::A);
        let qtypes: &[Qtype] = match self.is_pairs && [Qtype::A, Qtype::AAAA].contains(&qtype) {
            true => &[Qtype::A, Qtype::AAAA],
            false => &[qtype],
        };
        let bad = |reason: crate::dns::name::NameError| NamesError::Name {
            name: name.to_owned(),
            reason: reason.to_string(),
        };
        let own = Name::from_text(name).map_err(bad)?;
        Ok(Wanted::new(&self.candidates(name, own), qtypes))
    }

    /// The names in the order in which they are tried.
    fn candidates(&self, text: &str, own: Name) -> Vec<Name> {
        if text.ends_with('.') || self.search.is_empty() {
            return vec![own];
        }
        let below = |domain: &Name| {
            let labels = own.as_wire().len() - 1;
            // One that becomes too long is left out, as a stub resolver does.
            Name::from_wire(&[own.as_wire().get(..labels)?, domain.as_wire()].concat())
        };
        let mut names: Vec<Name> = self.search.iter().filter_map(below).collect();
        let dots = text.matches('.').count();
        names.insert(if dots >= self.ndots { 0 } else { names.len() }, own);
        names
    }

    /// Reads a file in dnsperf's format: a name and, behind a blank, a type on each line; comments begin
    /// with `;` or `#`. The type may be left out.
    ///
    /// # Errors
    /// All bad lines, with their numbers.
    pub fn read(&self, text: &str) -> Result<Vec<Wanted>, NamesError> {
        let (mut wanted, mut bad) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            match self.read_line(line) {
                Ok(one) => wanted.push(one),
                Err(what) => bad.push(BadLine { line: index + 1, what }),
            }
        }
        match (bad.is_empty(), wanted.is_empty()) {
            (false, _) => Err(NamesError::Lines(bad)),
            (true, true) => Err(NamesError::Empty),
            (true, false) => Ok(wanted),
        }
    }

    /// Reads one line; says what is wrong with it.
    fn read_line(&self, line: &str) -> Result<Wanted, String> {
        let mut words = line.split_whitespace();
        let (name, qtype) = (words.next().unwrap_or_default(), words.next());
        if let Some(more) = words.next() {
            return Err(format!("{more:?} stands behind the type; write a name and a type"));
        }
        let qtype = qtype.map(|word| {
            word.parse::<Qtype>().map_err(|_| format!("{word:?} is no record type, as A or TYPE65"))
        });
        self.wanted(name, qtype.transpose()?).map_err(|error| error.to_string())
    }

    /// A set of our own.
    ///
    /// # Errors
    /// When a name with the search list is none.
    pub fn set(&self, set: BuiltIn) -> Result<Vec<Wanted>, NamesError> {
        set.names().iter().map(|name| self.wanted(name, None)).collect()
    }
}

impl BuiltIn {
    /// The names.
    fn names(self) -> Vec<String> {
        match self {
            Self::Cluster => ["kubernetes.default", "kube-dns.kube-system"]
                .map(|name| format!("{name}.svc.cluster.local."))
                .into(),
            Self::Internet => {
                let roots = ('a'..='m').map(|letter| format!("{letter}.root-servers.net."));
                let others = ["example.org.", "example.com.", "example.net.", "iana.org."];
                roots.chain(others.map(str::to_owned)).collect()
            }
            Self::Unique => {
                (0..UNIQUE).map(|number| format!("n{number}.bench.example.org.")).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs without a search list.
    fn pairs() -> Form {
        Form { is_pairs: true, search: Vec::new(), ndots: 1 }
    }

    #[test]
    fn a_file_in_dnsperfs_format_is_read_and_bad_lines_are_told_with_their_numbers() {
        let good = "; a comment\n# another\n\nexample.org A\nexample.org\nexample.org. MX\n";
        let wanted = pairs().read(good).expect("well-formed");
        assert_eq!(wanted.iter().map(Wanted::questions).collect::<Vec<_>>(), [2, 2, 1]);
        let bad = "example.org A\nexample..org A\nexample.org NOTYPE\nexample.org A IN\n";
        let error = pairs().read(bad).expect_err("three bad lines").to_string();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 3, "{error}");
        assert!(lines[0].starts_with("line 2: \"example..org\" is no domain name"), "{error}");
        assert!(lines[1].starts_with("line 3: \"NOTYPE\" is no record type"), "{error}");
        assert!(lines[2].starts_with("line 4: \"IN\" stands behind the type"), "{error}");
        let many = "a..b\n".repeat(30);
        let error = pairs().read(&many).expect_err("bad").to_string();
        assert!(error.ends_with("and 20 more bad lines"), "{error}");
        assert!(matches!(pairs().read("; nothing\n"), Err(NamesError::Empty)));
    }

    #[test]
    fn a_search_list_is_tried_before_a_name_with_few_dots_and_after_one_with_many() {
        let search = ["default.svc.cluster.local", "svc.cluster.local"]
            .map(|name| Name::from_text(name).expect("a name"));
        let form = Form { search: search.into(), ndots: 5, ..pairs() };
        let tried = |text: &str| -> Vec<String> {
            let own = Name::from_text(text).expect("a name");
            form.candidates(text, own).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            tried("web"),
            ["web.default.svc.cluster.local.", "web.svc.cluster.local.", "web."]
        );
        assert_eq!(tried("a.b.c.d.e.f")[0], "a.b.c.d.e.f.");
        assert_eq!(tried("web."), ["web."]);
    }

    #[test]
    fn the_sets_are_well_formed() {
        for set in [BuiltIn::Cluster, BuiltIn::Internet, BuiltIn::Unique] {
            assert!(!pairs().set(set).expect("names").is_empty());
        }
    }
}
