//! The search list of a pod, as the kubelet writes it: what stands behind the name that a pod asks for
//! first. Pure.
//!
//! Source: kubelet, `dnsPolicy: ClusterFirst`; resolv.conf(5)

use super::zone::joined;
use crate::dns::name::{Name, suffixes};

/// What is common to the search lists of all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The domains that pods have from their node, behind the cluster's.
    pub node: Vec<Name>,
}

impl Search {
    /// The names that follow `qname` (folded wire form) when a pod of `namespace` (its label, with length)
    /// walks down its search list, the first of which is asked; `None` when `qname` is not its first.
    ///
    /// A name of one label is not looked for at the root: it may be the whole name of a Service to come,
    /// and no search list is needed to find that `dev.` exists.
    pub fn rest(&self, qname: &[u8], namespace: &[u8], domains: &[Name]) -> Option<Vec<Name>> {
        let (base, domain) = split(qname, namespace, domains)?;
        let domain = domain.as_wire();
        let cluster = [joined(&[base, b"\x03svc", domain]), joined(&[base, domain])];
        let node = self.node.iter().map(|name| joined(&[base, name.as_wire()]));
        let is_single = base.len() == 1 + usize::from(base[0]);
        let bare = (!is_single).then(|| joined(&[base, b"\0"])).flatten();
        Some(cluster.into_iter().chain(node).flatten().chain(bare).collect())
    }
}

/// Tells whether `qname` is the first that a pod of `namespace` asks for when it looks for something.
/// Allocates nothing.
pub fn is_first(qname: &[u8], namespace: &[u8], domains: &[Name]) -> bool {
    split(qname, namespace, domains).is_some()
}

/// What is looked for, with the cluster domain of the search list.
fn split<'a, 'd>(
    qname: &'a [u8],
    namespace: &[u8],
    domains: &'d [Name],
) -> Option<(&'a [u8], &'d Name)> {
    let is_whole = |len: usize| suffixes(qname).any(|suffix| suffix.len() == len);
    for domain in domains {
        let front = qname.strip_suffix(domain.as_wire());
        let front = front.and_then(|front| front.strip_suffix(b"\x03svc"));
        let Some(base) = front.and_then(|front| front.strip_suffix(namespace)) else { continue };
        // Bytes that end alike may differ in where labels begin.
        if !base.is_empty() && is_whole(qname.len() - base.len()) {
            return Some((base, domain));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(qname: &str) -> Option<String> {
        let name = |text: &str| Name::from_text(text).expect(text);
        let search = Search { node: vec![name("corp.example")] };
        let domains = [name("cluster.example"), name("other.example")];
        let qname = name(qname);
        let rest = search.rest(qname.as_wire(), b"\x04shop", &domains);
        assert_eq!(is_first(qname.as_wire(), b"\x04shop", &domains), rest.is_some());
        Some(rest?.iter().map(Name::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_first_name_of_a_search_list_is_told_with_those_that_follow() {
        assert_eq!(
            rest("www.example.org.SHOP.svc.cluster.example").as_deref(),
            Some(
                "www.example.org.svc.cluster.example. www.example.org.cluster.example. \
                 www.example.org.corp.example. www.example.org."
            )
        );
        assert_eq!(
            rest("db.shop.svc.other.example").as_deref(),
            Some("db.svc.other.example. db.other.example. db.corp.example."),
            "a single label is not asked of the root"
        );
        for other in [
            "shop.svc.cluster.example",
            "a.payment.svc.cluster.example",
            "a.xshop.svc.cluster.example",
            "a.svc.cluster.example",
            "a.shop.pod.cluster.example",
            "www.example.org",
            r"a\004shop.svc.cluster.example",
        ] {
            assert_eq!(rest(other), None, "{other}");
        }
    }

    #[test]
    fn names_that_would_be_too_long_are_left_out() {
        let long = ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(40)].join(".");
        let qname = format!("{long}.shop.svc.other.example");
        let expected = ["svc.other.example.", "other.example.", "corp.example.", ""]
            .map(|end| format!("{long}.{end}"));
        assert_eq!(rest(&qname), Some(expected.join(" ")));
        let search = Search { node: vec![Name::from_text(&"e.".repeat(30)).expect("name")] };
        let qname = Name::from_text(&qname).expect("name");
        let domains = [Name::from_text("other.example").expect("name")];
        let rest = search.rest(qname.as_wire(), b"\x04shop", &domains).expect("the first");
        assert_eq!(rest.len(), 3, "{rest:?}");
    }
}
