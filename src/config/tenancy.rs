//! `cluster.tenancy`: who sees which namespaces' names.

use std::fmt;
use std::str::FromStr;

use super::endpoints::is_label;
use super::error::Fault;

/// One line: whose view it is, and what that shows besides their own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenancyRule {
    pub of: Tenant,
    /// `None` shows every namespace.
    pub sees: Option<Vec<String>>,
}

/// Whose view a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// The pods of a namespace.
    Namespace(String),
    /// The pods of every namespace without a line of its own.
    Others,
    /// Who is no known pod.
    Unknown,
}

impl FromStr for TenancyRule {
    type Err = Fault;

    /// Reads `FROM: NAMESPACE NAMESPACE…` or `FROM: *`; nothing behind the colon shows nothing.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let not_a = || Fault::NotA {
            text: text.to_owned(),
            what: "a line about what a namespace's pods see",
            example: "\"shop: payment kube-system\", \"*: kube-system\" or \"?: *\"",
        };
        let (of, seen) = text.split_once(':').ok_or_else(not_a)?;
        let of = match of.trim() {
            "*" => Tenant::Others,
            "?" => Tenant::Unknown,
            label if is_label(label) => Tenant::Namespace(label.to_owned()),
            _ => return Err(not_a()),
        };
        let seen: Vec<&str> = seen.split_whitespace().collect();
        let sees = match seen.as_slice() {
            ["*"] => None,
            labels if labels.iter().all(|label| is_label(label)) => {
                Some(labels.iter().map(|label| (*label).to_owned()).collect())
            }
            _ => return Err(not_a()),
        };
        Ok(Self { of, sees })
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(label) => f.write_str(label),
            Self::Others => f.write_str("*"),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for TenancyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sees = self.sees.as_ref().map_or_else(|| "*".to_owned(), |seen| seen.join(" "));
        write!(f, "{}:{}{sees}", self.of, if sees.is_empty() { "" } else { " " })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_written_alike_and_others_are_refused() {
        for text in ["shop: payment kube-system", "monitoring: *", "*: kube-system", "?: *", "a:"] {
            let rule: TenancyRule = text.parse().expect(text);
            assert_eq!(rule.to_string(), text);
        }
        for text in ["", "shop", ": a", "Shop: a", "a b: c", "a: *  b", "a: B", "a: b,c", "a-*: b"]
        {
            assert!(text.parse::<TenancyRule>().is_err(), "{text}");
        }
    }
}
