//! DestinationRule: how the endpoints of a host are called (`istio.io/api/networking/v1alpha3/destination_rule.proto`).
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use lateen_core::Labels;

use super::common::{PortSelector, WorkloadSelector};

message! {
    pub struct DestinationRule "DestinationRule" {
        /// A short name is completed with the namespace of the rule.
        host: String = honoured,
        traffic_policy: Option<TrafficPolicy> = honoured,
        subsets: Vec<Subset> = honoured,
        export_to: Vec<String> = honoured,
        workload_selector: Option<WorkloadSelector> = refused("choosing client workloads is not supported yet; leave it out to apply the rule to all of them"),
    }
}

message! {
    pub struct Subset "Subset" {
        name: String = honoured,
        labels: Labels = honoured,
        /// Overrides the rule's own block by block.
        traffic_policy: Option<TrafficPolicy> = honoured,
    }
}

message! {
    pub struct TrafficPolicy "TrafficPolicy" {
        load_balancer: Option<LoadBalancerSettings> = honoured,
        connection_pool: Option<ConnectionPoolSettings> = honoured,
        outlier_detection: Option<OutlierDetection> = honoured,
        tls: Option<ClientTlsSettings> = honoured,
        /// Each replaces the whole policy for its port.
        port_level_settings: Vec<PortTrafficPolicy> = honoured,
        tunnel: Option<TunnelSettings> = refused("tunnelling is not supported yet"),
        proxy_protocol: Option<ProxyProtocol> = refused("the PROXY protocol towards a destination is not supported yet"),
        retry_budget: Option<RetryBudget> = warned("has no effect yet: retries are bounded by connectionPool.http.maxRetries"),
    }
}

message! {
    pub struct PortTrafficPolicy "TrafficPolicy.PortTrafficPolicy" {
        port: Option<PortSelector> = honoured,
        load_balancer: Option<LoadBalancerSettings> = honoured,
        connection_pool: Option<ConnectionPoolSettings> = honoured,
        outlier_detection: Option<OutlierDetection> = honoured,
        tls: Option<ClientTlsSettings> = honoured,
    }
}

message! {
    pub struct TunnelSettings "TrafficPolicy.TunnelSettings" {
        protocol: Option<String> = honoured,
        target_host: String = honoured,
        target_port: u16 = honoured,
    }
}

message! {
    pub struct ProxyProtocol "TrafficPolicy.ProxyProtocol" {
        version: ProxyProtocolVersion = honoured,
    }
}

enumeration! {
    pub enum ProxyProtocolVersion {
        V1 = "V1",
        V2 = "V2",
    }
}

message! {
    pub struct RetryBudget "TrafficPolicy.RetryBudget" {
        percent: Option<f64> = honoured,
        min_retry_concurrency: Option<u32> = honoured,
        budget_interval: Option<Duration> = honoured,
    }
}

message! {
    pub struct LoadBalancerSettings "LoadBalancerSettings" {
        simple: Option<SimpleLb> = honoured,
        consistent_hash: Option<ConsistentHashLb> = honoured,
        locality_lb_setting: Option<LocalityLoadBalancerSetting> = warned("has no effect yet: endpoints have no localities"),
        zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting> = warned("has no effect yet: endpoints have no localities"),
        /// The old way to write `warmup` with nothing but a duration.
        warmup_duration_secs: Option<Duration> = honoured,
        warmup: Option<WarmupConfiguration> = honoured,
    }
    oneof [simple, consistent_hash]
}

enumeration! {
    pub enum SimpleLb {
        /// The default: least request.
        Unspecified = "UNSPECIFIED",
        /// The old name of `LEAST_REQUEST`.
        LeastConn = "LEAST_CONN",
        Random = "RANDOM",
        /// The address the caller connected to.
        Passthrough = "PASSTHROUGH",
        RoundRobin = "ROUND_ROBIN",
        LeastRequest = "LEAST_REQUEST",
    }
}

message! {
    pub struct ConsistentHashLb "LoadBalancerSettings.ConsistentHashLB" {
        http_header_name: Option<String> = honoured,
        http_cookie: Option<HttpCookie> = honoured,
        use_source_ip: Option<bool> = honoured,
        http_query_parameter_name: Option<String> = honoured,
        ring_hash: Option<RingHash> = honoured,
        maglev: Option<Maglev> = honoured,
        /// The old place of `ring_hash.minimum_ring_size`.
        minimum_ring_size: Option<u64> = honoured,
    }
    oneof [http_header_name, http_cookie, use_source_ip, http_query_parameter_name]
    oneof [ring_hash, maglev]
}

message! {
    pub struct HttpCookie "HTTPCookie" {
        name: String = honoured,
        path: Option<String> = honoured,
        /// Absent: the cookie is not made when missing; 0: a session cookie.
        ttl: Option<Duration> = honoured,
        attributes: Vec<CookieAttribute> = honoured,
    }
}

message! {
    pub struct CookieAttribute "HTTPCookie.Attribute" {
        name: String = honoured,
        value: Option<String> = honoured,
    }
}

message! {
    pub struct RingHash "RingHash" {
        /// 1024 when absent.
        minimum_ring_size: Option<u64> = honoured,
    }
}

message! {
    pub struct Maglev "MagLev" {
        /// 65537 when absent; a prime.
        table_size: Option<u64> = honoured,
    }
}

message! {
    pub struct WarmupConfiguration "WarmupConfiguration" {
        duration: Option<Duration> = honoured,
        minimum_percent: Option<f64> = honoured,
        aggression: Option<f64> = honoured,
    }
}

message! {
    pub struct LocalityLoadBalancerSetting "LocalityLoadBalancerSetting" {
        distribute: Vec<LocalityDistribute> = honoured,
        failover: Vec<LocalityFailover> = honoured,
        failover_priority: Vec<String> = honoured,
        enabled: Option<bool> = honoured,
    }
}

message! {
    pub struct LocalityDistribute "LocalityLoadBalancerSetting.Distribute" {
        from: String = honoured,
        to: BTreeMap<String, u32> = honoured,
    }
}

message! {
    pub struct LocalityFailover "LocalityLoadBalancerSetting.Failover" {
        from: String = honoured,
        to: String = honoured,
    }
}

message! {
    pub struct ZoneAwareLoadBalancerSetting "ZoneAwareLoadBalancerSetting" {
        enabled: Option<bool> = honoured,
        failover: Vec<LocalityFailover> = honoured,
        failover_priority: Vec<String> = honoured,
        min_cluster_size: Option<u64> = honoured,
    }
}

message! {
    pub struct ConnectionPoolSettings "ConnectionPoolSettings" {
        tcp: Option<TcpSettings> = honoured,
        http: Option<HttpSettings> = honoured,
    }
}

message! {
    pub struct TcpSettings "ConnectionPoolSettings.TCPSettings" {
        /// Absent means 2^32-1.
        max_connections: Option<NonZeroU32> = honoured,
        /// 10 s when absent.
        connect_timeout: Option<Duration> = honoured,
        tcp_keepalive: Option<TcpKeepalive> = honoured,
        max_connection_duration: Option<Duration> = honoured,
        /// 1 h when absent.
        idle_timeout: Option<Duration> = honoured,
    }
}

message! {
    pub struct TcpKeepalive "TcpKeepalive" {
        probes: Option<NonZeroU32> = honoured,
        time: Option<Duration> = honoured,
        interval: Option<Duration> = honoured,
    }
}

message! {
    /// Absent limits mean 2^32-1.
    pub struct HttpSettings "ConnectionPoolSettings.HTTPSettings" {
        /// Requests that wait for a connection (HTTP/1 and HTTP/2).
        http1_max_pending_requests: Option<NonZeroU32> = honoured,
        /// Requests under way.
        http2_max_requests: Option<NonZeroU32> = honoured,
        /// 1 turns keep-alive off.
        max_requests_per_connection: Option<NonZeroU32> = honoured,
        /// Retries under way.
        max_retries: Option<NonZeroU32> = honoured,
        /// 1 h when absent.
        idle_timeout: Option<Duration> = honoured,
        h2_upgrade_policy: H2UpgradePolicy = honoured,
        use_client_protocol: bool = honoured,
        max_concurrent_streams: Option<NonZeroU32> = honoured,
        http2_keep_alive: Option<ConnectionKeepalive> = honoured,
    }
}

enumeration! {
    pub enum H2UpgradePolicy {
        /// What the mesh configuration says.
        Default = "DEFAULT",
        DoNotUpgrade = "DO_NOT_UPGRADE",
        Upgrade = "UPGRADE",
    }
}

message! {
    pub struct ConnectionKeepalive "ConnectionKeepalive" {
        interval: Option<Duration> = honoured,
        timeout: Option<Duration> = honoured,
    }
}

message! {
    pub struct OutlierDetection "OutlierDetection" {
        consecutive_errors: Option<NonZeroU32> = warned("is ignored by Istio; use consecutive5xxErrors or consecutiveGatewayErrors"),
        split_external_local_origin_errors: bool = honoured,
        consecutive_local_origin_failures: Option<u32> = honoured,
        /// 502, 503, 504; absent or 0 means off.
        consecutive_gateway_errors: Option<u32> = honoured,
        /// 5 when absent; 0 means off.
        consecutive_5xx_errors: Option<u32> = honoured,
        /// 10 s when absent.
        interval: Option<Duration> = honoured,
        /// 30 s when absent; grows with the ejections of the endpoint.
        base_ejection_time: Option<Duration> = honoured,
        /// 10 when absent.
        max_ejection_percent: Option<NonZeroU32> = honoured,
        /// 0 when absent: no panic mode.
        min_health_percent: Option<NonZeroU32> = honoured,
        outlier_detection_http_error_codes: Vec<u32> = warned("has no effect yet: 5xx answers count as errors"),
    }
}

message! {
    pub struct ClientTlsSettings "ClientTLSSettings" {
        mode: ClientTlsMode = honoured,
        client_certificate: Option<String> = honoured,
        private_key: Option<String> = honoured,
        /// System roots when absent.
        ca_certificates: Option<String> = honoured,
        credential_name: Option<String> = honoured,
        subject_alt_names: Vec<String> = honoured,
        sni: Option<String> = honoured,
        insecure_skip_verify: Option<bool> = honoured,
        ca_crl: Option<String> = refused("certificate revocation lists are not supported yet"),
    }
}

enumeration! {
    pub enum ClientTlsMode {
        /// Also when `tls` is given without a mode.
        Disable = "DISABLE",
        Simple = "SIMPLE",
        Mutual = "MUTUAL",
        IstioMutual = "ISTIO_MUTUAL",
    }
}

impl SimpleLb {
    /// Whether endpoints are chosen by least request: the default of Istio.
    pub fn is_least_request(self) -> bool {
        matches!(self, Self::Unspecified | Self::LeastConn | Self::LeastRequest)
    }
}
