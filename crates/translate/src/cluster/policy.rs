//! From a traffic policy to a cluster's limits, balancing, ejection and protocol.
use std::num::NonZeroU32;
use std::time::Duration;

use lateen_model::kinds::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, H2UpgradePolicy, LoadBalancerSettings, OutlierDetection, SimpleLb,
    TcpKeepalive, TrafficPolicy,
};

use crate::wire::{self, any, cluster_v3, core_v3, http_v3, type_v3};
use crate::world::mesh::Mesh;
use crate::world::protocol::Protocol;

/// The part of a policy that applies to one port, with nothing left to inherit.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PortPolicy {
    pub(crate) load_balancer: Option<LoadBalancerSettings>,
    pub(crate) connection_pool: Option<ConnectionPoolSettings>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) tls: Option<ClientTlsSettings>,
}

impl PortPolicy {
    /// A port's own settings replace the rule's as a whole: what they leave out is the default, not the rule's.
    pub(crate) fn of(policy: Option<&TrafficPolicy>, port: u16) -> (Self, bool) {
        let Some(policy) = policy else { return (Self::default(), false) };
        let own = policy.port_level_settings.iter().find(|settings| settings.port.as_ref().is_some_and(|selector| selector.number == port));
        match own {
            Some(own) => (
                Self {
                    load_balancer: own.load_balancer.clone(),
                    connection_pool: own.connection_pool.clone(),
                    outlier_detection: own.outlier_detection.clone(),
                    tls: own.tls.clone(),
                },
                true,
            ),
            None => (
                Self {
                    load_balancer: policy.load_balancer.clone(),
                    connection_pool: policy.connection_pool.clone(),
                    outlier_detection: policy.outlier_detection.clone(),
                    tls: policy.tls.clone(),
                },
                false,
            ),
        }
    }

    /// A subset's policy overrides the rule's block by block; its port-level settings override all blocks.
    #[must_use]
    pub(crate) fn overridden_by(self, subset: Option<&TrafficPolicy>, port: u16) -> Self {
        if subset.is_none() {
            return self;
        }
        let (own, port_level) = Self::of(subset, port);
        if port_level {
            return own;
        }
        Self {
            load_balancer: own.load_balancer.or(self.load_balancer),
            connection_pool: own.connection_pool.or(self.connection_pool),
            outlier_detection: own.outlier_detection.or(self.outlier_detection),
            tls: own.tls.or(self.tls),
        }
    }

    fn simple(&self) -> SimpleLb {
        self.load_balancer.as_ref().and_then(|lb| lb.simple).unwrap_or_default()
    }
}

/// A cluster under construction: the HTTP options are packed at the end, as several settings share them.
pub(crate) struct Draft {
    pub(crate) cluster: cluster_v3::Cluster,
    pub(crate) http: Option<http_v3::HttpProtocolOptions>,
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

impl Draft {
    pub(crate) fn new(name: &str, kind: cluster_v3::cluster::DiscoveryType) -> Self {
        Self {
            cluster: cluster_v3::Cluster {
                name: name.to_owned(),
                alt_stat_name: crate::names::stat_prefix(name),
                cluster_discovery_type: Some(cluster_v3::cluster::ClusterDiscoveryType::Type(kind as i32)),
                common_lb_config: Some(cluster_v3::cluster::CommonLbConfig::default()),
                ..Default::default()
            },
            http: None,
        }
    }

    pub(crate) fn http(&mut self) -> &mut http_v3::HttpProtocolOptions {
        self.http.get_or_insert_with(Default::default)
    }

    fn common_http(&mut self) -> &mut core_v3::HttpProtocolOptions {
        self.http().common_http_protocol_options.get_or_insert_with(Default::default)
    }

    pub(crate) fn kind(&self) -> Option<cluster_v3::cluster::DiscoveryType> {
        match self.cluster.cluster_discovery_type {
            Some(cluster_v3::cluster::ClusterDiscoveryType::Type(kind)) => kind.try_into().ok(),
            _ => None,
        }
    }

    /// HTTP/2 and nothing else.
    pub(crate) fn force_http2(&mut self) {
        use http_v3::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig};
        let options = self.http();
        if options.upstream_protocol_options.is_none() {
            options.upstream_protocol_options = Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(core_v3::Http2ProtocolOptions::default())),
            }));
        }
    }

    /// The version that the caller spoke.
    pub(crate) fn follow_client_protocol(&mut self) {
        self.http().upstream_protocol_options = Some(follow_client());
    }

    pub(crate) fn is_http2(&self) -> bool {
        self.http.as_ref().is_some_and(|options| http2_options(options).is_some())
    }

    pub(crate) fn build(mut self) -> cluster_v3::Cluster {
        if let Some(mut options) = self.http {
            // Envoy wants the choice of version made.
            options.upstream_protocol_options.get_or_insert_with(explicit_http1);
            self.cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), any(&options));
        }
        self.cluster
    }
}

fn http2_options(options: &http_v3::HttpProtocolOptions) -> Option<&core_v3::Http2ProtocolOptions> {
    use http_v3::http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig};
    match options.upstream_protocol_options.as_ref()? {
        UpstreamProtocolOptions::ExplicitHttpConfig(config) => match config.protocol_config.as_ref()? {
            ProtocolConfig::Http2ProtocolOptions(http2) => Some(http2),
            _ => None,
        },
        _ => None,
    }
}

fn http2_options_mut(options: &mut http_v3::HttpProtocolOptions) -> Option<&mut core_v3::Http2ProtocolOptions> {
    use http_v3::http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig};
    match options.upstream_protocol_options.as_mut()? {
        UpstreamProtocolOptions::ExplicitHttpConfig(config) => match config.protocol_config.as_mut()? {
            ProtocolConfig::Http2ProtocolOptions(http2) => Some(http2),
            _ => None,
        },
        _ => None,
    }
}

fn explicit_http1() -> http_v3::http_protocol_options::UpstreamProtocolOptions {
    use http_v3::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig};
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::HttpProtocolOptions(core_v3::Http1ProtocolOptions::default())),
    })
}

/// Upstream options that repeat the caller's version.
pub(crate) fn follow_client() -> http_v3::http_protocol_options::UpstreamProtocolOptions {
    use http_v3::http_protocol_options::{UpstreamProtocolOptions, UseDownstreamHttpConfig};
    UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(core_v3::Http1ProtocolOptions::default()),
        http2_protocol_options: Some(core_v3::Http2ProtocolOptions::default()),
        ..Default::default()
    })
}

/// How long a keep-alive probe may go unanswered when the rule does not say; gRPC's own default.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Envoy refuses a cluster for a zero where time is needed; it counts as left out.
fn positive(duration: Option<Duration>) -> Option<Duration> {
    duration.filter(|duration| !duration.is_zero())
}

/// The largest ring Envoy builds.
const MAX_RING: u64 = 8_388_608;

/// Whether a port that is not HTTP/2 already is spoken to in HTTP/2.
fn upgrades_to_http2(pool: Option<&ConnectionPoolSettings>, protocol: Protocol, mesh: &Mesh) -> bool {
    if let Some(http) = pool.and_then(|pool| pool.http.as_ref()) {
        if http.use_client_protocol {
            return false;
        }
        match http.h2_upgrade_policy {
            H2UpgradePolicy::Upgrade => return true,
            H2UpgradePolicy::DoNotUpgrade => return false,
            H2UpgradePolicy::Default => {}
        }
    }
    protocol.is_http() && mesh.h2_upgrade
}

/// Limits, timeouts and the HTTP version; for clusters of either direction.
pub(crate) fn apply_connection_pool(draft: &mut Draft, mesh: &Mesh, pool: Option<&ConnectionPoolSettings>) {
    let default = ConnectionPoolSettings::default();
    let pool = pool.unwrap_or(&default);
    let (tcp, http) = (pool.tcp.as_ref(), pool.http.as_ref());
    let limit = |value: Option<NonZeroU32>| Some(value.map_or(u32::MAX, NonZeroU32::get));
    draft.cluster.circuit_breakers = Some(cluster_v3::CircuitBreakers {
        thresholds: vec![cluster_v3::circuit_breakers::Thresholds {
            max_connections: limit(tcp.and_then(|tcp| tcp.max_connections)),
            max_pending_requests: limit(http.and_then(|http| http.http1_max_pending_requests)),
            max_requests: limit(http.and_then(|http| http.http2_max_requests)),
            max_retries: limit(http.and_then(|http| http.max_retries)),
            ..Default::default()
        }],
        ..Default::default()
    });
    let connect = positive(tcp.and_then(|tcp| tcp.connect_timeout)).unwrap_or(mesh.connect_timeout);
    draft.cluster.connect_timeout = Some(wire::duration(connect));
    apply_keepalive(draft, mesh.tcp_keepalive.as_ref());
    apply_keepalive(draft, tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()));

    let idle = http.and_then(|http| http.idle_timeout).or(tcp.and_then(|tcp| tcp.idle_timeout));
    if let Some(idle) = idle {
        draft.common_http().idle_timeout = Some(wire::duration(idle));
    }
    if let Some(most) = http.and_then(|http| http.max_requests_per_connection) {
        draft.common_http().max_requests_per_connection = Some(most.get());
    }
    if let Some(longest) = tcp.and_then(|tcp| tcp.max_connection_duration) {
        draft.common_http().max_connection_duration = Some(wire::duration(longest));
    }
    let Some(http) = http else { return };
    if let Some(http2) = draft.http.as_mut().and_then(http2_options_mut) {
        http2.max_concurrent_streams = http.max_concurrent_streams.map(NonZeroU32::get).or(http2.max_concurrent_streams);
        if let Some(keepalive) = &http.http2_keep_alive {
            http2.connection_keepalive = Some(core_v3::KeepaliveSettings {
                interval: positive(keepalive.interval).map(wire::duration),
                // Envoy wants it set where there is an interval.
                timeout: Some(wire::duration(positive(keepalive.timeout).unwrap_or(KEEPALIVE_TIMEOUT))),
                ..Default::default()
            });
        }
    }
    if http.use_client_protocol {
        draft.follow_client_protocol();
    }
}

fn apply_keepalive(draft: &mut Draft, keepalive: Option<&TcpKeepalive>) {
    let Some(keepalive) = keepalive else { return };
    let options = draft.cluster.upstream_connection_options.get_or_insert_with(Default::default);
    let tcp = options.tcp_keepalive.get_or_insert_with(Default::default);
    let seconds = |value: Option<Duration>| value.map(|value| u32::try_from(value.as_secs()).unwrap_or(u32::MAX));
    tcp.keepalive_probes = keepalive.probes.map(NonZeroU32::get).or(tcp.keepalive_probes);
    tcp.keepalive_time = seconds(keepalive.time).or(tcp.keepalive_time);
    tcp.keepalive_interval = seconds(keepalive.interval).or(tcp.keepalive_interval);
}

/// Everything that only a cluster of outbound traffic has, but for TLS.
pub(crate) fn apply_outbound(draft: &mut Draft, mesh: &Mesh, policy: &PortPolicy, protocol: Protocol) {
    if upgrades_to_http2(policy.connection_pool.as_ref(), protocol, mesh) {
        draft.force_http2();
    }
    apply_connection_pool(draft, mesh, policy.connection_pool.as_ref());
    if let Some(outlier) = &policy.outlier_detection {
        apply_outlier_detection(&mut draft.cluster, outlier);
    }
    apply_load_balancer(&mut draft.cluster, policy);
}

fn apply_outlier_detection(cluster: &mut cluster_v3::Cluster, outlier: &OutlierDetection) {
    // A count of 0 switches that kind of ejection off.
    let enforcing = |count: Option<u32>| count.map(|count| if count > 0 { 100 } else { 0 });
    let split = outlier.split_external_local_origin_errors;
    let local = outlier.consecutive_local_origin_failures.filter(|count| split && *count > 0);
    cluster.outlier_detection = Some(cluster_v3::OutlierDetection {
        enforcing_success_rate: Some(0),
        consecutive_5xx: outlier.consecutive_5xx_errors,
        enforcing_consecutive_5xx: enforcing(outlier.consecutive_5xx_errors),
        consecutive_gateway_failure: outlier.consecutive_gateway_errors,
        enforcing_consecutive_gateway_failure: enforcing(outlier.consecutive_gateway_errors),
        interval: positive(outlier.interval).map(wire::duration),
        base_ejection_time: positive(outlier.base_ejection_time).map(wire::duration),
        max_ejection_percent: outlier.max_ejection_percent.map(|percent| percent.get().min(100)),
        split_external_local_origin_errors: split,
        consecutive_local_origin_failure: local,
        enforcing_consecutive_local_origin_failure: local.map(|_| 100),
        enforcing_local_origin_success_rate: split.then_some(0),
        ..Default::default()
    });
    // Unset means no panic: with the few endpoints of a service, Envoy's 50 % would readmit ejected ones at once.
    let threshold = f64::from(outlier.min_health_percent.map_or(0, |percent| percent.get().min(100)));
    cluster.common_lb_config.get_or_insert_with(Default::default).healthy_panic_threshold = Some(type_v3::Percent { value: threshold });
}

fn apply_load_balancer(cluster: &mut cluster_v3::Cluster, policy: &PortPolicy) {
    use cluster_v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
    let original_dst = ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32);
    let chosen = match policy.simple() {
        SimpleLb::Passthrough => {
            cluster.cluster_discovery_type = Some(original_dst.clone());
            cluster.load_assignment = None;
            LbPolicy::ClusterProvided
        }
        SimpleLb::RoundRobin => LbPolicy::RoundRobin,
        SimpleLb::Random => LbPolicy::Random,
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => LbPolicy::LeastRequest,
    };
    cluster.lb_policy = chosen as i32;
    cluster.lb_config =
        policy.load_balancer.as_ref().and_then(slow_start).and_then(|slow_start_config| slow_starting(chosen, slow_start_config));
    if cluster.cluster_discovery_type == Some(original_dst) {
        cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    } else if let Some(hash) = policy.load_balancer.as_ref().and_then(|lb| lb.consistent_hash.as_ref()) {
        apply_consistent_hash(cluster, hash);
    }
}

/// How a new endpoint gets its share little by little.
fn slow_start(settings: &LoadBalancerSettings) -> Option<cluster_v3::cluster::SlowStartConfig> {
    let warmup = settings.warmup.clone().unwrap_or_default();
    let window = positive(warmup.duration.or(settings.warmup_duration_secs))?;
    // Envoy wants a name for a number that could be changed at run time.
    let aggression = |value| core_v3::RuntimeDouble { default_value: value, runtime_key: "slow_start.aggression".to_owned() };
    Some(cluster_v3::cluster::SlowStartConfig {
        slow_start_window: Some(wire::duration(window)),
        aggression: warmup.aggression.filter(|value| *value > 1.0).map(aggression),
        min_weight_percent: warmup.minimum_percent.map(|value| type_v3::Percent { value: value.clamp(0.0, 100.0) }),
    })
}

/// The other policies have no weights that could grow.
fn slow_starting(
    policy: cluster_v3::cluster::LbPolicy,
    slow_start: cluster_v3::cluster::SlowStartConfig,
) -> Option<cluster_v3::cluster::LbConfig> {
    use cluster_v3::cluster::{LbConfig, LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig};
    let slow_start_config = Some(slow_start);
    match policy {
        LbPolicy::RoundRobin => Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config })),
        LbPolicy::LeastRequest => Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig { slow_start_config, ..Default::default() })),
        _ => None,
    }
}

/// The table or ring that a hash policy of the route looks up in.
pub(crate) fn apply_consistent_hash(cluster: &mut cluster_v3::Cluster, hash: &ConsistentHashLb) {
    use cluster_v3::cluster::{LbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig};
    if let Some(maglev) = &hash.maglev {
        cluster.lb_policy = LbPolicy::Maglev as i32;
        cluster.lb_config =
            maglev.table_size.filter(|size| *size > 0).map(|size| LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(size) }));
        return;
    }
    let size = match &hash.ring_hash {
        Some(ring) => ring.minimum_ring_size.filter(|size| *size > 0),
        None => Some(hash.minimum_ring_size.filter(|size| *size > 0).unwrap_or(1024)),
    };
    cluster.lb_policy = LbPolicy::RingHash as i32;
    cluster.lb_config =
        size.map(|size| LbConfig::RingHashLbConfig(RingHashLbConfig { minimum_ring_size: Some(size.min(MAX_RING)), ..Default::default() }));
}
