//! Load balancing: the enum and its settings, or the typed policy that replaces them.
use lateen_balance::config::HostStatuses;
use lateen_balance::{LbPolicy, Settings};
use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3::{self as proto, cluster};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::load_balancing_policies as policies;
use policies::common::v3::{self as common, locality_lb_config::LocalityConfigSpecifier};

use super::common::{open, percent};
use super::invalid::{Invalid, Result, Within, harmless, refuse};

/// Envoy's defaults.
const RING: (u64, u64) = (1024, 8 << 20);
const MAGLEV: u64 = 65_537;
const MAGLEV_LIMIT: u64 = 5_000_011;

/// The fields of a cluster that say how it balances.
pub(crate) struct Fields {
    pub(crate) lb_policy: i32,
    pub(crate) lb_config: Option<cluster::LbConfig>,
    pub(crate) common_lb_config: Option<cluster::CommonLbConfig>,
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
    if let Some(policy) = fields.load_balancing_policy {
        typed(policy, &mut settings).within("load_balancing_policy")?;
    } else {
        settings.policy = by_enum(fields.lb_policy, fields.lb_config, fields.provided)?;
    }
    if fields.provided {
        settings.policy = LbPolicy::OriginalDestination;
    }
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
    refuse!(consistent_hashing_lb_config);
    if let Some(threshold) = healthy_panic_threshold {
        settings.panic_threshold_percent = percent(threshold).within("healthy_panic_threshold")?;
    }
    match locality_config_specifier {
        Some(Specifier::LocalityWeightedLbConfig(_)) => settings.locality_weighted = true,
        // Zone awareness needs a local cluster, which the bootstrap cannot name here, so Envoy would not use it either.
        Some(Specifier::ZoneAwareLbConfig(_)) | None => {}
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

fn by_enum(value: i32, config: Option<cluster::LbConfig>, provided: bool) -> Result<LbPolicy> {
    use cluster::LbPolicy as Enum;
    match (Enum::try_from(value), config) {
        (Ok(Enum::RoundRobin), config) => {
            if let Some(cluster::LbConfig::RoundRobinLbConfig(cluster::RoundRobinLbConfig { slow_start_config })) = config {
                refuse_slow_start(slow_start_config.is_some(), "round_robin_lb_config")?;
            }
            Ok(LbPolicy::RoundRobin)
        }
        (Ok(Enum::LeastRequest), config) => match config {
            Some(cluster::LbConfig::LeastRequestLbConfig(cluster::LeastRequestLbConfig {
                choice_count,
                active_request_bias,
                slow_start_config,
            })) => {
                refuse_slow_start(slow_start_config.is_some(), "least_request_lb_config")?;
                least_request(choice_count, active_request_bias).within("least_request_lb_config")
            }
            _ => least_request(None, None),
        },
        (Ok(Enum::Random), _) => Ok(LbPolicy::Random),
        (Ok(Enum::RingHash), config) => match config {
            Some(cluster::LbConfig::RingHashLbConfig(cluster::RingHashLbConfig {
                minimum_ring_size,
                hash_function,
                maximum_ring_size,
            })) => {
                if hash_function != cluster::ring_hash_lb_config::HashFunction::XxHash as i32 {
                    return Err(Invalid::field("ring_hash_lb_config.hash_function", "only XX_HASH is supported"));
                }
                ring(minimum_ring_size, maximum_ring_size).within("ring_hash_lb_config")
            }
            _ => ring(None, None),
        },
        (Ok(Enum::Maglev), Some(cluster::LbConfig::MaglevLbConfig(m))) => maglev(m.table_size).within("maglev_lb_config"),
        (Ok(Enum::Maglev), _) => maglev(None),
        (Ok(Enum::ClusterProvided), _) if provided => Ok(LbPolicy::OriginalDestination),
        (Ok(Enum::ClusterProvided), _) => Err(Invalid::field(
            "lb_policy",
            "CLUSTER_PROVIDED is only for clusters that choose their hosts themselves, such as ORIGINAL_DST",
        )),
        (Ok(Enum::LoadBalancingPolicyConfig), _) => Err(Invalid::field("load_balancing_policy", "is missing, but lb_policy asks for it")),
        (Err(_), _) => Err(Invalid::field("lb_policy", format!("{value} is not known"))),
    }
}

fn refuse_slow_start(set: bool, field: &str) -> Result<()> {
    let slow_start_config = set.then_some(());
    let checked = || -> Result<()> {
        refuse!(slow_start_config);
        Ok(())
    };
    checked().within(field)
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
    Ok(LbPolicy::LeastRequest { choices, active_request_bias })
}

fn ring(minimum: Option<u64>, maximum: Option<u64>) -> Result<LbPolicy> {
    let (minimum_size, maximum_size) = (minimum.unwrap_or(RING.0), maximum.unwrap_or(RING.1));
    if minimum_size > maximum_size || maximum_size > RING.1 {
        return Err(Invalid::field("minimum_ring_size", format!("must not be above the maximum, which must not be above {}", RING.1)));
    }
    Ok(LbPolicy::RingHash { minimum_size, maximum_size })
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
fn typed(value: proto::LoadBalancingPolicy, settings: &mut Settings) -> Result<()> {
    let mut names = Vec::new();
    for (index, policy) in value.policies.into_iter().enumerate() {
        let Some(core::TypedExtensionConfig { name, typed_config: Some(config) }) = policy.typed_extension_config else {
            return Err(Invalid::field("typed_extension_config", "is missing")).within_item("policies", index);
        };
        match one_typed(&config, settings).within_item("policies", index)? {
            Some(policy) => {
                settings.policy = policy;
                return Ok(());
            }
            None => names.push(name),
        }
    }
    Err(Invalid::field("policies", format!("none of {names:?} is supported; use round_robin, least_request, random, ring_hash or maglev")))
}

fn one_typed(config: &lateen_proto::Any, settings: &mut Settings) -> Result<Option<LbPolicy>> {
    Ok(Some(if any::is::<policies::round_robin::v3::RoundRobin>(config) {
        let policies::round_robin::v3::RoundRobin { slow_start_config, locality_lb_config } = open(config)?;
        refuse!(slow_start_config);
        locality(locality_lb_config, settings);
        LbPolicy::RoundRobin
    } else if any::is::<policies::least_request::v3::LeastRequest>(config) {
        let policies::least_request::v3::LeastRequest {
            choice_count,
            active_request_bias,
            slow_start_config,
            locality_lb_config,
            enable_full_scan,
            selection_method,
        } = open(config)?;
        refuse!(slow_start_config, enable_full_scan, selection_method);
        locality(locality_lb_config, settings);
        least_request(choice_count, active_request_bias)?
    } else if any::is::<policies::random::v3::Random>(config) {
        let policies::random::v3::Random { locality_lb_config } = open(config)?;
        locality(locality_lb_config, settings);
        LbPolicy::Random
    } else if any::is::<policies::ring_hash::v3::RingHash>(config) {
        ring_policy(open(config)?, settings)?
    } else if any::is::<policies::maglev::v3::Maglev>(config) {
        let policies::maglev::v3::Maglev { table_size, consistent_hashing_lb_config, locality_weighted_lb_config } = open(config)?;
        consistent(consistent_hashing_lb_config)?;
        settings.locality_weighted |= locality_weighted_lb_config.is_some();
        maglev(table_size)?
    } else if any::is::<policies::wrr_locality::v3::WrrLocality>(config) {
        let policies::wrr_locality::v3::WrrLocality { endpoint_picking_policy } = open(config)?;
        settings.locality_weighted = true;
        let inner = endpoint_picking_policy.ok_or_else(|| Invalid::field("endpoint_picking_policy", "is missing"))?;
        typed(inner, settings).within("endpoint_picking_policy")?;
        settings.policy.clone()
    } else {
        return Ok(None);
    }))
}

fn ring_policy(value: policies::ring_hash::v3::RingHash, settings: &mut Settings) -> Result<LbPolicy> {
    use policies::ring_hash::v3::ring_hash::HashFunction;
    let policies::ring_hash::v3::RingHash {
        hash_function,
        minimum_ring_size,
        maximum_ring_size,
        use_hostname_for_hashing,
        hash_balance_factor,
        consistent_hashing_lb_config,
        locality_weighted_lb_config,
    } = value;
    refuse!(use_hostname_for_hashing, hash_balance_factor);
    consistent(consistent_hashing_lb_config)?;
    if hash_function == HashFunction::MurmurHash2 as i32 {
        return Err(Invalid::field("hash_function", "only XX_HASH is supported"));
    }
    settings.locality_weighted |= locality_weighted_lb_config.is_some();
    ring(minimum_ring_size, maximum_ring_size)
}

fn consistent(value: Option<common::ConsistentHashingLbConfig>) -> Result<()> {
    let common::ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } = value.unwrap_or_default();
    refuse!(use_hostname_for_hashing, hash_balance_factor, hash_policy);
    Ok(())
}

fn locality(value: Option<common::LocalityLbConfig>, settings: &mut Settings) {
    if let Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) = value.and_then(|v| v.locality_config_specifier) {
        settings.locality_weighted = true;
    }
}
