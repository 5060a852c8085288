//! Which statistics the admin pages show (Envoy stats.proto `StatsMatcher`).
use lateen_proto::envoy::config::metrics::v3::{self as proto, stats_matcher};

use crate::compile::Invalid;
use crate::compile::parts::{Within, harmless, refuse, strings};
use crate::matcher::StringMatcher;

/// Shows what it accepts. Everything is counted in any case: counting costs less than asking.
#[derive(Clone, Debug, Default)]
pub enum StatsMatcher {
    #[default]
    All,
    None,
    Only(Vec<StringMatcher>),
    Except(Vec<StringMatcher>),
}

impl StatsMatcher {
    pub(crate) fn compile(value: Option<proto::StatsConfig>) -> Result<Self, Invalid> {
        let proto::StatsConfig { stats_tags, use_all_default_tags, stats_matcher, histogram_bucket_settings, allow_default_tag_overrides } =
            value.unwrap_or_default();
        // Tags are extracted where a metric is defined, in the names of Envoy's default extractors and Istio's.
        harmless!(stats_tags, use_all_default_tags, allow_default_tag_overrides);
        refuse!(histogram_bucket_settings);
        let checked = match stats_matcher.and_then(|proto::StatsMatcher { stats_matcher }| stats_matcher) {
            None | Some(stats_matcher::StatsMatcher::RejectAll(false)) => Ok(Self::All),
            Some(stats_matcher::StatsMatcher::RejectAll(true)) => Ok(Self::None),
            Some(stats_matcher::StatsMatcher::InclusionList(list)) => strings(list.patterns, "inclusion_list.patterns").map(Self::Only),
            Some(stats_matcher::StatsMatcher::ExclusionList(list)) => strings(list.patterns, "exclusion_list.patterns").map(Self::Except),
        };
        checked.within("stats_matcher")
    }

    /// Whether a statistic of this Envoy name is shown.
    pub fn shows(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Only(list) => list.iter().any(|m| m.matches(name)),
            Self::Except(list) => !list.iter().any(|m| m.matches(name)),
        }
    }
}
