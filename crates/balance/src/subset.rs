//! What divides a cluster into subsets, and what a request asks of them (Envoy `LbSubsetConfig`).
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use xxhash_rust::xxh64::Xxh64;

/// A key and a value as text: equal texts stand for equal values.
pub type Entry = (Arc<str>, Arc<str>);

/// The value of one key of a host's `envoy.lb` metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub value: Arc<str>,
    /// The items of a list, each as text.
    pub items: Option<Vec<Arc<str>>>,
}

/// A host's `envoy.lb` metadata.
pub type Labels = BTreeMap<Arc<str>, Label>;

/// What a request asks of its host: made when configuration is, so that a request only compares.
#[derive(Clone, Debug, Default)]
pub struct Criteria {
    /// By key.
    entries: Vec<Entry>,
    /// Variants that override the entries, to be tried in turn (`fallback_list`).
    variants: Option<Vec<Vec<Entry>>>,
    hash: u64,
}

/// The key that holds variants, where a cluster looks for them.
pub const FALLBACK_LIST: &str = "fallback_list";

impl Criteria {
    pub fn new(entries: impl IntoIterator<Item = Entry>, variants: Option<Vec<Vec<Entry>>>) -> Self {
        let entries: Vec<Entry> = entries.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
        let mut hasher = Xxh64::new(0);
        let mut add = |entries: &[Entry]| {
            for text in entries.iter().flat_map(|(key, value)| [key, value]) {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        };
        add(&entries);
        variants.iter().flatten().for_each(|v| add(v));
        let hash = hasher.digest();
        Self { entries, variants, hash }
    }

    /// These entries, with those of `over` in their place where both have a key.
    #[must_use]
    pub fn merged(&self, over: &Self) -> Self {
        let variants = if over.variants.is_some() { &over.variants } else { &self.variants };
        Self::new(self.entries.iter().chain(&over.entries).cloned(), variants.clone())
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The sets of entries to try in turn.
    pub(crate) fn tries(&self, settings: &SubsetSettings) -> Vec<Cow<'_, [Entry]>> {
        match &self.variants {
            Some(variants) if settings.metadata_fallback_list => {
                let base = || self.entries.iter().filter(|(key, _)| **key != *FALLBACK_LIST).cloned();
                let merged = |over: &Vec<Entry>| {
                    let all: BTreeMap<_, _> = base().chain(over.iter().cloned()).collect();
                    Cow::Owned(all.into_iter().collect())
                };
                if variants.is_empty() { vec![Cow::Owned(base().collect())] } else { variants.iter().map(merged).collect() }
            }
            _ => vec![Cow::Borrowed(&self.entries)],
        }
    }
}

impl PartialEq for Criteria {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.entries == other.entries && self.variants == other.variants
    }
}

impl Eq for Criteria {}

impl Hash for Criteria {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Envoy `LbSubsetConfig`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubsetSettings {
    pub fallback: Fallback,
    /// What the hosts of the default subset have; none for every host.
    pub default_subset: Vec<Entry>,
    /// At least one.
    pub selectors: Vec<Selector>,
    pub locality_weight_aware: bool,
    pub scale_locality_weight: bool,
    /// When a fallback has no host that serves, any host will do.
    pub panic_mode_any: bool,
    /// A host whose value is a list belongs to the subset of each item.
    pub list_as_any: bool,
    /// Keys beyond those of the first selector that fits are left out of account.
    pub allow_redundant_keys: bool,
    pub metadata_fallback_list: bool,
}

/// What happens to a request whose subset has no members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    #[default]
    None,
    AnyEndpoint,
    DefaultSubset,
}

/// Keys whose values make up subsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// In order, each once.
    pub keys: Vec<Arc<str>>,
    pub single_host_per_subset: bool,
    /// Instead of the cluster's own.
    pub fallback: Option<SelectorFallback>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorFallback {
    Plain(Fallback),
    /// Again with these keys only, which are fewer than the selector's.
    Keys(Vec<Arc<str>>),
}

impl SubsetSettings {
    /// The selector with exactly these keys.
    pub(crate) fn selector(&self, entries: &[Entry]) -> Option<&Selector> {
        self.selectors.iter().find(|s| s.keys.iter().eq(entries.iter().map(|(key, _)| key)))
    }

    /// The entries that count: with redundant keys allowed, those of the first selector that all of them cover.
    pub(crate) fn counted<'a>(&self, entries: Cow<'a, [Entry]>) -> Cow<'a, [Entry]> {
        if !self.allow_redundant_keys {
            return entries;
        }
        let covered = |s: &&Selector| s.keys.iter().all(|key| entries.iter().any(|(k, _)| k == key));
        match self.selectors.iter().find(covered) {
            Some(selector) => Cow::Owned(only(&entries, &selector.keys)),
            None => entries,
        }
    }

    /// Whether a host with these labels is of the default subset.
    pub(crate) fn is_default(&self, labels: Option<&Labels>) -> bool {
        self.default_subset.iter().all(|(key, wanted)| {
            labels.and_then(|l| l.get(key)).is_some_and(|label| match &label.items {
                Some(items) if self.list_as_any => items.contains(wanted),
                _ => label.value == *wanted,
            })
        })
    }
}

/// The entries with one of these keys.
pub(crate) fn only(entries: &[Entry], keys: &[Arc<str>]) -> Vec<Entry> {
    entries.iter().filter(|(key, _)| keys.contains(key)).cloned().collect()
}
