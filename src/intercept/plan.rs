//! What is to be done: desired and observed in, steps out. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

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
    /// Endpoints of the net below; with none it is left as it is.
    pub below: Vec<SocketAddr>,
}

impl Desired {
    /// Everything of these pairs.
    pub fn new(pairs: BTreeSet<Pair>) -> Self {
        Self { pairs, reach: Reach::Everything, below: Vec::new() }
    }
}

/// Our table as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSeen {
    /// Whose queries it takes.
    pub taken: BTreeSet<Pair>,
    /// Whose responses it gives back; more than are taken, once some were released.
    pub answered: BTreeSet<Pair>,
    /// It still takes new queries.
    pub takes_queries: bool,
}

/// What is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub table: Option<TableSeen>,
    /// Private addresses that lead to us.
    pub addresses: BTreeSet<IpAddr>,
    /// The net below is there, whoever made it.
    pub has_below: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    AddAddress(IpAddr),
    /// Makes the whole table with these pairs.
    MakeTable(BTreeSet<Pair>),
    Claim(Pair),
    /// Takes the asked address' new queries no more; what is under way goes on.
    Release(IpAddr),
    /// Ends what is under way at a private address: it serves another asked one.
    Forget(IpAddr),
    /// Takes no new queries any more.
    StopTaking,
    RemoveTable,
    /// Makes the net below with these endpoints.
    MakeBelow(Vec<SocketAddr>),
}

/// The steps from what is to what shall be, in their order; none where they agree.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Step> {
    let missing = |pair: &&Pair| !observed.addresses.contains(&pair.private);
    let addresses = desired.pairs.iter().filter(missing).map(|pair| Step::AddAddress(pair.private));
    // Only where it is missing: two instances that know different endpoints must not fight over it.
    // While nothing is taken, 169.254.20.10 lives by it alone.
    let below = desired.reach != Reach::Owed && !observed.has_below && !desired.below.is_empty();
    let below = below.then(|| Step::MakeBelow(desired.below.clone()));
    if desired.reach == Reach::Nothing {
        let removed = observed.table.as_ref().map(|_| Step::RemoveTable);
        return removed.into_iter().chain(below).collect();
    }
    let addresses = addresses.chain(below);
    match (&observed.table, desired.reach) {
        (None, Reach::Everything) => {
            addresses.chain([Step::MakeTable(desired.pairs.clone())]).collect()
        }
        (Some(table), Reach::Everything) => addresses.chain(mend(desired, table)).collect(),
        (Some(table), Reach::Owed) if table.takes_queries => {
            addresses.chain([Step::StopTaking]).collect()
        }
        (_, Reach::Owed | Reach::Nothing) => addresses.collect(),
    }
}

/// The steps that bring the table's maps to the desired pairs.
fn mend(desired: &Desired, table: &TableSeen) -> Vec<Step> {
    if !table.takes_queries {
        return vec![Step::RemoveTable, Step::MakeTable(desired.pairs.clone())];
    }
    let gone = table.taken.difference(&desired.pairs).map(|pair| Step::Release(pair.asked));
    let new = || desired.pairs.difference(&table.taken);
    let reused = table
        .answered
        .iter()
        .filter(|old| new().any(|pair| pair.private == old.private && pair.asked != old.asked));
    let forgotten = reused.map(|old| Step::Forget(old.private));
    gone.chain(forgotten).chain(new().copied().map(Step::Claim)).collect()
}

/// What is of the `bind` mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindObserved {
    /// Addresses that the table names; none without a table.
    pub recorded: Option<BTreeSet<IpAddr>>,
    /// Asked addresses that lead to us.
    pub addresses: BTreeSet<IpAddr>,
}

/// One change of the `bind` mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindStep {
    MakeTable,
    /// Puts an address into the table.
    Record(IpAddr),
    AddAddress(IpAddr),
}

/// The steps to `asked` from what is: rules first, so that no packet is tracked.
pub fn plan_bind(asked: &BTreeSet<IpAddr>, observed: &BindObserved) -> Vec<BindStep> {
    let make = (observed.recorded.is_none() && !asked.is_empty()).then_some(BindStep::MakeTable);
    let recorded = observed.recorded.clone().unwrap_or_default();
    let record = asked.difference(&recorded).copied().map(BindStep::Record);
    let add = asked.difference(&observed.addresses).copied().map(BindStep::AddAddress);
    make.into_iter().chain(record).chain(add).collect()
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
                taken: pairs.iter().copied().collect(),
                answered: pairs.iter().copied().collect(),
                takes_queries,
            }),
            addresses: pairs.iter().map(|pair| pair.private).collect(),
            has_below: true,
        }
    }

    #[test]
    fn steps_lead_from_what_is_to_what_shall_be_and_none_when_they_agree() {
        let pairs = |list: &[Pair]| list.iter().copied().collect::<BTreeSet<_>>();
        let both = [pair(1), pair(2)];
        let moved = Pair { asked: pair(1).asked, private: pair(9).private };
        let reused = Pair { asked: pair(9).asked, private: pair(1).private };
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
            (
                &[moved],
                Reach::Everything,
                seen(&both[..1], true),
                vec![
                    Step::AddAddress(moved.private),
                    Step::Release(moved.asked),
                    Step::Claim(moved),
                ],
            ),
            (
                &[reused],
                Reach::Everything,
                seen(&both[..1], true),
                vec![
                    Step::Release(pair(1).asked),
                    Step::Forget(reused.private),
                    Step::Claim(reused),
                ],
            ),
            (&both, Reach::Owed, seen(&both, true), vec![Step::StopTaking]),
            (&both, Reach::Owed, seen(&both, false), vec![]),
            (&both, Reach::Nothing, seen(&both, true), vec![Step::RemoveTable]),
            (&both, Reach::Nothing, Observed::default(), vec![]),
        ];
        for (list, reach, observed, steps) in cases {
            let desired = Desired { reach, ..Desired::new(pairs(list)) };
            assert_eq!(plan(&desired, &observed), steps, "{desired:?} {observed:?}");
        }
        let removed = Observed { addresses: BTreeSet::new(), ..seen(&both[..1], true) };
        let mut desired = Desired::new(pairs(&both[..1]));
        assert_eq!(plan(&desired, &removed), [Step::AddAddress(pair(1).private)]);
        let flushed = Observed { has_below: false, ..seen(&both[..1], true) };
        assert_eq!(plan(&desired, &flushed), [], "nobody told us any endpoints");
        desired.below = vec![SocketAddr::new(pair(7).asked, 53)];
        assert_eq!(plan(&desired, &flushed), [Step::MakeBelow(desired.below.clone())]);
        desired.reach = Reach::Owed;
        assert_eq!(plan(&desired, &flushed), [Step::StopTaking], "who leaves mends nothing");
    }

    #[test]
    fn a_withdrawn_table_has_its_net_below_mended() {
        let below = vec![SocketAddr::new(pair(7).asked, 53)];
        let made = || Step::MakeBelow(below.clone());
        let pairs = BTreeSet::from([pair(1)]);
        let desired = Desired { pairs, reach: Reach::Nothing, below: below.clone() };
        assert_eq!(plan(&desired, &Observed::default()), [made()]);
        let flushed = Observed { has_below: false, ..seen(&[pair(1)], true) };
        assert_eq!(plan(&desired, &flushed), [Step::RemoveTable, made()]);
        let whole = Observed { has_below: true, ..Observed::default() };
        assert_eq!(plan(&desired, &whole), []);
    }

    #[test]
    fn binding_makes_rules_before_addresses_and_nothing_twice() {
        let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
        let asked = BTreeSet::from([ip(1), ip(2)]);
        let nothing = BindObserved::default();
        let (record, add) = (BindStep::Record, BindStep::AddAddress);
        assert_eq!(
            plan_bind(&asked, &nothing),
            [BindStep::MakeTable, record(ip(1)), record(ip(2)), add(ip(1)), add(ip(2))]
        );
        assert_eq!(plan_bind(&BTreeSet::new(), &nothing), []);
        let whole = BindObserved { recorded: Some(asked.clone()), addresses: asked.clone() };
        assert_eq!(plan_bind(&asked, &whole), []);
        let other = BindObserved { recorded: Some(BTreeSet::from([ip(2), ip(3)])), ..whole };
        assert_eq!(plan_bind(&asked, &other), [record(ip(1))], "another instance's stays");
        let removed =
            BindObserved { addresses: BTreeSet::from([ip(1)]), recorded: Some(asked.clone()) };
        assert_eq!(plan_bind(&asked, &removed), [add(ip(2))]);
    }
}
