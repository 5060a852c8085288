//! Hosts that retries go past by what they are labelled with (Envoy `omit_canary_hosts` and `omit_host_metadata`).
use crate::subset::{Entry, Labels};

/// The key whose true marks a canary.
const CANARY: &str = "canary";

/// Whom to go past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Omit {
    /// Canaries.
    pub canaries: bool,
    /// Hosts that have all entries of one of these.
    pub labelled: Vec<Vec<Entry>>,
}

impl Omit {
    pub fn is_empty(&self) -> bool {
        !self.canaries && self.labelled.is_empty()
    }

    /// Whether a host with these labels is one of them.
    pub fn omits(&self, labels: &Labels) -> bool {
        let has = |key: &str, value: &str| {
            let label = labels.get(key);
            label.is_some_and(|l| *l.value == *value || l.items.iter().flatten().any(|item| **item == *value))
        };
        let canary = self.canaries && labels.get(CANARY).is_some_and(|l| *l.value == *"true");
        canary || self.labelled.iter().any(|all| all.iter().all(|(key, value)| has(key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subset::Label;

    fn labels(entries: &[(&str, &str, &[&str])]) -> Labels {
        let label = |value: &str, items: &[&str]| Label {
            value: value.into(),
            items: (!items.is_empty()).then(|| items.iter().map(|item| (*item).into()).collect()),
        };
        entries.iter().map(|(key, value, items)| ((*key).into(), label(value, items))).collect()
    }

    #[test]
    fn canaries_say_so_with_a_boolean() {
        let omit = Omit { canaries: true, ..Omit::default() };
        let said = |value| omit.omits(&labels(&[("canary", value, &[])]));
        assert_eq!([said("true"), said("false"), said("\"true\""), omit.omits(&labels(&[]))], [true, false, false, false]);
        assert!(!Omit::default().omits(&labels(&[("canary", "true", &[])])));
    }

    #[test]
    fn all_entries_of_one_list_must_be_there_and_items_count() {
        let entry = |key: &str, value: &str| (key.into(), value.into());
        let omit = Omit { canaries: false, labelled: vec![vec![entry("v", "1"), entry("w", "2")], vec![entry("x", "3")]] };
        assert!(omit.omits(&labels(&[("v", "1", &[]), ("w", "2", &[])])));
        assert!(!omit.omits(&labels(&[("v", "1", &[])])));
        assert!(omit.omits(&labels(&[("x", "[3,4,]", &["3", "4"])])));
        assert!(!omit.omits(&labels(&[("x", "[4,]", &["4"])])));
    }
}
