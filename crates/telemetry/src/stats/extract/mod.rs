//! Which stretches of a name are labels. Envoy has two ways: patterns of dotted words, and regular expressions. All of them
//! look at the whole name, whatever the others take out of it.
mod envoy;
mod istio;

use super::name::Tag;
use super::sample::TagStyle;
use std::ops::Range;

/// What was found in the dotted name of a block.
pub(super) struct Found<'a> {
    dotted: &'a str,
    /// In printing order.
    pub(super) tags: Vec<Tag>,
    /// What labels stand for is no part of the family; these may overlap.
    taken: Vec<Range<usize>>,
}

impl<'a> Found<'a> {
    /// The labels of a name that ends where the metric's own begins.
    pub(super) fn new(dotted: &'a str, style: TagStyle) -> Self {
        let mut found = Self { dotted, tags: Vec::new(), taken: Vec::new() };
        match style {
            TagStyle::Envoy => found.envoys(),
            TagStyle::Istio => found.istios(),
        }
        found
    }

    /// The name without its labels.
    pub(super) fn rest(&self) -> String {
        let stays = |at: &usize| !self.taken.iter().any(|taken| taken.contains(at));
        self.dotted.char_indices().filter(|(at, _)| stays(at)).map(|(_, c)| c).collect()
    }

    /// Makes a label of the text at `value`, and takes `whole` out of the name.
    fn tag(&mut self, key: &'static str, value: Range<usize>, whole: Range<usize>) {
        let value = self.dotted.get(value).unwrap_or_default().to_owned();
        self.tags.push(Tag { key, value });
        self.taken.push(whole);
    }

    /// Makes a label of the text at `value`, which goes with the dot after it.
    fn word(&mut self, key: &'static str, value: Range<usize>) {
        let whole = value.start..value.end + 1;
        self.tag(key, value, whole);
    }
}
