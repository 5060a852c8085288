//! What to start and what to end so that the pods become what the Deployments want. Pure.
use std::collections::BTreeMap;

/// A Deployment, or a Pod that stands alone (then one replica).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub replicas: u32,
    /// Changes with the template: pods of another revision are replaced.
    pub revision: u32,
}

/// A running pod, in the order of creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present<K> {
    pub key: K,
    pub owner: K,
    pub revision: u32,
    pub ready: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps<K> {
    /// Owner and how many pods to start.
    pub start: Vec<(K, u32)>,
    pub end: Vec<K>,
}

/// Compares. New pods start at once; those of an old revision serve until as many new ones are ready.
pub fn steps<K: Clone + Ord>(wanted: &BTreeMap<K, Wanted>, present: &[Present<K>]) -> Steps<K> {
    let mut steps = Steps { start: Vec::new(), end: Vec::new() };
    for pod in present.iter().filter(|p| !wanted.contains_key(&p.owner)) {
        steps.end.push(pod.key.clone());
    }
    for (owner, want) in wanted {
        let (current, old): (Vec<_>, Vec<_>) =
            present.iter().filter(|p| p.owner == *owner).partition(|p: &&Present<K>| p.revision == want.revision);
        let replicas = want.replicas as usize;
        if current.len() < replicas {
            steps.start.push((owner.clone(), (replicas - current.len()) as u32));
        }
        // Those not ready go first, then the youngest.
        let mut surplus: Vec<_> = current.iter().rev().collect();
        surplus.sort_by_key(|p| p.ready);
        steps.end.extend(surplus.iter().take(current.len().saturating_sub(replicas)).map(|p| p.key.clone()));
        let ready = current.iter().filter(|p| p.ready).count();
        // Of the old ones those that serve are kept; one that never came up must not stay in the place of one that does.
        let keep = replicas.saturating_sub(ready);
        let (serving, useless): (Vec<&Present<K>>, Vec<&Present<K>>) = old.iter().copied().rev().partition(|p| p.ready);
        let spared = keep.saturating_sub(serving.len());
        steps.end.extend(serving.iter().skip(keep).chain(useless.iter().skip(spared)).map(|p| p.key.clone()));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(key: &'static str, revision: u32, ready: bool) -> Present<&'static str> {
        Present { key, owner: "d", revision, ready }
    }

    fn want(replicas: u32, revision: u32) -> BTreeMap<&'static str, Wanted> {
        [("d", Wanted { replicas, revision })].into()
    }

    #[test]
    fn replicas_are_filled_and_trimmed() {
        assert_eq!(steps(&want(3, 1), &[pod("a", 1, true)]), Steps { start: vec![("d", 2)], end: vec![] });
        assert_eq!(steps(&want(1, 1), &[pod("a", 1, true), pod("b", 1, true), pod("c", 1, false)]).end, ["c", "b"]);
        assert_eq!(steps(&want(0, 1), &[pod("a", 1, true)]).end, ["a"]);
        assert_eq!(steps(&BTreeMap::new(), &[pod("a", 1, true)]).end, ["a"]);
    }

    #[test]
    fn a_broken_revision_does_not_take_the_place_of_one_that_serves() {
        let pods = [pod("good1", 1, true), pod("good2", 1, true), pod("broken1", 2, false), pod("broken2", 2, false)];
        let after = steps(&want(1, 3), &pods);
        assert_eq!((after.start, after.end), (vec![("d", 1)], vec!["good1", "broken2", "broken1"]));
        assert_eq!(steps(&want(2, 3), &pods).end, ["broken2", "broken1"]);
        assert_eq!(steps(&want(3, 3), &pods).end, ["broken1"]);
    }

    #[test]
    fn an_old_revision_serves_until_the_new_one_is_ready() {
        let old = [pod("o1", 1, true), pod("o2", 1, true)];
        assert_eq!(steps(&want(2, 2), &old), Steps { start: vec![("d", 2)], end: vec![] });
        let one_ready = [&old[..], &[pod("n1", 2, true), pod("n2", 2, false)]].concat();
        assert_eq!(steps(&want(2, 2), &one_ready), Steps { start: vec![], end: vec!["o1"] });
        let all_ready = [&old[..], &[pod("n1", 2, true), pod("n2", 2, true)]].concat();
        assert_eq!(steps(&want(2, 2), &all_ready).end, ["o2", "o1"]);
    }
}
