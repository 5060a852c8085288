//! Traffic policies: load balancing, pools, outlier detection, TLS towards a destination, retries.
use super::checker::Checker;
use super::text;
use crate::kinds::destination_rule::*;
use crate::kinds::virtual_service::HttpRetry;
use crate::schema::path::join;

/// Largest table Envoy's Maglev takes; it must be a prime below this.
const MAX_MAGLEV_TABLE: u64 = 5_000_011;

pub(super) fn check(policy: &TrafficPolicy, path: &str, check: &mut Checker<'_>) {
    let blocks = Blocks {
        load_balancer: policy.load_balancer.as_ref(),
        connection_pool: policy.connection_pool.as_ref(),
        outlier_detection: policy.outlier_detection.as_ref(),
        tls: policy.tls.as_ref(),
    };
    let others = !policy.port_level_settings.is_empty()
        || policy.tunnel.is_some()
        || policy.proxy_protocol.is_some()
        || policy.retry_budget.is_some();
    if blocks.is_empty() && !others {
        check.error_with(path, "the policy is empty", "give it at least one field, or take it away");
    }
    blocks.check(path, check);
    for (index, settings) in policy.port_level_settings.iter().enumerate() {
        let at = format!("{path}.portLevelSettings[{index}]");
        match &settings.port {
            Some(port) => check.expect(&join(&at, "port"), text::port(port.number)),
            None => check.error(&at, "port is required"),
        }
        let blocks = Blocks {
            load_balancer: settings.load_balancer.as_ref(),
            connection_pool: settings.connection_pool.as_ref(),
            outlier_detection: settings.outlier_detection.as_ref(),
            tls: settings.tls.as_ref(),
        };
        if blocks.is_empty() {
            check.error(&at, "the policy of this port is empty");
        }
        blocks.check(&at, check);
    }
}

/// What a policy and a port-level policy have in common.
struct Blocks<'a> {
    load_balancer: Option<&'a LoadBalancerSettings>,
    connection_pool: Option<&'a ConnectionPoolSettings>,
    outlier_detection: Option<&'a OutlierDetection>,
    tls: Option<&'a ClientTlsSettings>,
}

impl Blocks<'_> {
    fn is_empty(&self) -> bool {
        self.load_balancer.is_none() && self.connection_pool.is_none() && self.outlier_detection.is_none() && self.tls.is_none()
    }

    fn check(&self, path: &str, check: &mut Checker<'_>) {
        if let Some(settings) = self.load_balancer {
            load_balancer(settings, &join(path, "loadBalancer"), check);
        }
        if let Some(settings) = self.connection_pool {
            connection_pool(settings, &join(path, "connectionPool"), check);
        }
        if let Some(settings) = self.outlier_detection {
            outlier_detection(settings, &join(path, "outlierDetection"), check);
        }
        if let Some(settings) = self.tls {
            client_tls(settings, &join(path, "tls"), check);
        }
    }
}

fn load_balancer(settings: &LoadBalancerSettings, path: &str, check: &mut Checker<'_>) {
    if settings.locality_lb_setting.is_some() && settings.zone_aware_lb_setting.is_some() {
        check.error(&join(path, "zoneAwareLbSetting"), "zoneAwareLbSetting cannot stand beside localityLbSetting");
    }
    warmup(settings, path, check);
    let Some(hash) = &settings.consistent_hash else { return };
    let path = join(path, "consistentHash");
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip == Some(true),
        hash.http_query_parameter_name.is_some(),
    ];
    if !keys.contains(&true) {
        check.error(&path, "one of httpHeaderName, httpCookie, useSourceIp: true, httpQueryParameterName is required");
    }
    if let Some(cookie) = &hash.http_cookie {
        let at = join(&path, "httpCookie");
        if cookie.name.is_empty() {
            check.error(&at, "name is required");
        }
        for (index, attribute) in cookie.attributes.iter().enumerate() {
            let at = format!("{at}.attributes[{index}]");
            let again = cookie.attributes[..index].iter().any(|other| other.name == attribute.name);
            if attribute.name.is_empty() {
                check.error(&at, "name is required");
            } else if again {
                check.error(&at, format!("the attribute {:?} is given twice", attribute.name));
            }
        }
    }
    if hash.minimum_ring_size.is_some_and(|size| size > 0) {
        let at = join(&path, "minimumRingSize");
        check.warning(&at, "is the old place; write ringHash with minimumRingSize under it");
        if hash.ring_hash.is_some() || hash.maglev.is_some() {
            check.error(&at, "minimumRingSize cannot stand beside ringHash or maglev");
        }
    }
    if let Some(maglev) = &hash.maglev {
        let size = maglev.table_size.unwrap_or_default();
        if size == 0 || size >= MAX_MAGLEV_TABLE || !is_prime(size) {
            check.error(&join(&path, "maglev"), format!("tableSize must be a prime number below {MAX_MAGLEV_TABLE}, such as 65537"));
        }
    }
}

fn warmup(settings: &LoadBalancerSettings, path: &str, check: &mut Checker<'_>) {
    text::optional_duration(check, path, "warmupDurationSecs", settings.warmup_duration_secs);
    let slow =
        matches!(settings.simple, None | Some(SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest | SimpleLb::RoundRobin));
    let at = join(path, "warmup");
    if (settings.warmup.is_some() || settings.warmup_duration_secs.is_some()) && !(slow && settings.consistent_hash.is_none()) {
        let at = if settings.warmup.is_some() { at.clone() } else { join(path, "warmupDurationSecs") };
        check.warning(&at, "has an effect only with ROUND_ROBIN and LEAST_REQUEST");
    }
    let Some(warmup) = &settings.warmup else { return };
    if settings.warmup_duration_secs.is_some() {
        check.error(&join(path, "warmupDurationSecs"), "warmupDurationSecs cannot stand beside warmup");
    }
    match warmup.duration {
        None => check.error(&at, "duration is required"),
        duration => text::optional_duration(check, &at, "duration", duration),
    }
    if warmup.minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        check.error(&join(&at, "minimumPercent"), "must be 0 to 100");
    }
    if warmup.aggression.is_some_and(|aggression| aggression < 1.0 || !aggression.is_finite()) {
        check.error(&join(&at, "aggression"), "must be 1 or more");
    }
}

/// For numbers below [`MAX_MAGLEV_TABLE`]: at most a thousand divisions.
fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|factor| factor * factor <= number).all(|factor| !number.is_multiple_of(factor))
}

fn connection_pool(settings: &ConnectionPoolSettings, path: &str, check: &mut Checker<'_>) {
    if settings.tcp.is_none() && settings.http.is_none() {
        check.error(path, "tcp or http is required");
    }
    if let Some(tcp) = &settings.tcp {
        let at = join(path, "tcp");
        text::optional_duration(check, &at, "connectTimeout", tcp.connect_timeout);
        text::optional_duration(check, &at, "maxConnectionDuration", tcp.max_connection_duration);
        // 0 turns the idle timeout off.
        text::optional_duration(check, &at, "idleTimeout", tcp.idle_timeout.filter(|timeout| !timeout.is_zero()));
        if let Some(keepalive) = &tcp.tcp_keepalive {
            let at = join(&at, "tcpKeepalive");
            text::optional_duration(check, &at, "time", keepalive.time);
            text::optional_duration(check, &at, "interval", keepalive.interval);
        }
    }
    if let Some(http) = &settings.http {
        let at = join(path, "http");
        text::optional_duration(check, &at, "idleTimeout", http.idle_timeout);
        if http.use_client_protocol && http.h2_upgrade_policy == H2UpgradePolicy::Upgrade {
            check.error(&join(&at, "useClientProtocol"), "useClientProtocol cannot stand beside h2UpgradePolicy: UPGRADE");
        }
        if let Some(keepalive) = &http.http2_keep_alive {
            let at = join(&at, "http2KeepAlive");
            for (field, value) in [("interval", keepalive.interval), ("timeout", keepalive.timeout)] {
                match value {
                    Some(value) => check.expect(&join(&at, field), text::duration(value)),
                    None => check.error(&at, format!("{field} is required")),
                }
            }
        }
    }
}

fn outlier_detection(outlier: &OutlierDetection, path: &str, check: &mut Checker<'_>) {
    text::optional_duration(check, path, "interval", outlier.interval);
    text::optional_duration(check, path, "baseEjectionTime", outlier.base_ejection_time);
    let percents = [("maxEjectionPercent", outlier.max_ejection_percent), ("minHealthPercent", outlier.min_health_percent)];
    for (field, percent) in percents {
        if let Some(percent) = percent.filter(|percent| percent.get() > 100) {
            check.error(&join(path, field), format!("{percent} is not a percentage from 0 to 100"));
        }
    }
    if !outlier.split_external_local_origin_errors && outlier.consecutive_local_origin_failures.is_some_and(|count| count > 0) {
        check.error_with(
            &join(path, "consecutiveLocalOriginFailures"),
            "has no effect by itself",
            "add splitExternalLocalOriginErrors: true",
        );
    }
}

fn client_tls(tls: &ClientTlsSettings, path: &str, check: &mut Checker<'_>) {
    let has_file = tls.client_certificate.is_some() || tls.private_key.is_some() || tls.ca_certificates.is_some();
    let verifies = matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual);
    if verifies && tls.insecure_skip_verify == Some(true) && (tls.ca_certificates.is_some() || !tls.subject_alt_names.is_empty()) {
        check.error(&join(path, "insecureSkipVerify"), "cannot stand beside caCertificates or subjectAltNames: nothing would be verified");
    }
    if verifies && tls.credential_name.is_some() {
        if has_file {
            check.error(&join(path, "credentialName"), "cannot stand beside clientCertificate, privateKey or caCertificates");
        }
        return;
    }
    if tls.mode == ClientTlsMode::Mutual {
        for (field, value) in [("clientCertificate", &tls.client_certificate), ("privateKey", &tls.private_key)] {
            if value.is_none() {
                check.error(path, format!("mode MUTUAL needs {field}"));
            }
        }
    }
    if tls.mode == ClientTlsMode::IstioMutual && (has_file || tls.credential_name.is_some()) {
        check.warning(path, "mode ISTIO_MUTUAL uses the mesh's own certificates; the files named here are ignored");
    }
}

/// Conditions of `retryOn`, for HTTP and gRPC (Envoy: router filter, x-envoy-retry-on and x-envoy-retry-grpc-on).
const RETRY_CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

pub(super) fn retries(retries: &HttpRetry, path: &str, check: &mut Checker<'_>) {
    if retries.attempts < 0 {
        check.error(&join(path, "attempts"), "cannot be negative; 0 turns retries off");
    }
    let configured = retries.per_try_timeout.is_some() || retries.retry_on.is_some() || retries.retry_remote_localities.is_some();
    if retries.attempts == 0 && configured {
        check.error_with(path, "attempts is 0 or absent, which turns retries off, yet more is configured", "give attempts");
    }
    text::optional_duration(check, path, "perTryTimeout", retries.per_try_timeout);
    text::optional_duration(check, path, "backoff", retries.backoff);
    for condition in retries.retry_on.iter().flat_map(|conditions| conditions.split(',')) {
        let is_status = condition.parse::<u16>().is_ok_and(|status| (100..600).contains(&status));
        if !is_status {
            check.expect(&join(path, "retryOn"), text::one_of(condition.trim(), &RETRY_CONDITIONS));
        }
    }
}
