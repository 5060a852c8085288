//! Typed load balancing policies, which stand instead of the enum.
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::by_load::ByLoad;
use lateen_balance::config::{Choices, HashFunction};
use lateen_balance::peak_ewma::PeakEwma;
use lateen_balance::{LbPolicy, Settings, ZoneAware};
use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3 as proto;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::load_balancing_policies as policies;
use policies::common::v3::{self as common, locality_lb_config::LocalityConfigSpecifier};

use super::balance::{Balance, hashing, least_request, maglev, ring, slow_start, zone_aware};
use super::common::{duration_or, open};
use super::invalid::{Invalid, Result, Within, harmless};
use super::{action, subset};

/// Policies within policies: deeper is a mistake.
const MAX_DEPTH: u32 = 8;

/// The first policy of the list that is known, as Envoy takes them.
pub(super) fn typed(value: proto::LoadBalancingPolicy, balance: &mut Balance, depth: u32) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Invalid::new(format!("is nested more than {MAX_DEPTH} deep")));
    }
    let mut names = Vec::new();
    for (index, policy) in value.policies.into_iter().enumerate() {
        let proto::load_balancing_policy::Policy { typed_extension_config } = policy;
        let Some(core::TypedExtensionConfig { name, typed_config: Some(config) }) = typed_extension_config else {
            return Err(Invalid::field("typed_extension_config", "is missing")).within_item("policies", index);
        };
        match one_typed(&config, balance, depth).within_item("policies", index)? {
            Some(policy) => {
                balance.settings.policy = policy;
                return Ok(());
            }
            None => names.push(name),
        }
    }
    Err(Invalid::field(
        "policies",
        format!(
            "none of {names:?} is supported; use round_robin, least_request, random, ring_hash, maglev, peak_ewma, client_side_weighted_round_robin, subset or wrr_locality"
        ),
    ))
}

fn one_typed(config: &lateen_proto::Any, balance: &mut Balance, depth: u32) -> Result<Option<LbPolicy>> {
    let settings = &mut balance.settings;
    Ok(Some(if any::is::<policies::round_robin::v3::RoundRobin>(config) {
        let policies::round_robin::v3::RoundRobin { slow_start_config, locality_lb_config } = open(config)?;
        settings.slow_start = slow_start_config.map_or(Ok(None), slow_start).within("slow_start_config")?;
        locality(locality_lb_config, settings).within("locality_lb_config")?;
        LbPolicy::RoundRobin
    } else if any::is::<policies::least_request::v3::LeastRequest>(config) {
        least_request_policy(open(config)?, settings)?
    } else if any::is::<policies::random::v3::Random>(config) {
        let policies::random::v3::Random { locality_lb_config } = open(config)?;
        locality(locality_lb_config, settings).within("locality_lb_config")?;
        LbPolicy::Random
    } else if any::is::<policies::peak_ewma::v3::PeakEwma>(config) {
        LbPolicy::PeakEwma(peak_ewma(open(config)?)?)
    } else if any::is::<policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin>(config) {
        by_load(open(config)?, settings)?
    } else if any::is::<policies::ring_hash::v3::RingHash>(config) {
        ring_policy(open(config)?, balance)?
    } else if any::is::<policies::maglev::v3::Maglev>(config) {
        let policies::maglev::v3::Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } = open(config)?;
        if let Some(consistent) = consistent_hashing_lb_config {
            consistent_hashing(consistent, balance).within("consistent_hashing_lb_config")?;
        }
        balance.settings.locality_weighted |= locality_weighted_lb_config.is_some();
        maglev(table_size)?
    } else if any::is::<policies::wrr_locality::v3::WrrLocality>(config) {
        let policies::wrr_locality::v3::WrrLocality { endpoint_picking_policy } = open(config)?;
        settings.locality_weighted = true;
        let inner = endpoint_picking_policy.ok_or_else(|| Invalid::field("endpoint_picking_policy", "is missing"))?;
        typed(inner, balance, depth + 1).within("endpoint_picking_policy")?;
        balance.settings.policy.clone()
    } else if any::is::<policies::subset::v3::Subset>(config) {
        if settings.subsets.is_some() {
            return Err(Invalid::new("stands within subsets already"));
        }
        let mut value: policies::subset::v3::Subset = open(config)?;
        let inner = value.subset_lb_policy.take().ok_or_else(|| Invalid::field("subset_lb_policy", "is missing"))?;
        settings.subsets = subset::typed_settings(value)?.map(Arc::new);
        typed(inner, balance, depth + 1).within("subset_lb_policy")?;
        balance.settings.policy.clone()
    } else {
        return Ok(None);
    }))
}

fn least_request_policy(value: policies::least_request::v3::LeastRequest, settings: &mut Settings) -> Result<LbPolicy> {
    use policies::least_request::v3::least_request::SelectionMethod;
    let policies::least_request::v3::LeastRequest {
        choice_count,
        active_request_bias,
        slow_start_config,
        locality_lb_config,
        enable_full_scan,
        selection_method,
    } = value;
    // Envoy does not read it any more: `selection_method` stands in its place.
    harmless!(enable_full_scan);
    settings.slow_start = slow_start_config.map_or(Ok(None), slow_start).within("slow_start_config")?;
    locality(locality_lb_config, settings).within("locality_lb_config")?;
    let policy = least_request(choice_count, active_request_bias)?;
    match (SelectionMethod::try_from(selection_method), policy) {
        (Ok(SelectionMethod::NChoices), policy) => Ok(policy),
        (Ok(SelectionMethod::FullScan), LbPolicy::LeastRequest { active_request_bias, .. }) => {
            Ok(LbPolicy::LeastRequest { choices: Choices::All, active_request_bias })
        }
        _ => Err(Invalid::field("selection_method", format!("{selection_method} is not known"))),
    }
}

/// Reports come with responses.
fn by_load(
    value: policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin,
    settings: &mut Settings,
) -> Result<LbPolicy> {
    let policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin {
        enable_oob_load_report,
        oob_reporting_period,
        blackout_period,
        weight_expiration_period,
        weight_update_period,
        error_utilization_penalty,
        metric_names_for_computing_utilization,
        slow_start_config,
        oob_reporting_config,
    } = value;
    // Of reports over a connection of their own.
    harmless!(oob_reporting_period, oob_reporting_config);
    if enable_oob_load_report == Some(true) {
        return Err(Invalid::field("enable_oob_load_report", "is not supported: reports come with responses"));
    }
    // Envoy's default, whatever its documentation says.
    let error_penalty = f64::from(error_utilization_penalty.unwrap_or(0.0));
    if !error_penalty.is_finite() || error_penalty < 0.0 {
        return Err(Invalid::field("error_utilization_penalty", "must be zero or more"));
    }
    settings.slow_start = slow_start_config.map_or(Ok(None), slow_start).within("slow_start_config")?;
    let millis = |value: Option<lateen_proto::Duration>, default: u64, field: &str| {
        let span = duration_or(value.as_ref(), Duration::from_millis(default), field)?;
        Ok(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    };
    Ok(LbPolicy::ByLoad(ByLoad {
        blackout_millis: millis(blackout_period, 10_000, "blackout_period")?,
        expiration_millis: millis(weight_expiration_period, 180_000, "weight_expiration_period")?,
        update_millis: millis(weight_update_period, 1_000, "weight_update_period")?.max(100),
        error_penalty,
        metrics: metric_names_for_computing_utilization.into_iter().map(String::into_boxed_str).collect(),
    }))
}

fn peak_ewma(value: policies::peak_ewma::v3::PeakEwma) -> Result<PeakEwma> {
    let policies::peak_ewma::v3::PeakEwma { decay_time, aggregation_interval, max_samples_per_host, default_rtt, penalty_value } = value;
    // Measurements count at once, so that none are gathered.
    harmless!(aggregation_interval, max_samples_per_host);
    let above_zero =
        |value: Option<lateen_proto::Duration>, default: Duration, field: &str| match duration_or(value.as_ref(), default, field)? {
            Duration::ZERO => Err(Invalid::field(field, "must be above zero")),
            span => Ok(span),
        };
    let decay = above_zero(decay_time, Duration::from_secs(10), "decay_time")?;
    let penalty = penalty_value.unwrap_or(1_000_000.0);
    if !penalty.is_finite() || penalty <= 0.0 {
        return Err(Invalid::field("penalty_value", "must be above zero"));
    }
    Ok(PeakEwma {
        decay_nanos: u64::try_from(decay.as_nanos()).unwrap_or(u64::MAX),
        default_rtt_millis: above_zero(default_rtt, Duration::from_millis(10), "default_rtt")?.as_secs_f64() * 1_000.0,
        penalty,
    })
}

fn ring_policy(value: policies::ring_hash::v3::RingHash, balance: &mut Balance) -> Result<LbPolicy> {
    use policies::ring_hash::v3::ring_hash::HashFunction as New;
    let policies::ring_hash::v3::RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = value;
    // The newer message stands instead of the older fields.
    match consistent_hashing_lb_config {
        Some(consistent) => consistent_hashing(consistent, balance).within("consistent_hashing_lb_config")?,
        None => balance.settings.hashing = hashing(use_hostname_for_hashing, hash_balance_factor)?,
    }
    let function = match New::try_from(hash_function) {
        Ok(New::DefaultHash | New::XxHash) => HashFunction::XxHash,
        Ok(New::MurmurHash2) => HashFunction::MurmurHash2,
        Err(_) => return Err(Invalid::field("hash_function", format!("{hash_function} is not known"))),
    };
    balance.settings.locality_weighted |= locality_weighted_lb_config.is_some();
    ring(minimum_ring_size, maximum_ring_size, function)
}

fn consistent_hashing(value: common::ConsistentHashingLbConfig, balance: &mut Balance) -> Result<()> {
    let common::ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } = value;
    balance.hash = action::hash_policies(hash_policy)?;
    balance.settings.hashing = hashing(use_hostname_for_hashing, hash_balance_factor)?;
    Ok(())
}

fn locality(value: Option<common::LocalityLbConfig>, settings: &mut Settings) -> Result<()> {
    use common::locality_lb_config::{
        ZoneAwareLbConfig,
        zone_aware_lb_config::{ForceLocalZone, LocalityBasis},
    };
    match value.and_then(|common::LocalityLbConfig { locality_config_specifier }| locality_config_specifier) {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => settings.locality_weighted = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => {
            let ZoneAwareLbConfig {
                routing_enabled,
                min_cluster_size,
                fail_traffic_on_panic,
                force_locality_direct_routing,
                force_local_zone,
                locality_basis,
            } = zone;
            let checked = || -> Result<ZoneAware> {
                let by_weight = match LocalityBasis::try_from(locality_basis) {
                    Ok(LocalityBasis::HealthyHostsNum) => false,
                    Ok(LocalityBasis::HealthyHostsWeight) => true,
                    Err(_) => return Err(Invalid::field("locality_basis", format!("{locality_basis} is not known"))),
                };
                Ok(ZoneAware {
                    force_locality_direct_routing,
                    force_local_zone_min_size: force_local_zone.map(|ForceLocalZone { min_size }| min_size.unwrap_or(1)),
                    by_weight,
                    ..zone_aware(routing_enabled, min_cluster_size, fail_traffic_on_panic)?
                })
            };
            settings.zone_aware = checked().within("zone_aware_lb_config")?;
        }
        None => {}
    }
    Ok(())
}
