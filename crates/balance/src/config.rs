//! How a cluster balances: the runtime form of Envoy's `lb_policy` and `common_lb_config`.
use std::sync::Arc;
use std::time::Duration;

use crate::by_load::ByLoad;
use crate::host::{
    DEGRADED_ACTIVE_HC, DEGRADED_EDS, DEGRADED_OUTLIER, DRAINING_EDS, FAILED_ACTIVE_HC, FAILED_EDS, FAILED_OUTLIER, TIMEOUT_EDS,
};
use crate::peak_ewma::PeakEwma;
use crate::slow_start::SlowStart;
use crate::subset::SubsetSettings;
use crate::zone::ZoneAware;

/// The load-balancing policy (Envoy cluster.proto `LbPolicy`).
#[derive(Clone, Debug, PartialEq)]
pub enum LbPolicy {
    /// Weighted round robin.
    RoundRobin,
    /// The least loaded of `choices` random hosts, or of all; with unequal weights, weighted by current load.
    LeastRequest { choices: Choices, active_request_bias: f64 },
    /// The cheaper of two random hosts, by latency and load.
    PeakEwma(PeakEwma),
    /// Round robin, weighted by the load that hosts report.
    ByLoad(ByLoad),
    /// A random host, whatever its weight.
    Random,
    /// Consistent hashing on a ring; sizes are numbers of points.
    RingHash { minimum_size: u64, maximum_size: u64, function: HashFunction },
    /// Consistent hashing through a Maglev table of `table_size` entries (a prime).
    Maglev { table_size: u64 },
    /// The connection's original destination is the host (Envoy `ORIGINAL_DST`).
    OriginalDestination,
}

impl LbPolicy {
    /// Whether a request's hash decides.
    pub fn goes_by_hash(&self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

/// Among how many hosts the least loaded is looked for (Envoy `LeastRequest.SelectionMethod`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choices {
    /// That many random ones.
    Random(u32),
    All,
}

/// What surrounds the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub policy: LbPolicy,
    /// Below this share of healthy hosts (0-100) health is ignored; Envoy's default is 50, Istio sets 0.
    pub panic_threshold_percent: u32,
    /// Whether localities get their `load_balancing_weight` share (Envoy `locality_weighted_lb_config`).
    pub locality_weighted: bool,
    /// Counts only where the process has a local cluster, but for `fail_traffic_on_panic`.
    pub zone_aware: ZoneAware,
    /// Only of round robin, also that by load, and least request.
    pub slow_start: Option<SlowStart>,
    pub subsets: Option<Arc<SubsetSettings>>,
    pub hashing: Hashing,
    /// When a host is used that a session asks for by its address.
    pub override_host: HostStatuses,
}

/// States of hosts (Envoy `override_host_status`), as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostStatuses(pub u8);

impl HostStatuses {
    /// Healthy, or not known to be otherwise.
    pub const HEALTHY: u8 = 1;
    pub const UNHEALTHY: u8 = 1 << 1;
    pub const DRAINING: u8 = 1 << 2;
    pub const TIMEOUT: u8 = 1 << 3;
    pub const DEGRADED: u8 = 1 << 4;

    /// Whether a host with these health flags is in one of the states (Envoy `HostImplBase::healthStatus`).
    pub fn allows(self, flags: u32) -> bool {
        let any = |wanted: u32| flags & wanted != 0;
        let status = if any(FAILED_ACTIVE_HC | FAILED_OUTLIER) {
            Self::UNHEALTHY
        } else if any(DRAINING_EDS) {
            Self::DRAINING
        } else if any(TIMEOUT_EDS) {
            Self::TIMEOUT
        } else if any(FAILED_EDS) {
            Self::UNHEALTHY
        } else if any(DEGRADED_ACTIVE_HC | DEGRADED_EDS | DEGRADED_OUTLIER) {
            Self::DEGRADED
        } else {
            Self::HEALTHY
        };
        self.0 & status != 0
    }
}

impl Default for HostStatuses {
    fn default() -> Self {
        Self(Self::HEALTHY | Self::DEGRADED)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: LbPolicy::RoundRobin,
            panic_threshold_percent: 50,
            locality_weighted: false,
            zone_aware: ZoneAware::default(),
            slow_start: None,
            subsets: None,
            hashing: Hashing::default(),
            override_host: HostStatuses::default(),
        }
    }
}

/// Which function places hosts on a ring (Envoy `HashFunction`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashFunction {
    #[default]
    XxHash,
    MurmurHash2,
}

/// What both hash policies have in common (Envoy `ConsistentHashingLbConfig`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashing {
    /// A host stands under its name instead of its address.
    pub use_hostname: bool,
    /// The most load of a host, in percent of the average; at least 100.
    pub balance_factor: Option<u32>,
}
/// Envoy `OutlierDetection`; zero switches a detector off.
#[derive(Clone, Debug, PartialEq)]
pub struct OutlierSettings {
    pub consecutive_5xx: u32,
    pub consecutive_gateway_failure: u32,
    pub consecutive_local_origin_failure: u32,
    pub split_external_local_origin_errors: bool,
    pub enforcing_consecutive_5xx: u32,
    pub enforcing_consecutive_gateway_failure: u32,
    pub enforcing_consecutive_local_origin_failure: u32,
    pub enforcing_success_rate: u32,
    pub enforcing_local_origin_success_rate: u32,
    pub success_rate_minimum_hosts: u32,
    pub success_rate_request_volume: u32,
    /// In thousandths (Envoy default 1900 = 1.9 standard deviations).
    pub success_rate_stdev_factor: u32,
    pub enforcing_failure_percentage: u32,
    pub enforcing_failure_percentage_local_origin: u32,
    pub failure_percentage_threshold: u32,
    pub failure_percentage_minimum_hosts: u32,
    pub failure_percentage_request_volume: u32,
    pub interval: Duration,
    pub base_ejection_time: Duration,
    pub max_ejection_time: Duration,
    pub max_ejection_time_jitter: Duration,
    pub max_ejection_percent: u32,
    pub always_eject_one_host: bool,
    /// Hosts that answer with `x-envoy-degraded` come last for a while.
    pub detect_degraded_hosts: bool,
    /// A passed active health check ends an ejection (`successful_active_health_check_uneject_host`; default true).
    pub uneject_on_check: bool,
}

impl Default for OutlierSettings {
    /// Envoy's defaults.
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_failure: 5,
            consecutive_local_origin_failure: 5,
            split_external_local_origin_errors: false,
            enforcing_consecutive_5xx: 100,
            enforcing_consecutive_gateway_failure: 0,
            enforcing_consecutive_local_origin_failure: 100,
            enforcing_success_rate: 100,
            enforcing_local_origin_success_rate: 100,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1900,
            enforcing_failure_percentage: 0,
            enforcing_failure_percentage_local_origin: 0,
            failure_percentage_threshold: 85,
            failure_percentage_minimum_hosts: 5,
            failure_percentage_request_volume: 50,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one_host: false,
            detect_degraded_hosts: false,
            uneject_on_check: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_keeps_a_host_in_the_states_that_are_named() {
        let default = HostStatuses::default();
        for (flags, allowed) in [
            (0, true),
            (DEGRADED_EDS, true),
            (FAILED_EDS, false),
            (FAILED_EDS | DRAINING_EDS, false),
            (FAILED_OUTLIER, false),
            (FAILED_ACTIVE_HC | DEGRADED_EDS, false),
        ] {
            assert_eq!(default.allows(flags), allowed, "{flags:b}");
        }
        let draining = HostStatuses(HostStatuses::HEALTHY | HostStatuses::DRAINING);
        assert!(draining.allows(FAILED_EDS | DRAINING_EDS) && !draining.allows(FAILED_EDS) && !draining.allows(DEGRADED_EDS));
        assert!(!draining.allows(FAILED_EDS | DRAINING_EDS | FAILED_OUTLIER), "what failed here counts before what is said");
    }
}
