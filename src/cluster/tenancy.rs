//! Tenancy: which namespaces' names an asker sees. Pure.

use std::collections::{HashMap, HashSet};

/// A namespace's label, folded, without its length.
type Label = Box<[u8]>;

/// The operator's rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenancy {
    /// By the asking pod's namespace.
    pub by_namespace: HashMap<Label, Shown>,
    /// For pods of every other namespace.
    pub others: Shown,
    /// For who is no known pod.
    pub unknown: Shown,
}

/// The namespaces whose names are shown, besides the asker's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    All,
    Only(HashSet<Label>),
}

impl Shown {
    /// Nothing.
    pub fn nothing() -> Self {
        Self::Only(HashSet::new())
    }

    /// These namespaces.
    pub fn only<'a>(labels: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Only(labels.into_iter().map(label).collect())
    }
}

/// A namespace's name as a label.
pub fn label(text: &str) -> Label {
    text.to_ascii_lowercase().into_bytes().into()
}

/// What one asker sees.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    own: Option<&'a [u8]>,
    shown: &'a Shown,
}

impl Sight<'_> {
    /// Everything.
    pub const ALL: Self = Self { own: None, shown: &Shown::All };

    /// Tells whether nothing is hidden.
    pub fn is_all(&self) -> bool {
        *self.shown == Shown::All
    }

    /// Tells whether the names of a namespace (its label, without length) are shown.
    pub fn shows(&self, namespace: &[u8]) -> bool {
        match self.shown {
            Shown::All => true,
            Shown::Only(labels) => self.own == Some(namespace) || labels.contains(namespace),
        }
    }
}

impl Tenancy {
    /// What pods of `namespace` (its label, without length) see; `None` is who is no known pod.
    pub fn sight<'a>(&'a self, namespace: Option<&'a [u8]>) -> Sight<'a> {
        let shown = match namespace {
            None => &self.unknown,
            Some(label) => self.by_namespace.get(label).unwrap_or(&self.others),
        };
        Sight { own: namespace, shown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_sees_its_own_namespace_and_those_of_its_line_or_of_the_others() {
        let tenancy = Tenancy {
            by_namespace: HashMap::from([
                (label("shop"), Shown::only(["payment"])),
                (label("Watch"), Shown::All),
            ]),
            others: Shown::only(["kube-system"]),
            unknown: Shown::nothing(),
        };
        for (asker, seen) in [
            (Some("shop"), "shop payment"),
            (Some("watch"), "shop payment kube-system watch else"),
            (Some("else"), "kube-system else"),
            (None, ""),
        ] {
            let sight = tenancy.sight(asker.map(str::as_bytes));
            let all = ["shop", "payment", "kube-system", "watch", "else"];
            let shown: Vec<_> =
                all.into_iter().filter(|label| sight.shows(label.as_bytes())).collect();
            assert_eq!(shown.join(" "), seen, "{asker:?}");
            assert_eq!(sight.is_all(), asker == Some("watch"));
        }
    }
}
