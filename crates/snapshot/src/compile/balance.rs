//! Load balancing: the enum and its settings, and what all policies have in common.
use std::sync::Arc;

use lateen_balance::config::{Choices, HashFunction, Hashing, HostStatuses};
use lateen_balance::{LbPolicy, Settings, SlowStart, ZoneAware};
use lateen_proto::envoy::config::cluster::v3::{self as proto, cluster};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::load_balancing_policies::common::v3 as common;
use lateen_proto::envoy::r#type::v3::Percent;

use super::common::{duration, percent};
use super::invalid::{Invalid, Result, Within, harmless};
use super::{lb_policy, subset};
use crate::route::HashPolicy;

/// Envoy's defaults.
const RING: (u64, u64) = (1024, 8 << 20);
const MAGLEV: u64 = 65_537;
const MAGLEV_LIMIT: u64 = 5_000_011;

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

/// How the cluster balances.
#[derive(Default)]
pub(crate) struct Balance {
    pub(crate) settings: Settings,
    /// Stand instead of the routes' where there are any.
    pub(crate) hash: Vec<HashPolicy>,
    pub(crate) close_on_membership_change: bool,
    pub(crate) ignore_new_hosts_until_first_hc: bool,
}

pub(crate) fn balance(fields: Fields) -> Result<Balance> {
    let mut balance = Balance::default();
    if fields.provided && !fields.is_original_dst && fields.lb_policy != cluster::LbPolicy::ClusterProvided as i32 {
        return Err(Invalid::field("lb_policy", "must be CLUSTER_PROVIDED: a cluster of this kind chooses its hosts itself"));
    }
    if let Some(common) = fields.common_lb_config {
        balance.ignore_new_hosts_until_first_hc = common.ignore_new_hosts_until_first_hc;
        balance.close_on_membership_change = common_settings(common, &mut balance.settings).within("common_lb_config")?;
    }
    let subsets = fields.lb_subset_config.map(subset::settings).transpose().within("lb_subset_config")?.flatten();
    if let Some(policy) = fields.load_balancing_policy {
        if subsets.is_some() {
            return Err(Invalid::field("lb_subset_config", "cannot stand beside load_balancing_policy; use the subset policy there"));
        }
        lb_policy::typed(policy, &mut balance, 0).within("load_balancing_policy")?;
    } else {
        by_enum(fields.lb_policy, fields.lb_config, fields.provided, &mut balance.settings)?;
        balance.settings.subsets = subsets.map(Arc::new);
    }
    let settings = &mut balance.settings;
    if fields.provided {
        if settings.subsets.is_some() {
            return Err(Invalid::field("lb_subset_config", "is not for clusters that choose their hosts themselves, such as ORIGINAL_DST"));
        }
        settings.policy = LbPolicy::OriginalDestination;
    }
    // Subsets have weights only where they are said to know of them.
    settings.locality_weighted &= settings.subsets.as_ref().is_none_or(|s| s.locality_weight_aware);
    Ok(balance)
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

pub(super) fn zone_aware(
    routing_enabled: Option<Percent>,
    min_cluster_size: Option<u64>,
    fail_traffic_on_panic: bool,
) -> Result<ZoneAware> {
    let default = ZoneAware::default();
    let enabled = routing_enabled.map(whole_percent).transpose().within("routing_enabled")?;
    Ok(ZoneAware {
        routing_enabled: enabled.unwrap_or(default.routing_enabled),
        min_cluster_size: min_cluster_size.unwrap_or(default.min_cluster_size),
        fail_traffic_on_panic,
        ..default
    })
}

pub(super) fn hashing(use_hostname: bool, balance_factor: Option<u32>) -> Result<Hashing> {
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
pub(super) fn slow_start(value: common::SlowStartConfig) -> Result<Option<SlowStart>> {
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

pub(super) fn least_request(choices: Option<u32>, bias: Option<core::RuntimeDouble>) -> Result<LbPolicy> {
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

pub(super) fn ring(minimum: Option<u64>, maximum: Option<u64>, function: HashFunction) -> Result<LbPolicy> {
    let (minimum_size, maximum_size) = (minimum.unwrap_or(RING.0), maximum.unwrap_or(RING.1));
    if minimum_size > maximum_size || maximum_size > RING.1 {
        return Err(Invalid::field("minimum_ring_size", format!("must not be above the maximum, which must not be above {}", RING.1)));
    }
    Ok(LbPolicy::RingHash { minimum_size, maximum_size, function })
}

pub(super) fn maglev(size: Option<u64>) -> Result<LbPolicy> {
    let table_size = size.unwrap_or(MAGLEV);
    let is_prime = |n: u64| n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    if table_size > MAGLEV_LIMIT || !is_prime(table_size) {
        return Err(Invalid::field("table_size", format!("{table_size} is not a prime number up to {MAGLEV_LIMIT}")));
    }
    Ok(LbPolicy::Maglev { table_size })
}
