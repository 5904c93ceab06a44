//! What is to be done: desired and observed in, steps out. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// An asked address with the private one that answers for it; both of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    pub asked: IpAddr,
    pub private: IpAddr,
}

/// How much of the traffic our table takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Queries and responses.
    Everything,
    /// Only what belongs to flows and queries that are ours already: we drain.
    Owed,
    /// Nothing: the table is withdrawn.
    Nothing,
}

/// What shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub pairs: BTreeSet<Pair>,
    pub reach: Reach,
}

/// Our table as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSeen {
    /// Asked addresses in its maps.
    pub asked: BTreeSet<IpAddr>,
    /// It still takes new queries.
    pub takes_queries: bool,
}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub table: Option<TableSeen>,
    /// Addresses of the link that holds our private ones.
    pub addresses: BTreeSet<IpAddr>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    AddAddress(IpAddr),
    /// Makes the whole table with these pairs.
    MakeTable(BTreeSet<Pair>),
    Claim(Pair),
    Release(IpAddr),
    /// Takes no new queries any more.
    StopTaking,
    RemoveTable,
}

/// The steps from what is to what shall be, in their order; none where they agree.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let missing = |pair: &&Pair| !observed.addresses.contains(&pair.private);
    let addresses = desired.pairs.iter().filter(missing).map(|pair| Step::AddAddress(pair.private));
    match (&observed.table, desired.reach) {
        (None, Reach::Everything) => {
            addresses.chain([Step::MakeTable(desired.pairs.clone())]).collect()
        }
        (Some(table), Reach::Everything) => addresses.chain(mend(desired, table)).collect(),
        (Some(table), Reach::Owed) if table.takes_queries => {
            addresses.chain([Step::StopTaking]).collect()
        }
        (_, Reach::Owed) => addresses.collect(),
        (Some(_), Reach::Nothing) => vec![Step::RemoveTable],
        (None, Reach::Nothing) => Vec::new(),
    }
}

/// The steps that bring the table's maps to the desired pairs.
fn mend(desired: &Desired, table: &TableSeen) -> Vec<Step> {
    if !table.takes_queries {
        return vec![Step::RemoveTable, Step::MakeTable(desired.pairs.clone())];
    }
    let asked: BTreeSet<_> = desired.pairs.iter().map(|pair| pair.asked).collect();
    let gone = table.asked.difference(&asked).copied().map(Step::Release);
    let new = desired.pairs.iter().filter(|pair| !table.asked.contains(&pair.asked));
    gone.chain(new.copied().map(Step::Claim)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pair of asked 192.0.2.`n` and private 198.18.0.`n`.
    fn pair(n: u8) -> Pair {
        Pair { asked: [192, 0, 2, n].into(), private: [198, 18, 0, n].into() }
    }

    /// What is seen when all is as desired.
    fn seen(pairs: &[Pair], takes_queries: bool) -> Observed {
        Observed {
            table: Some(TableSeen {
                asked: pairs.iter().map(|pair| pair.asked).collect(),
                takes_queries,
            }),
            addresses: pairs.iter().map(|pair| pair.private).collect(),
        }
    }

    #[test]
    fn steps_lead_from_what_is_to_what_shall_be_and_none_when_they_agree() {
        let pairs = |list: &[Pair]| list.iter().copied().collect::<BTreeSet<_>>();
        let both = [pair(1), pair(2)];
        let cases = [
            (&both[..], Reach::Everything, seen(&both, true), vec![]),
            (
                &both[..1],
                Reach::Everything,
                Observed::default(),
                vec![Step::AddAddress(pair(1).private), Step::MakeTable(pairs(&both[..1]))],
            ),
            (
                &both,
                Reach::Everything,
                seen(&both[..1], true),
                vec![Step::AddAddress(pair(2).private), Step::Claim(pair(2))],
            ),
            (&both[1..], Reach::Everything, seen(&both, true), vec![Step::Release(pair(1).asked)]),
            (&both, Reach::Owed, seen(&both, true), vec![Step::StopTaking]),
            (&both, Reach::Owed, seen(&both, false), vec![]),
            (&both, Reach::Nothing, seen(&both, true), vec![Step::RemoveTable]),
            (&both, Reach::Nothing, Observed::default(), vec![]),
        ];
        for (list, reach, observed, steps) in cases {
            let desired = Desired { pairs: pairs(list), reach };
            assert_eq!(plan(&desired, &observed), steps, "{desired:?} {observed:?}");
        }
        let removed = Observed { addresses: BTreeSet::new(), ..seen(&both[..1], true) };
        let desired = Desired { pairs: pairs(&both[..1]), reach: Reach::Everything };
        assert_eq!(plan(&desired, &removed), [Step::AddAddress(pair(1).private)]);
    }
}
