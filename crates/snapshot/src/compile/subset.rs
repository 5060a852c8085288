//! Subsets of a cluster: what divides it, and what routes and endpoints say in `envoy.lb` metadata.
use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_balance::Criteria;
use lateen_balance::subset::{Fallback, Labels, Selector, SelectorFallback, SubsetSettings};
use lateen_proto::envoy::config::cluster::v3::cluster::{self, lb_subset_config};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::load_balancing_policies::subset::v3 as typed;
use lb_subset_config::{LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector, lb_subset_selector};
use lb_subset_selector::LbSubsetSelectorFallbackPolicy;

use super::common::struct_json;
use super::invalid::{Invalid, Result, Within};
use crate::subset;

/// The `envoy.lb` part of a route's `metadata_match`.
pub(crate) fn criteria(metadata: Option<core::Metadata>) -> Option<Arc<Criteria>> {
    let fields = struct_json(metadata?.filter_metadata.get(subset::NAMESPACE)?);
    fields.as_object().map(|fields| Arc::new(subset::criteria(fields)))
}

/// What is asked of the hosts of one of several clusters: the route's own part, with the entry's values over it.
pub(crate) fn merged(all: Option<&Arc<Criteria>>, one: Option<Arc<Criteria>>) -> Option<Arc<Criteria>> {
    match (all, one) {
        (Some(all), Some(one)) => Some(Arc::new(all.merged(&one))),
        (all, one) => one.or_else(|| all.cloned()),
    }
}

/// The `envoy.lb` part of an endpoint's metadata.
pub(crate) fn labels(metadata: Option<&core::Metadata>) -> Option<Arc<Labels>> {
    let fields = struct_json(metadata?.filter_metadata.get(subset::NAMESPACE)?);
    fields.as_object().map(|fields| Arc::new(subset::labels(fields)))
}

/// `None` when nothing divides the cluster: without selectors the rest has no effect, as in Envoy.
pub(crate) fn settings(value: cluster::LbSubsetConfig) -> Result<Option<SubsetSettings>> {
    let cluster::LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    } = value;
    let fallback = match LbSubsetFallbackPolicy::try_from(fallback_policy) {
        Ok(LbSubsetFallbackPolicy::NoFallback) => Fallback::None,
        Ok(LbSubsetFallbackPolicy::AnyEndpoint) => Fallback::AnyEndpoint,
        Ok(LbSubsetFallbackPolicy::DefaultSubset) => Fallback::DefaultSubset,
        Err(_) => return Err(Invalid::field("fallback_policy", format!("{fallback_policy} is not known"))),
    };
    let metadata_fallback_list = match LbSubsetMetadataFallbackPolicy::try_from(metadata_fallback_policy) {
        Ok(LbSubsetMetadataFallbackPolicy::MetadataNoFallback) => false,
        Ok(LbSubsetMetadataFallbackPolicy::FallbackList) => true,
        Err(_) => return Err(Invalid::field("metadata_fallback_policy", format!("{metadata_fallback_policy} is not known"))),
    };
    let default_subset = struct_json(&default_subset.unwrap_or_default());
    let default_subset = default_subset.as_object().map(subset::criteria).unwrap_or_default();
    let selectors: Vec<Selector> =
        subset_selectors.into_iter().enumerate().map(|(i, s)| selector(s).within_item("subset_selectors", i)).collect::<Result<_>>()?;
    Ok((!selectors.is_empty()).then(|| SubsetSettings {
        fallback,
        default_subset: default_subset.entries().to_vec(),
        selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        allow_redundant_keys: false,
        metadata_fallback_list,
    }))
}

/// The same as a typed policy, without the policy within the subsets.
pub(crate) fn typed_settings(value: typed::Subset) -> Result<Option<SubsetSettings>> {
    let typed::Subset {
        fallback_policy,
        default_subset,
        subset_selectors,
        allow_redundant_keys,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
        subset_lb_policy: _taken_by_the_caller,
    } = value;
    let selector = |value: typed::subset::LbSubsetSelector| {
        let typed::subset::LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = value;
        LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
    };
    let settings = settings(cluster::LbSubsetConfig {
        fallback_policy,
        default_subset,
        subset_selectors: subset_selectors.into_iter().map(selector).collect(),
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback_policy,
    })?;
    Ok(settings.map(|settings| SubsetSettings { allow_redundant_keys, ..settings }))
}

fn selector(value: LbSubsetSelector) -> Result<Selector> {
    let LbSubsetSelector { keys, single_host_per_subset, fallback_policy, fallback_keys_subset } = value;
    use LbSubsetSelectorFallbackPolicy as Policy;
    let ordered = |keys: Vec<String>| -> Vec<Arc<str>> { keys.into_iter().map(Arc::from).collect::<BTreeSet<_>>().into_iter().collect() };
    let (keys, fewer) = (ordered(keys), ordered(fallback_keys_subset));
    let policy = Policy::try_from(fallback_policy);
    if policy != Ok(Policy::KeysSubset) && !fewer.is_empty() {
        return Err(Invalid::field("fallback_keys_subset", "is only for the fallback policy KEYS_SUBSET"));
    }
    let fallback = match policy {
        Ok(Policy::NotDefined) => None,
        Ok(Policy::NoFallback) => Some(SelectorFallback::Plain(Fallback::None)),
        Ok(Policy::AnyEndpoint) => Some(SelectorFallback::Plain(Fallback::AnyEndpoint)),
        Ok(Policy::DefaultSubset) => Some(SelectorFallback::Plain(Fallback::DefaultSubset)),
        // All the keys again would look for ever.
        Ok(Policy::KeysSubset) if fewer.is_empty() || fewer.len() >= keys.len() || !fewer.iter().all(|k| keys.contains(k)) => {
            return Err(Invalid::field("fallback_keys_subset", "must be some of the keys, not all and not none"));
        }
        Ok(Policy::KeysSubset) => Some(SelectorFallback::Keys(fewer)),
        Err(_) => return Err(Invalid::field("fallback_policy", format!("{fallback_policy} is not known"))),
    };
    Ok(Selector { keys, single_host_per_subset, fallback })
}
