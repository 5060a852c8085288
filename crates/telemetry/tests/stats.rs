//! The sharded store against a plain model, and the exact text of what a scrape prints.
use lateen_telemetry::envoy_names::{self, bandwidth_limit, cluster, cluster_state, http};
use lateen_telemetry::stats::{BlockName, Query, Registry, TagStyle};
use proptest::prelude::*;
use std::collections::HashMap;

fn answer(registry: &Registry, query: &str) -> String {
    Query::parse(query).unwrap().render(registry)
}

proptest! {
    /// Whatever each worker does, in whatever order, a scrape shows the sum.
    #[test]
    fn shard_sums_equal_a_model(ops in prop::collection::vec((0usize..4, 0usize..3, 0u8..4, 0u64..5_000_000), 0..300)) {
        let (registry, shards) = Registry::new(4, TagStyle::Envoy);
        let blocks: Vec<_> = (0..3).map(|i| registry.block(cluster::DEFS, BlockName::cluster(&format!("c{i}")))).collect();
        let mut counters: HashMap<usize, u64> = HashMap::new();
        let mut gauges: HashMap<usize, i64> = HashMap::new();
        let mut recorded: HashMap<usize, Vec<u64>> = HashMap::new();
        for (worker, block, op, value) in ops {
            let local = shards[worker].local(&blocks[block]);
            match op {
                0 => { local.add(cluster::UPSTREAM_RQ_TOTAL, value); *counters.entry(block).or_default() += value; }
                1 => { shards[worker].gauge_add(&blocks[block], cluster::UPSTREAM_CX_ACTIVE, value as i64 % 7 - 3); *gauges.entry(block).or_default() += value as i64 % 7 - 3; }
                2 => { local.record(cluster::UPSTREAM_RQ_TIME, value); recorded.entry(block).or_default().push(value); }
                _ => { blocks[block].add_shared(cluster::UPSTREAM_RQ_TOTAL, value); *counters.entry(block).or_default() += value; }
            }
        }
        for (index, block) in blocks.iter().enumerate() {
            prop_assert_eq!(block.counter(cluster::UPSTREAM_RQ_TOTAL), counters.get(&index).copied().unwrap_or_default());
            prop_assert_eq!(block.gauge(cluster::UPSTREAM_CX_ACTIVE), gauges.get(&index).copied().unwrap_or_default().max(0) as u64);
            let histogram = block.histogram(cluster::UPSTREAM_RQ_TIME);
            let values = recorded.remove(&index).unwrap_or_default();
            prop_assert_eq!(histogram.count(), values.len() as u64);
            prop_assert_eq!(histogram.sum, values.iter().sum::<u64>());
            for (le, count) in histogram.cumulative() {
                let bound = le.parse::<f64>().unwrap_or(f64::INFINITY) * 1000.0;
                prop_assert_eq!(count, values.iter().filter(|v| **v as f64 <= bound).count() as u64, "le={}", le);
            }
        }
    }
}

#[test]
fn workers_count_at_once_without_losing_any() {
    let (registry, shards) = Registry::new(4, TagStyle::Envoy);
    let block = registry.block(http::DEFS, BlockName::http("in"));
    std::thread::scope(|scope| {
        for shard in shards {
            let block = &block;
            scope.spawn(move || {
                let local = shard.local(block);
                for _ in 0..50_000 {
                    local.inc(http::DOWNSTREAM_RQ_TOTAL);
                }
            });
        }
    });
    assert_eq!(block.counter(http::DOWNSTREAM_RQ_TOTAL), 200_000);
}

#[test]
fn a_block_lives_as_long_as_its_handles_and_is_found_again_by_name() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let first = registry.block(cluster::DEFS, BlockName::cluster("a"));
    shards[0].inc(&first, cluster::UPSTREAM_RQ_TOTAL);
    let again = registry.block(cluster::DEFS, BlockName::cluster("a"));
    drop(first);
    assert_eq!(again.counter(cluster::UPSTREAM_RQ_TOTAL), 1, "an update keeps the counts");
    let local = shards[0].local(&again);
    drop(again);
    assert_eq!(registry.blocks(), 1, "a worker still holds it");
    drop(local);
    assert_eq!(registry.blocks(), 0);
    assert!(!answer(&registry, "").contains("cluster.a."));
    for round in 0..10_000 {
        drop(registry.block(cluster::DEFS, BlockName::cluster(&format!("churn{round}"))));
    }
    assert_eq!(registry.blocks(), 0);
}

#[test]
fn a_held_gauge_falls_with_its_guard() {
    let (registry, shards) = Registry::new(2, TagStyle::Envoy);
    let block = registry.block(http::DEFS, BlockName::http("in"));
    let held = shards[1].local(&block).hold(http::DOWNSTREAM_RQ_ACTIVE);
    assert_eq!(block.gauge(http::DOWNSTREAM_RQ_ACTIVE), 1);
    drop(held);
    assert_eq!(block.gauge(http::DOWNSTREAM_RQ_ACTIVE), 0);
}

#[test]
fn the_text_form_is_envoys() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let block = registry.block(cluster::DEFS, BlockName::cluster("outbound|80||reviews.default.svc.cluster.local"));
    let state = registry.block(cluster_state::DEFS, BlockName::cluster("outbound|80||reviews.default.svc.cluster.local"));
    state.set(cluster_state::MEMBERSHIP_HEALTHY, 3);
    let local = shards[0].local(&block);
    local.inc(cluster::UPSTREAM_RQ_TOTAL);
    envoy_names::count_upstream_code(&local, 503);
    local.record(cluster::UPSTREAM_RQ_TIME, 4_000);
    assert_eq!(
        answer(&registry, "usedonly"),
        "cluster.outbound|80||reviews.default.svc.cluster.local.membership_healthy: 3\n\
         cluster.outbound|80||reviews.default.svc.cluster.local.upstream_rq_503: 1\n\
         cluster.outbound|80||reviews.default.svc.cluster.local.upstream_rq_5xx: 1\n\
         cluster.outbound|80||reviews.default.svc.cluster.local.upstream_rq_completed: 1\n\
         cluster.outbound|80||reviews.default.svc.cluster.local.upstream_rq_total: 1\n\
         cluster.outbound|80||reviews.default.svc.cluster.local.upstream_rq_time: P0(nan,3) P25(nan,3.25) P50(nan,3.5) P75(nan,3.75) \
         P90(nan,3.9) P95(nan,3.95) P99(nan,3.99) P99.5(nan,3.995) P99.9(nan,3.999) P100(nan,4)\n"
    );
    let all = answer(&registry, "");
    assert!(all.contains("local.upstream_rq_retry: 0\n"), "zeros are shown");
    assert!(!all.contains("upstream_rq_200"), "but per-code counters only once used");
    assert!(all.contains("upstream_cx_length_ms: No recorded values\n"));
}

#[test]
fn filters_select_by_name_and_type() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let block = registry.block(cluster::DEFS, BlockName::cluster("c3"));
    shards[0].inc(&block, cluster::UPSTREAM_RQ_TIMEOUT);
    assert_eq!(answer(&registry, "filter=c3.*rq_timeout"), "cluster.c3.upstream_rq_timeout: 1\n");
    assert_eq!(answer(&registry, "filter=%5Eserver"), "");
    assert_eq!(answer(&registry, "type=Histograms&filter=connect_ms"), "cluster.c3.upstream_cx_connect_ms: No recorded values\n");
    assert!(Query::parse("filter=%5B").unwrap_err().to_string().starts_with("Invalid re2 regex"));
    assert!(Query::parse("format=xml").is_err());
    assert!(Query::parse("type=Everything").is_err());
    let huge = format!("filter={}", "(a{1000}){1000}");
    assert!(Query::parse(&huge).is_err(), "a filter cannot take all memory");
}

#[test]
fn the_json_form_is_envoys() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let block = registry.block(cluster::DEFS, BlockName::cluster("c"));
    shards[0].inc(&block, cluster::UPSTREAM_RQ_TOTAL);
    let json: serde_json::Value = serde_json::from_str(&answer(&registry, "format=json&filter=upstream_rq_total|connect_ms")).unwrap();
    assert_eq!(json["stats"][0], serde_json::json!({"name": "cluster.c.upstream_rq_total", "value": 1}));
    let histograms = &json["stats"][1]["histograms"];
    assert_eq!(histograms["supported_quantiles"][7], serde_json::json!(99.5));
    assert_eq!(histograms["computed_quantiles"][0]["name"], "cluster.c.upstream_cx_connect_ms");
    assert_eq!(histograms["computed_quantiles"][0]["values"][0]["cumulative"], serde_json::Value::Null);
}

#[test]
fn the_prometheus_form_extracts_tags_in_both_styles() {
    for (style, expected) in [
        (
            TagStyle::Envoy,
            "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"outbound|80||x\"} 2\n\
             # TYPE envoy_cluster_upstream_rq_xx counter\n\
             envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"outbound|80||x\"} 2\n",
        ),
        (
            TagStyle::Istio,
            "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{response_code=\"200\",cluster_name=\"outbound|80||x\"} 2\n\
             envoy_cluster_upstream_rq{response_code_class=\"2xx\",cluster_name=\"outbound|80||x\"} 2\n",
        ),
    ] {
        let (registry, shards) = Registry::new(1, style);
        let block =
            registry.block(cluster::DEFS, BlockName::cluster(if style == TagStyle::Istio { "outbound|80||x;" } else { "outbound|80||x" }));
        let local = shards[0].local(&block);
        envoy_names::count_upstream_code(&local, 200);
        envoy_names::count_upstream_code(&local, 200);
        assert_eq!(answer(&registry, "format=prometheus&filter=upstream_rq_2"), expected);
    }
}

#[test]
fn prometheus_histograms_are_cumulative_and_complete() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let block = registry.block(http::DEFS, BlockName::http("inbound_8080"));
    let local = shards[0].local(&block);
    for micros in [300, 4_000, 4_000, 7_200_000_000] {
        local.record(http::DOWNSTREAM_RQ_TIME, micros);
    }
    let page = answer(&registry, "format=prometheus&filter=downstream_rq_time$");
    let label = "envoy_http_conn_manager_prefix=\"inbound_8080\"";
    assert!(page.starts_with("# TYPE envoy_http_downstream_rq_time histogram\n"), "{page}");
    for line in [
        format!("envoy_http_downstream_rq_time_bucket{{{label},le=\"0.5\"}} 1\n"),
        format!("envoy_http_downstream_rq_time_bucket{{{label},le=\"5\"}} 3\n"),
        format!("envoy_http_downstream_rq_time_bucket{{{label},le=\"3600000\"}} 3\n"),
        format!("envoy_http_downstream_rq_time_bucket{{{label},le=\"+Inf\"}} 4\n"),
        format!("envoy_http_downstream_rq_time_sum{{{label}}} 7200008.3\n"),
        format!("envoy_http_downstream_rq_time_count{{{label}}} 4\n"),
    ] {
        assert!(page.contains(&line), "{line} not in\n{page}");
    }
    assert_eq!(page.lines().count(), 1 + 20 + 2);
}

#[test]
fn hostile_names_cannot_break_the_page() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let block = registry.block(cluster::DEFS, BlockName::cluster("a\"}\n\\b"));
    shards[0].inc(&block, cluster::UPSTREAM_RQ_TOTAL);
    let page = answer(&registry, "format=prometheus&filter=rq_total");
    assert_eq!(page.lines().count(), 2);
    assert!(page.contains("envoy_cluster_name=\"a\\\"}\\n\\\\b\""), "{page}");
}

#[test]
fn names_that_sanitising_makes_equal_are_one_figure() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let blocks = ["a-b", "a_b", "a.b"].map(|name| registry.block(bandwidth_limit::DEFS, BlockName::plain(name)));
    for block in &blocks {
        shards[0].inc(block, bandwidth_limit::REQUEST_ENABLED);
        shards[0].record(block, bandwidth_limit::REQUEST_TRANSFER_DURATION, 400);
    }
    assert_eq!(
        answer(&registry, "format=prometheus&usedonly&type=Counters"),
        "# TYPE envoy_a_b_http_bandwidth_limit_request_enabled counter\nenvoy_a_b_http_bandwidth_limit_request_enabled{} 3\n"
    );
    let page = answer(&registry, "format=prometheus&usedonly&type=Histograms");
    assert_eq!(page.lines().count(), 1 + 20 + 2, "{page}");
    assert!(page.ends_with("duration_sum{} 1.2\nenvoy_a_b_http_bandwidth_limit_request_transfer_duration_count{} 3\n"), "{page}");
}

#[test]
fn a_matcher_decides_what_exists() {
    let (registry, shards) = Registry::new(1, TagStyle::Istio);
    let kept = registry.block(cluster::DEFS, BlockName::cluster("xds-grpc"));
    let other = registry.block(cluster::DEFS, BlockName::cluster("other"));
    shards[0].inc(&kept, cluster::UPSTREAM_RQ_TOTAL);
    shards[0].inc(&other, cluster::UPSTREAM_RQ_TOTAL);
    registry.show_only(std::sync::Arc::new(|name| name.starts_with("cluster.xds-grpc")));
    assert_eq!(answer(&registry, "usedonly"), "cluster.xds-grpc.upstream_rq_total: 1\n");
    assert_eq!(answer(&registry, "filter=other"), "");
}

#[test]
fn an_idle_proxy_shows_nothing_that_was_never_used() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let block = registry.block(cluster::DEFS, BlockName::cluster("c"));
    assert_eq!(answer(&registry, "format=prometheus&usedonly"), "");
    shards[0].inc(&block, cluster::UPSTREAM_CX_TOTAL);
    let page = answer(&registry, "format=prometheus&usedonly");
    assert_eq!(page, "# TYPE envoy_cluster_upstream_cx_total counter\nenvoy_cluster_upstream_cx_total{envoy_cluster_name=\"c\"} 1\n");
    assert_eq!(answer(&registry, "format=prometheus&usedonly&type=Gauges"), "");
}

#[test]
fn a_gauge_that_is_zero_again_has_been_used() {
    let (registry, shards) = Registry::new(2, TagStyle::Envoy);
    let block = registry.block(cluster::DEFS, BlockName::cluster("c"));
    let state = registry.block(cluster_state::DEFS, BlockName::cluster("c"));
    shards[0].gauge_add(&block, cluster::UPSTREAM_CX_ACTIVE, 1);
    shards[1].gauge_add(&block, cluster::UPSTREAM_CX_ACTIVE, -1);
    state.set(cluster_state::MEMBERSHIP_HEALTHY, 0);
    state.add_gauge_shared(cluster_state::MEMBERSHIP_TOTAL, 2);
    state.add_gauge_shared(cluster_state::MEMBERSHIP_TOTAL, -1);
    assert_eq!(
        answer(&registry, "usedonly"),
        "cluster.c.membership_healthy: 0\ncluster.c.membership_total: 1\ncluster.c.upstream_cx_active: 0\n"
    );
}

#[test]
fn each_family_stands_once_however_many_blocks_fill_it() {
    let (registry, _shards) = Registry::new(1, TagStyle::Envoy);
    let blocks: Vec<_> = (0..20).map(|i| registry.block(cluster::DEFS, BlockName::cluster(&format!("c{i}")))).collect();
    let state = registry.block(cluster_state::DEFS, BlockName::cluster("c0"));
    let page = answer(&registry, "format=prometheus");
    let mut types: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let all = types.len();
    types.sort();
    types.dedup();
    assert_eq!(types.len(), all);
    let mut current = "";
    for line in page.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(header) => current = header.split(' ').next().unwrap(),
            None => assert!(line.starts_with(current), "{line} stands under {current}"),
        }
    }
    assert_eq!(page.matches("envoy_cluster_upstream_rq_total{").count(), blocks.len());
    drop(state);
}
