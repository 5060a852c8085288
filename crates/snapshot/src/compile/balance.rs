//! Load balancing: the enum and its settings, or the typed policy that replaces them.
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::config::{Choices, HashFunction, Hashing, HostStatuses};
use lateen_balance::peak_ewma::PeakEwma;
use lateen_balance::{LbPolicy, Settings, SlowStart, ZoneAware};
use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3::{self as proto, cluster};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::load_balancing_policies as policies;
use lateen_proto::envoy::r#type::v3::Percent;
use policies::common::v3::{self as common, locality_lb_config::LocalityConfigSpecifier};

use super::common::{duration, duration_or, open, percent};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::subset;

/// Envoy's defaults.
const RING: (u64, u64) = (1024, 8 << 20);
const MAGLEV: u64 = 65_537;
const MAGLEV_LIMIT: u64 = 5_000_011;

/// Policies within policies: deeper is a mistake.
const MAX_DEPTH: u32 = 8;

/// The fields of a cluster that say how it balances.
pub(crate) struct Fields {
    pub(crate) lb_policy: i32,
    pub(crate) lb_config: Option<cluster::LbConfig>,
    pub(crate) common_lb_config: Option<cluster::CommonLbConfig>,
    pub(crate) lb_subset_config: Option<cluster::LbSubsetConfig>,
    pub(crate) load_balancing_policy: Option<proto::LoadBalancingPolicy>,
    pub(crate) is_original_dst: bool,
    /// The kind of the cluster chooses among its hosts.
    pub(crate) provided: bool,
}

/// What else the common settings say.
pub(crate) struct Balance {
    pub(crate) settings: Settings,
    pub(crate) close_on_membership_change: bool,
    pub(crate) ignore_new_hosts_until_first_hc: bool,
}

pub(crate) fn balance(fields: Fields) -> Result<Balance> {
    let mut settings = Settings::default();
    if fields.provided && !fields.is_original_dst && fields.lb_policy != cluster::LbPolicy::ClusterProvided as i32 {
        return Err(Invalid::field("lb_policy", "must be CLUSTER_PROVIDED: a cluster of this kind chooses its hosts itself"));
    }
    let (mut close_on_membership_change, mut ignore_new_hosts_until_first_hc) = (false, false);
    if let Some(common) = fields.common_lb_config {
        ignore_new_hosts_until_first_hc = common.ignore_new_hosts_until_first_hc;
        close_on_membership_change = common_settings(common, &mut settings).within("common_lb_config")?;
    }
    let subsets = fields.lb_subset_config.map(subset::settings).transpose().within("lb_subset_config")?.flatten();
    if let Some(policy) = fields.load_balancing_policy {
        if subsets.is_some() {
            return Err(Invalid::field("lb_subset_config", "cannot stand beside load_balancing_policy; use the subset policy there"));
        }
        typed(policy, &mut settings, 0).within("load_balancing_policy")?;
    } else {
        by_enum(fields.lb_policy, fields.lb_config, fields.provided, &mut settings)?;
        settings.subsets = subsets.map(Arc::new);
    }
    if fields.provided {
        if settings.subsets.is_some() {
            return Err(Invalid::field("lb_subset_config", "is not for clusters that choose their hosts themselves, such as ORIGINAL_DST"));
        }
        settings.policy = LbPolicy::OriginalDestination;
    }
    // Subsets have weights only where they are said to know of them.
    settings.locality_weighted &= settings.subsets.as_ref().is_none_or(|s| s.locality_weight_aware);
    Ok(Balance { settings, close_on_membership_change, ignore_new_hosts_until_first_hc })
}

fn common_settings(value: cluster::CommonLbConfig, settings: &mut Settings) -> Result<bool> {
    use cluster::common_lb_config::LocalityConfigSpecifier as Specifier;
    let cluster::CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = value;
    // Updates are merged by the main thread anyway; the caller has taken `ignore_new_hosts_until_first_hc`.
    harmless!(update_merge_window, ignore_new_hosts_until_first_hc);
    if let Some(core::HealthStatusSet { statuses }) = override_host_status {
        settings.override_host = statuses_of(statuses).within("override_host_status")?;
    }
    if let Some(cluster::common_lb_config::ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor }) =
        consistent_hashing_lb_config
    {
        settings.hashing = hashing(use_hostname_for_hashing, hash_balance_factor).within("consistent_hashing_lb_config")?;
    }
    if let Some(threshold) = healthy_panic_threshold {
        settings.panic_threshold_percent = whole_percent(threshold).within("healthy_panic_threshold")?;
    }
    match locality_config_specifier {
        Some(Specifier::LocalityWeightedLbConfig(_)) => settings.locality_weighted = true,
        Some(Specifier::ZoneAwareLbConfig(zone)) => {
            let cluster::common_lb_config::ZoneAwareLbConfig { routing_enabled, min_cluster_size, fail_traffic_on_panic } = zone;
            settings.zone_aware = zone_aware(routing_enabled, min_cluster_size, fail_traffic_on_panic).within("zone_aware_lb_config")?;
        }
        None => {}
    }
    Ok(close_connections_on_host_set_change)
}

/// In which states a host is used that a session asks for.
fn statuses_of(values: Vec<i32>) -> Result<HostStatuses> {
    let bit = |value: i32| match core::HealthStatus::try_from(value) {
        Ok(core::HealthStatus::Unknown | core::HealthStatus::Healthy) => Ok(HostStatuses::HEALTHY),
        Ok(core::HealthStatus::Unhealthy) => Ok(HostStatuses::UNHEALTHY),
        Ok(core::HealthStatus::Draining) => Ok(HostStatuses::DRAINING),
        Ok(core::HealthStatus::Timeout) => Ok(HostStatuses::TIMEOUT),
        Ok(core::HealthStatus::Degraded) => Ok(HostStatuses::DEGRADED),
        Err(_) => Err(Invalid::field("statuses", format!("{value} is not known"))),
    };
    values.into_iter().try_fold(0, |bits, value| Ok(bits | bit(value)?)).map(HostStatuses)
}

/// Envoy cuts fractions of a percent off.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole_percent(value: Percent) -> Result<u32> {
    percent(value).map(|p| p as u32)
}

fn zone_aware(routing_enabled: Option<Percent>, min_cluster_size: Option<u64>, fail_traffic_on_panic: bool) -> Result<ZoneAware> {
    let default = ZoneAware::default();
    let enabled = routing_enabled.map(whole_percent).transpose().within("routing_enabled")?;
    Ok(ZoneAware {
        routing_enabled: enabled.unwrap_or(default.routing_enabled),
        min_cluster_size: min_cluster_size.unwrap_or(default.min_cluster_size),
        fail_traffic_on_panic,
        ..default
    })
}

fn hashing(use_hostname: bool, balance_factor: Option<u32>) -> Result<Hashing> {
    if balance_factor.is_some_and(|factor| factor < 100) {
        return Err(Invalid::field("hash_balance_factor", "must be at least 100"));
    }
    Ok(Hashing { use_hostname, balance_factor })
}

fn by_enum(value: i32, config: Option<cluster::LbConfig>, provided: bool, settings: &mut Settings) -> Result<()> {
    use cluster::LbPolicy as Enum;
    settings.policy = match (Enum::try_from(value), config) {
        (Ok(Enum::RoundRobin), Some(cluster::LbConfig::RoundRobinLbConfig(config))) => {
            let cluster::RoundRobinLbConfig { slow_start_config } = config;
            settings.slow_start = slow_start_config.map_or(Ok(None), old_slow_start).within("round_robin_lb_config.slow_start_config")?;
            LbPolicy::RoundRobin
        }
        (Ok(Enum::RoundRobin), _) => LbPolicy::RoundRobin,
        (Ok(Enum::LeastRequest), Some(cluster::LbConfig::LeastRequestLbConfig(config))) => {
            let cluster::LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = config;
            settings.slow_start = slow_start_config.map_or(Ok(None), old_slow_start).within("least_request_lb_config.slow_start_config")?;
            least_request(choice_count, active_request_bias).within("least_request_lb_config")?
        }
        (Ok(Enum::LeastRequest), _) => least_request(None, None)?,
        (Ok(Enum::Random), _) => LbPolicy::Random,
        (Ok(Enum::RingHash), config) => match config {
            Some(cluster::LbConfig::RingHashLbConfig(cluster::RingHashLbConfig {
                minimum_ring_size,
                hash_function,
                maximum_ring_size,
            })) => {
                use cluster::ring_hash_lb_config::HashFunction as Old;
                let function = match Old::try_from(hash_function) {
                    Ok(Old::XxHash) => HashFunction::XxHash,
                    Ok(Old::MurmurHash2) => HashFunction::MurmurHash2,
                    Err(_) => return Err(Invalid::field("ring_hash_lb_config.hash_function", format!("{hash_function} is not known"))),
                };
                ring(minimum_ring_size, maximum_ring_size, function).within("ring_hash_lb_config")?
            }
            _ => ring(None, None, HashFunction::XxHash)?,
        },
        (Ok(Enum::Maglev), Some(cluster::LbConfig::MaglevLbConfig(m))) => maglev(m.table_size).within("maglev_lb_config")?,
        (Ok(Enum::Maglev), _) => maglev(None)?,
        (Ok(Enum::ClusterProvided), _) if provided => LbPolicy::OriginalDestination,
        (Ok(Enum::ClusterProvided), _) => {
            let message = "CLUSTER_PROVIDED is only for clusters that choose their hosts themselves, such as ORIGINAL_DST";
            return Err(Invalid::field("lb_policy", message));
        }
        (Ok(Enum::LoadBalancingPolicyConfig), _) => {
            return Err(Invalid::field("load_balancing_policy", "is missing, but lb_policy asks for it"));
        }
        (Err(_), _) => return Err(Invalid::field("lb_policy", format!("{value} is not known"))),
    };
    Ok(())
}

fn old_slow_start(value: cluster::SlowStartConfig) -> Result<Option<SlowStart>> {
    let cluster::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = value;
    slow_start(common::SlowStartConfig { slow_start_window, aggression, min_weight_percent })
}

/// `None` without a window, as in Envoy.
fn slow_start(value: common::SlowStartConfig) -> Result<Option<SlowStart>> {
    let common::SlowStartConfig { slow_start_window, aggression, min_weight_percent } = value;
    let window = slow_start_window.map(|d| duration(&d)).transpose().within("slow_start_window")?.unwrap_or_default();
    let aggression = aggression.map_or(1.0, |a| a.default_value);
    if !aggression.is_finite() || aggression <= 0.0 {
        return Err(Invalid::field("aggression", "must be above zero"));
    }
    let min_weight = min_weight_percent.map(percent).transpose().within("min_weight_percent")?.unwrap_or(10.0) / 100.0;
    let window_millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    Ok((window_millis > 0).then_some(SlowStart { window_millis, aggression, min_weight }))
}

fn least_request(choices: Option<u32>, bias: Option<core::RuntimeDouble>) -> Result<LbPolicy> {
    let choices = choices.unwrap_or(2);
    if choices < 2 {
        return Err(Invalid::field("choice_count", "must be at least 2"));
    }
    let active_request_bias = bias.map_or(1.0, |b| b.default_value);
    if !active_request_bias.is_finite() || active_request_bias < 0.0 {
        return Err(Invalid::field("active_request_bias", "must be zero or more"));
    }
    Ok(LbPolicy::LeastRequest { choices: Choices::Random(choices), active_request_bias })
}

fn ring(minimum: Option<u64>, maximum: Option<u64>, function: HashFunction) -> Result<LbPolicy> {
    let (minimum_size, maximum_size) = (minimum.unwrap_or(RING.0), maximum.unwrap_or(RING.1));
    if minimum_size > maximum_size || maximum_size > RING.1 {
        return Err(Invalid::field("minimum_ring_size", format!("must not be above the maximum, which must not be above {}", RING.1)));
    }
    Ok(LbPolicy::RingHash { minimum_size, maximum_size, function })
}

fn maglev(size: Option<u64>) -> Result<LbPolicy> {
    let table_size = size.unwrap_or(MAGLEV);
    let is_prime = |n: u64| n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    if table_size > MAGLEV_LIMIT || !is_prime(table_size) {
        return Err(Invalid::field("table_size", format!("{table_size} is not a prime number up to {MAGLEV_LIMIT}")));
    }
    Ok(LbPolicy::Maglev { table_size })
}

/// The first policy of the list that is known, as Envoy takes them.
fn typed(value: proto::LoadBalancingPolicy, settings: &mut Settings, depth: u32) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Invalid::new(format!("is nested more than {MAX_DEPTH} deep")));
    }
    let mut names = Vec::new();
    for (index, policy) in value.policies.into_iter().enumerate() {
        let Some(core::TypedExtensionConfig { name, typed_config: Some(config) }) = policy.typed_extension_config else {
            return Err(Invalid::field("typed_extension_config", "is missing")).within_item("policies", index);
        };
        match one_typed(&config, settings, depth).within_item("policies", index)? {
            Some(policy) => {
                settings.policy = policy;
                return Ok(());
            }
            None => names.push(name),
        }
    }
    Err(Invalid::field(
        "policies",
        format!(
            "none of {names:?} is supported; use round_robin, least_request, random, ring_hash, maglev, peak_ewma, subset or wrr_locality"
        ),
    ))
}

fn one_typed(config: &lateen_proto::Any, settings: &mut Settings, depth: u32) -> Result<Option<LbPolicy>> {
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
    } else if any::is::<policies::ring_hash::v3::RingHash>(config) {
        ring_policy(open(config)?, settings)?
    } else if any::is::<policies::maglev::v3::Maglev>(config) {
        let policies::maglev::v3::Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } = open(config)?;
        if let Some(consistent) = consistent_hashing_lb_config {
            settings.hashing = consistent_hashing(consistent).within("consistent_hashing_lb_config")?;
        }
        settings.locality_weighted |= locality_weighted_lb_config.is_some();
        maglev(table_size)?
    } else if any::is::<policies::wrr_locality::v3::WrrLocality>(config) {
        let policies::wrr_locality::v3::WrrLocality { endpoint_picking_policy } = open(config)?;
        settings.locality_weighted = true;
        let inner = endpoint_picking_policy.ok_or_else(|| Invalid::field("endpoint_picking_policy", "is missing"))?;
        typed(inner, settings, depth + 1).within("endpoint_picking_policy")?;
        settings.policy.clone()
    } else if any::is::<policies::subset::v3::Subset>(config) {
        if settings.subsets.is_some() {
            return Err(Invalid::new("stands within subsets already"));
        }
        let mut value: policies::subset::v3::Subset = open(config)?;
        let inner = value.subset_lb_policy.take().ok_or_else(|| Invalid::field("subset_lb_policy", "is missing"))?;
        settings.subsets = subset::typed_settings(value)?.map(Arc::new);
        typed(inner, settings, depth + 1).within("subset_lb_policy")?;
        settings.policy.clone()
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

fn ring_policy(value: policies::ring_hash::v3::RingHash, settings: &mut Settings) -> Result<LbPolicy> {
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
    settings.hashing = match consistent_hashing_lb_config {
        Some(consistent) => consistent_hashing(consistent).within("consistent_hashing_lb_config")?,
        None => hashing(use_hostname_for_hashing, hash_balance_factor)?,
    };
    let function = match New::try_from(hash_function) {
        Ok(New::DefaultHash | New::XxHash) => HashFunction::XxHash,
        Ok(New::MurmurHash2) => HashFunction::MurmurHash2,
        Err(_) => return Err(Invalid::field("hash_function", format!("{hash_function} is not known"))),
    };
    settings.locality_weighted |= locality_weighted_lb_config.is_some();
    ring(minimum_ring_size, maximum_ring_size, function)
}

fn consistent_hashing(value: common::ConsistentHashingLbConfig) -> Result<Hashing> {
    let common::ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } = value;
    refuse!(hash_policy);
    hashing(use_hostname_for_hashing, hash_balance_factor)
}

fn locality(value: Option<common::LocalityLbConfig>, settings: &mut Settings) -> Result<()> {
    use common::locality_lb_config::{ZoneAwareLbConfig, zone_aware_lb_config::LocalityBasis};
    match value.and_then(|v| v.locality_config_specifier) {
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
                    force_local_zone_min_size: force_local_zone.map(|z| z.min_size.unwrap_or(1)),
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
