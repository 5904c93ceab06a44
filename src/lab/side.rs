//! Who answers pods: the cluster DNS alone, or nodens on the node, and how queries reach it there.

use serde::Serialize;

/// Whether nodens runs on the node, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Without,
    /// Queries are brought to it by a table that dies with it.
    With,
    /// It has the cluster DNS address itself, as node-cache does.
    Bind,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Without, Self::With, Self::Bind];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Without => "without",
            Self::With => "with",
            Self::Bind => "bind",
        }
    }

    /// What it is, for people.
    pub fn as_sentence(self) -> &'static str {
        match self {
            Self::Without => "Pods ask the cluster DNS",
            Self::With => "nodens takes over what is asked of the cluster DNS address",
            Self::Bind => "nodens owns the cluster DNS address, as node-cache does",
        }
    }

    /// As a line of a plot is called.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Without => "without nodens",
            Self::With => "with nodens",
            Self::Bind => "nodens, bind mode",
        }
    }

    /// As the daemon's flag names it; `None` where there is no daemon.
    pub(super) fn mode(self) -> Option<&'static str> {
        match self {
            Self::Without => None,
            Self::With => Some("takeover"),
            Self::Bind => Some("bind"),
        }
    }
}
