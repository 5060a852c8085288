//! `/clusters`: each cluster's limits, and each host's health and figures.
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use http::StatusCode;
use lateen_balance::host::{
    DEGRADED_ACTIVE_HC, DEGRADED_EDS, DEGRADED_OUTLIER, DRAINING_EDS, EXCLUDED_VIA_IMMEDIATE_HC_FAIL, FAILED_ACTIVE_HC, FAILED_EDS,
    FAILED_OUTLIER, PENDING_ACTIVE_HC, PENDING_REMOVAL,
};
use lateen_balance::{Breakers, Host};
use lateen_snapshot::Cluster;
use lateen_snapshot::cluster::Discovery;
use serde_json::{Map, Value, json};

use super::endpoints;
use super::server::{Ask, Reply};
use crate::main_thread::Main;

pub(super) fn page(main: &Main, ask: &Ask<'_>) -> Reply {
    let filter = ask.parameter("filter").map(|text| regex::RegexBuilder::new(&text).size_limit(1 << 20).build()).transpose();
    let Ok(filter) = filter else { return Reply::error(StatusCode::BAD_REQUEST, "Invalid re2 regex\n") };
    let snapshot = main.snapshot();
    let shown = |cluster: &&Cluster| filter.as_ref().is_none_or(|f| f.is_match(&cluster.config.name));
    let mut clusters: Vec<&Cluster> = snapshot.clusters.iter().flatten().map(|c| &**c).filter(shown).collect();
    clusters.sort_by(|a, b| a.config.name.cmp(&b.config.name));
    let dynamic = |cluster: &Cluster| main.compiler().is_dynamic_cluster(&cluster.config.name);
    if ask.wants_json() {
        let statuses: Vec<Value> = clusters.into_iter().map(|c| status(c, dynamic(c))).collect();
        return Reply::json(&json!({ "cluster_statuses": statuses }));
    }
    let mut text = String::new();
    for cluster in clusters {
        lines(&mut text, cluster, dynamic(cluster));
    }
    Reply::text(text)
}

/// Hosts with their priority.
fn hosts(cluster: &Cluster) -> impl Iterator<Item = (usize, &Host)> {
    let priorities = cluster.hosts.priorities.iter().enumerate();
    priorities.flat_map(|(n, p)| p.localities.iter().flat_map(|l| &l.hosts).map(move |h| (n, &**h)))
}

fn figures(host: &Host) -> [(&'static str, u64, bool); 8] {
    let counters = &host.counters;
    [
        ("cx_active", counters.cx_active.load(Relaxed), true),
        ("cx_connect_fail", counters.cx_connect_fail.load(Relaxed), false),
        ("cx_total", counters.cx_total.load(Relaxed), false),
        ("rq_active", host.active_requests().into(), true),
        ("rq_error", counters.rq_error.load(Relaxed), false),
        ("rq_success", counters.rq_success.load(Relaxed), false),
        ("rq_timeout", counters.rq_timeout.load(Relaxed), false),
        ("rq_total", counters.rq_total.load(Relaxed), false),
    ]
}

/// Writing to a String cannot fail, so the results of `writeln!` are dropped.
fn lines(text: &mut String, cluster: &Cluster, dynamic: bool) {
    let name = &cluster.config.name;
    let _ = writeln!(text, "{name}::observability_name::{}", cluster.config.stat_name);
    if cluster.config.outlier.is_some() {
        let _ = writeln!(text, "{name}::outlier::success_rate_average::-1\n{name}::outlier::success_rate_ejection_threshold::-1");
        let _ = writeln!(
            text,
            "{name}::outlier::local_origin_success_rate_average::-1\n{name}::outlier::local_origin_success_rate_ejection_threshold::-1"
        );
    }
    for (priority, breakers) in ["default", "high"].iter().zip(&cluster.live.breakers) {
        for (what, limit) in limits(breakers) {
            let _ = writeln!(text, "{name}::{priority}_priority::{what}::{limit}");
        }
    }
    let _ = writeln!(text, "{name}::added_via_api::{dynamic}");
    if matches!(cluster.config.discovery, Discovery::Eds(_)) {
        let _ = writeln!(text, "{name}::eds_service_name::{}", endpoints::name(cluster));
    }
    for (priority, host) in hosts(cluster) {
        let at = format!("{name}::{}", host.address);
        for (what, value, _) in figures(host) {
            let _ = writeln!(text, "{at}::{what}::{value}");
        }
        let shown = |rate: Option<f64>| rate.map_or("-1".to_owned(), |r| r.to_string());
        let (rate, local_rate) = (shown(host.outlier.success_rate()), shown(host.outlier.local_origin_success_rate()));
        let locality = &host.locality;
        let _ = writeln!(text, "{at}::hostname::{}\n{at}::health_flags::{}\n{at}::weight::{}", host.hostname, flags(host), host.weight());
        let _ = writeln!(text, "{at}::region::{}\n{at}::zone::{}\n{at}::sub_zone::{}", locality.region, locality.zone, locality.sub_zone);
        let _ = writeln!(
            text,
            "{at}::canary::false\n{at}::priority::{priority}\n{at}::success_rate::{rate}\n{at}::local_origin_success_rate::{local_rate}"
        );
    }
}

fn limits(breakers: &Breakers) -> [(&'static str, u32); 4] {
    [
        ("max_connections", breakers.connections.limit()),
        ("max_pending_requests", breakers.pending.limit()),
        ("max_requests", breakers.requests.limit()),
        ("max_retries", breakers.retries.limit()),
    ]
}

fn flags(host: &Host) -> String {
    let names = [
        (FAILED_ACTIVE_HC, "/failed_active_hc"),
        (FAILED_OUTLIER, "/failed_outlier_check"),
        (FAILED_EDS, "/failed_eds_health"),
        (DEGRADED_ACTIVE_HC, "/degraded_active_hc"),
        (DEGRADED_EDS, "/degraded_eds_health"),
        (PENDING_REMOVAL, "/pending_dynamic_removal"),
        (PENDING_ACTIVE_HC, "/pending_active_hc"),
        (EXCLUDED_VIA_IMMEDIATE_HC_FAIL, "/excluded_via_immediate_hc_fail"),
        (DRAINING_EDS, "/eds_status_draining"),
        (DEGRADED_OUTLIER, "/degraded_outlier_detection"),
    ];
    let draining = host.flags() & DRAINING_EDS != 0;
    let flags = host.flags() & if draining { !FAILED_EDS } else { u32::MAX };
    let set: String = names.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "healthy".to_owned() } else { set }
}

fn status(cluster: &Cluster, dynamic: bool) -> Value {
    let thresholds: Vec<Value> = ["DEFAULT", "HIGH"]
        .iter()
        .zip(&cluster.live.breakers)
        .map(|(priority, breakers)| {
            let mut fields: Map<String, Value> = limits(breakers).iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
            fields.insert("priority".to_owned(), json!(priority));
            Value::Object(fields)
        })
        .collect();
    let mut value = json!({
        "name": *cluster.config.name,
        "host_statuses": hosts(cluster).map(|(priority, host)| host_status(priority, host)).collect::<Vec<_>>(),
        "circuit_breakers": {"thresholds": thresholds},
        "observability_name": *cluster.config.stat_name,
    });
    // What is false or empty is left out, as protobuf's JSON has it.
    if dynamic {
        value["added_via_api"] = json!(true);
    }
    if matches!(cluster.config.discovery, Discovery::Eds(_)) {
        value["eds_service_name"] = json!(endpoints::name(cluster));
    }
    value
}

fn host_status(priority: usize, host: &Host) -> Value {
    let stats: Vec<Value> = figures(host)
        .iter()
        .map(|(name, value, gauge)| {
            let mut fields = Map::new();
            if *gauge {
                fields.insert("type".to_owned(), json!("GAUGE"));
            }
            if *value > 0 {
                fields.insert("value".to_owned(), json!(value.to_string()));
            }
            fields.insert("name".to_owned(), json!(name));
            Value::Object(fields)
        })
        .collect();
    let flag = |flag: u32| host.flags() & flag != 0;
    let by_discovery = [(DRAINING_EDS, "DRAINING"), (FAILED_EDS, "UNHEALTHY"), (DEGRADED_EDS, "DEGRADED")];
    let mut health = json!({"eds_health_status": by_discovery.iter().find(|(bit, _)| flag(*bit)).map_or("HEALTHY", |(_, name)| *name)});
    let flags = [
        ("failed_active_health_check", FAILED_ACTIVE_HC),
        ("failed_outlier_check", FAILED_OUTLIER),
        ("failed_active_degraded_check", DEGRADED_ACTIVE_HC),
        ("pending_dynamic_removal", PENDING_REMOVAL),
        ("pending_active_hc", PENDING_ACTIVE_HC),
        ("excluded_via_immediate_hc_fail", EXCLUDED_VIA_IMMEDIATE_HC_FAIL),
    ];
    for (name, set) in flags.map(|(name, bit)| (name, flag(bit))) {
        if let (true, Some(fields)) = (set, health.as_object_mut()) {
            fields.insert(name.to_owned(), json!(true));
        }
    }
    let locality = &host.locality;
    let mut value = json!({
        "address": endpoints::address(&host.address),
        "stats": stats,
        "health_status": health,
        "weight": host.weight(),
        "locality": {"region": *locality.region, "zone": *locality.zone, "sub_zone": *locality.sub_zone},
    });
    if let Some(fields) = value.as_object_mut() {
        if !host.hostname.is_empty() {
            fields.insert("hostname".to_owned(), json!(*host.hostname));
        }
        if priority > 0 {
            fields.insert("priority".to_owned(), json!(priority));
        }
        if let Some(rate) = host.outlier.local_origin_success_rate() {
            fields.insert("local_origin_success_rate".to_owned(), json!({"value": rate}));
        }
        if let Some(rate) = host.outlier.success_rate() {
            fields.insert("success_rate".to_owned(), json!({"value": rate}));
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_host_is_not_called_failed() {
        let host = Host::new(lateen_balance::Address::Pipe("x".into()));
        let shown = |set: u32| {
            host.set_flag(u32::MAX, false);
            host.set_flag(set, true);
            (flags(&host), host_status(0, &host)["health_status"]["eds_health_status"].clone())
        };
        assert_eq!(shown(0), ("healthy".to_owned(), json!("HEALTHY")));
        assert_eq!(shown(FAILED_EDS), ("/failed_eds_health".to_owned(), json!("UNHEALTHY")));
        let drained = FAILED_EDS | DRAINING_EDS | FAILED_ACTIVE_HC;
        assert_eq!(shown(drained), ("/failed_active_hc/eds_status_draining".to_owned(), json!("DRAINING")));
    }
}
