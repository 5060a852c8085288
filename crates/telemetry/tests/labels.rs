//! Which parts of names are labels in Prometheus, in both styles.
use lateen_telemetry::envoy_names::{cluster, connection_limit, connection_quota, connection_rate_limit, dns_cache, ext_authz, http};
use lateen_telemetry::envoy_names::{listener, local_rate_limit, rbac, rbac_shadow, tcp};
use lateen_telemetry::stats::{BlockName, Counter, MetricDef, Query, Registry, TagStyle};

fn answer(registry: &Registry, query: &str) -> String {
    Query::parse(query).unwrap().render(registry)
}

/// The lines of a registry of this style on which one metric of each block was counted once.
fn lines_of(style: TagStyle, blocks: &[(&'static [MetricDef], BlockName, Counter)]) -> Vec<String> {
    let (registry, shards) = Registry::new(1, style);
    let blocks: Vec<_> = blocks.iter().map(|(defs, name, counter)| (registry.block(defs, name.clone()), *counter)).collect();
    blocks.iter().for_each(|(block, counter)| shards[0].inc(block, *counter));
    let page = answer(&registry, "format=prometheus&usedonly");
    page.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// What Envoy 1.40 shows with the `stats_tags` of Istio's bootstrap.
#[test]
fn in_istios_style_only_istios_tags_are_labels_and_other_names_stay_in_the_family() {
    let (allowed, shadow) = ((rbac::DEFS, rbac::ALLOWED), (rbac_shadow::DEFS, rbac_shadow::SHADOW_DENIED));
    let (limit, cx, rq) = (connection_rate_limit::RATE_LIMITED, listener::DOWNSTREAM_CX_TOTAL, cluster::UPSTREAM_RQ_TOTAL);
    let of_http = |prefix: &str| BlockName::http_rbac(prefix, "");
    let policy = |name: BlockName| name.below("policy").below("ns[default]-policy[x]");
    let named = "inbound_0.0.0.0_8080;";
    let lines = lines_of(
        TagStyle::Istio,
        &[
            (local_rate_limit::DEFS, BlockName::http_local_rate_limit("http_local_rate_limiter"), local_rate_limit::RATE_LIMITED),
            (cluster::DEFS, BlockName::cluster("outbound|80||c.default.svc.cluster.local;"), rq),
            (cluster::DEFS, BlockName::cluster("d.svc"), rq),
            (ext_authz::DEFS, BlockName::cluster("d.svc").ext_authz("mine"), ext_authz::ERROR),
            (ext_authz::DEFS, BlockName::http(named).ext_authz("mine"), ext_authz::ERROR),
            (http::DEFS, BlockName::http("plain"), http::DOWNSTREAM_RQ_TOTAL),
            (allowed.0, of_http(named), allowed.1),
            (allowed.0, of_http("plain"), allowed.1),
            (allowed.0, BlockName::http_rbac(named, "pre"), allowed.1),
            (allowed.0, policy(of_http(named)), allowed.1),
            (shadow.0, BlockName::http_rbac(named, "istio_dry_run_allow_"), shadow.1),
            (shadow.0, policy(BlockName::http_rbac(named, "istio_dry_run_deny_")), shadow.1),
            (shadow.0, of_http(named), shadow.1),
            (allowed.0, BlockName::rbac("net"), allowed.1),
            (shadow.0, BlockName::rbac("net").below("istio_dry_run_allow_"), shadow.1),
            (allowed.0, BlockName::rbac("tcp"), allowed.1),
            (shadow.0, BlockName::rbac("tcp").below("istio_dry_run_allow_"), shadow.1),
            (connection_rate_limit::DEFS, BlockName::local_rate_limit("a-b"), limit),
            (connection_rate_limit::DEFS, BlockName::listener_rate_limit("c"), limit),
            (connection_limit::DEFS, BlockName::connection_limit("cl-x"), connection_limit::LIMITED_CONNECTIONS),
            (connection_quota::DEFS, BlockName::ratelimit("q"), connection_quota::ERROR),
            (listener::DEFS, BlockName::listener("127.0.0.1:80"), cx),
            (listener::DEFS, BlockName::listener("[::1]:80"), cx),
            (listener::DEFS, BlockName::listener("lp"), cx),
            (http::DEFS, BlockName::listener_http("127.0.0.1:80", named), http::DOWNSTREAM_RQ_TOTAL),
            (http::DEFS, BlockName::listener_http("lp", "0.0.0.0_80"), http::DOWNSTREAM_RQ_TOTAL),
            (dns_cache::DEFS, BlockName::plain("dns_cache").below("names"), dns_cache::DNS_QUERY_ATTEMPT),
        ],
    );
    assert_eq!(
        lines,
        [
            "envoy_cluster_d_svc_ext_authz_mine_error{} 1",
            "envoy_cluster_d_svc_upstream_rq_total{} 1",
            "envoy_cluster_upstream_rq_total{cluster_name=\"outbound|80||c.default.svc.cluster.local\"} 1",
            "envoy_connection_limit_cl_x_limited_connections{} 1",
            "envoy_dns_dns_query_attempt{cache=\"names\"} 1",
            "envoy_http_ext_authz_mine_error{http_conn_manager_prefix=\"inbound_0.0.0.0_8080\"} 1",
            "envoy_http_local_rate_limiter_http_local_rate_limit_rate_limited{} 1",
            "envoy_http_plain_downstream_rq_total{} 1",
            "envoy_http_plain_rbac{authz_enforce_result=\"allowed\"} 1",
            "envoy_http_rbac{authz_dry_run_result=\"denied\",authz_dry_run_action=\"allow\",http_conn_manager_prefix=\"inbound_0.0.0.0_8080\"} 1",
            "envoy_http_rbac{authz_dry_run_result=\"denied\",http_conn_manager_prefix=\"inbound_0.0.0.0_8080\"} 1",
            "envoy_http_rbac{authz_enforce_result=\"allowed\",http_conn_manager_prefix=\"inbound_0.0.0.0_8080\"} 1",
            "envoy_http_rbac_policy_ns_default__policy_x_{authz_dry_run_result=\"denied\",authz_dry_run_action=\"deny\",http_conn_manager_prefix=\"inbound_0.0.0.0_8080\"} 1",
            "envoy_http_rbac_policy_ns_default__policy_x__allowed{http_conn_manager_prefix=\"inbound_0.0.0.0_8080\"} 1",
            "envoy_http_rbac_pre_allowed{http_conn_manager_prefix=\"inbound_0.0.0.0_8080\"} 1",
            "envoy_listener_downstream_cx_total{listener_address=\"127.0.0.1_80\"} 1",
            "envoy_listener_downstream_cx_total{listener_address=\"[__1]_80\"} 1",
            "envoy_listener_http_inbound_0_0_0_0_8080__downstream_rq_total{listener_address=\"127.0.0.1_80\"} 1",
            "envoy_listener_local_ratelimit_c_rate_limited{} 1",
            "envoy_listener_lp_downstream_cx_total{} 1",
            "envoy_listener_lp_http_downstream_rq_total{http_conn_manager_listener_prefix=\"0.0.0.0_80\"} 1",
            "envoy_local_rate_limit_a_b_rate_limited{} 1",
            "envoy_net_rbac{authz_dry_run_result=\"denied\",authz_dry_run_action=\"allow\"} 1",
            "envoy_net_rbac{authz_enforce_result=\"allowed\"} 1",
            "envoy_ratelimit_q_error{} 1",
            "envoy_tcp{authz_dry_run_result=\"denied\",authz_dry_run_action=\"allow\",tcp_prefix=\"rbac.istio_dry_run_allow_\"} 1",
            "envoy_tcp{authz_enforce_result=\"allowed\",tcp_prefix=\"rbac\"} 1",
        ]
    );
}

/// One line for each of these clusters, and the same clusters' lines in another style.
fn lines_of_clusters(style: TagStyle, names: &[&str]) -> Vec<String> {
    let blocks = names.iter().map(|name| (cluster::DEFS, BlockName::cluster(name), cluster::UPSTREAM_CX_TOTAL));
    let lines = lines_of(style, &blocks.collect::<Vec<_>>());
    lines.iter().map(|line| line.trim_start_matches("envoy_cluster").trim_end_matches(" 1").replace("upstream_cx_total", "*")).collect()
}

/// What Envoy 1.40 shows with the `stats_tags` of Istio's bootstrap.
#[test]
fn istios_tags_are_found_anywhere_in_a_name() {
    let names = [
        "outbound|11211||memcache.default.svc.cluster.local;",
        "plain.memcache.svc.x",
        "memcache",
        "a.component.b.c",
        "component.q",
        "a.cache.b.cache.c.d",
        "cache..x.y",
        "tag.x;.y",
        "wasm_filter.foo.bar",
        "has;semi.colon",
        "cache.z;",
        "rbac.allowed.svc",
        "x.shadow_denied.y",
        "my.istio_dry_run_allow_.z",
        "outbound|80||x:y;",
    ];
    assert_eq!(
        lines_of_clusters(TagStyle::Istio, &names),
        [
            "_a_c_*{component=\"b\"}",
            "_a_cache_c_d_*{cache=\"b\"}",
            "_bar_*{wasm_filter=\"foo\"}",
            "_memcache_*{}",
            "_my_z_*{authz_dry_run_action=\"allow\"}",
            "_plain_memx_*{cache=\"svc\"}",
            "_rbac_svc_*{authz_enforce_result=\"allowed\"}",
            "_*{cluster_name=\"outbound|11211||memcache.default.svc.cluster.local\",cache=\"default\"}",
            "_*{cluster_name=\"outbound|80||x_y\"}",
            "_*{component=\"q\"}",
            "_x_y_*{authz_dry_run_result=\"denied\"}",
            "_y_*{cache=\".x\"}",
            "semi_colon_*{cluster_name=\"has\"}",
            "*{cluster_name=\"cache.z\",cache=\"z;\"}",
            "y_*{cluster_name=\"tag.x\",tag=\"x\"}",
        ]
    );
    let named = "inbound_cache.k_80;";
    let lines = lines_of(
        TagStyle::Istio,
        &[
            (http::DEFS, BlockName::http(named), http::DOWNSTREAM_CX_TOTAL),
            (http::DEFS, BlockName::http("out.component.x"), http::DOWNSTREAM_CX_TOTAL),
            (tcp::DEFS, BlockName::tcp("t.cache.v:w"), tcp::DOWNSTREAM_CX_TOTAL),
            (http::DEFS, BlockName::listener_http("127.0.0.1:80", "out.component.x"), http::DOWNSTREAM_RQ_TOTAL),
            (listener::DEFS, BlockName::listener("cache.lis.y"), listener::DOWNSTREAM_CX_TOTAL),
        ],
    );
    assert_eq!(
        lines,
        [
            "envoy_http_downstream_cx_total{cache=\"k_80;\",http_conn_manager_prefix=\"inbound_cache.k_80\"} 1",
            "envoy_http_out_downstream_cx_total{component=\"x\"} 1",
            "envoy_listener_http_out_downstream_rq_total{component=\"x\",listener_address=\"127.0.0.1_80\"} 1",
            "envoy_listener_y_downstream_cx_total{cache=\"lis\"} 1",
            "envoy_tcp_downstream_cx_total{cache=\"v_w\",tcp_prefix=\"t.cache.v_w\"} 1",
        ]
    );
}

/// What Envoy 1.40 shows without `stats_config`.
#[test]
fn in_envoys_style_a_label_is_one_word_of_a_dotted_name() {
    let names = ["reviews.default.svc", "local:8080", ".lead.trail.", "http://a..b", "alt:x.", ":", ".", "rbac.allowed.svc"];
    assert_eq!(
        lines_of_clusters(TagStyle::Envoy, &names),
        [
            "envoy_allowed_svc_*{envoy_rbac_prefix=\"cluster\",envoy_cluster_name=\"rbac\"}",
            "__b_*{envoy_cluster_name=\"http_a\"}",
            "_default_svc_*{envoy_cluster_name=\"reviews\"}",
            "_lead_trail_*{envoy_cluster_name=\"\"}",
            "_*{}",
            "_*{envoy_cluster_name=\"_\"}",
            "_*{envoy_cluster_name=\"alt_x\"}",
            "_*{envoy_cluster_name=\"local_8080\"}",
        ]
    );
    let (allowed, cx) = (rbac::ALLOWED, listener::DOWNSTREAM_CX_TOTAL);
    let lines = lines_of(
        TagStyle::Envoy,
        &[
            (http::DEFS, BlockName::http("a.b:c"), http::DOWNSTREAM_CX_TOTAL),
            (http::DEFS, BlockName::listener_http("lis.dot:x", "a.b:c"), http::DOWNSTREAM_RQ_TOTAL),
            (listener::DEFS, BlockName::listener("lis.dot:x"), cx),
            (listener::DEFS, BlockName::listener("127.0.0.1:29903"), cx),
            (listener::DEFS, BlockName::listener("[::1]:80"), cx),
            (tcp::DEFS, BlockName::tcp("t.u:v"), tcp::DOWNSTREAM_CX_TOTAL),
            (rbac::DEFS, BlockName::http_rbac("a.b:c", "rul.es:z"), allowed),
            (rbac::DEFS, BlockName::rbac("net.rb:ac"), allowed),
            (local_rate_limit::DEFS, BlockName::http_local_rate_limit("lrl.p:q"), local_rate_limit::OK),
            (connection_limit::DEFS, BlockName::connection_limit("cl.p:q"), connection_limit::LIMITED_CONNECTIONS),
            (connection_rate_limit::DEFS, BlockName::local_rate_limit("netl.p:q"), connection_rate_limit::RATE_LIMITED),
        ],
    );
    assert_eq!(
        lines,
        [
            "envoy_connection_limit_p_q_limited_connections{envoy_connection_limit_prefix=\"cl\"} 1",
            "envoy_http_b_c_downstream_cx_total{envoy_http_conn_manager_prefix=\"a\"} 1",
            "envoy_http_b_c_rbac_rul_es_z_allowed{envoy_http_conn_manager_prefix=\"a\"} 1",
            "envoy_listener_dot_x_downstream_cx_total{envoy_listener_address=\"lis\"} 1",
            "envoy_listener_dot_x_http_b_c_downstream_rq_total{envoy_http_conn_manager_prefix=\"a\",envoy_listener_address=\"lis\"} 1",
            "envoy_listener_downstream_cx_total{envoy_listener_address=\"127.0.0.1_29903\"} 1",
            "envoy_listener_downstream_cx_total{envoy_listener_address=\"[__1]_80\"} 1",
            "envoy_local_rate_limit_p_q_rate_limited{envoy_local_network_ratelimit_prefix=\"netl\"} 1",
            "envoy_lrl_p_q_http_local_rate_limit_ok{} 1",
            "envoy_net_rb_ac_rbac_allowed{} 1",
            "envoy_tcp_u_v_downstream_cx_total{envoy_tcp_prefix=\"t\"} 1",
        ]
    );
}

#[test]
fn names_from_configuration_become_labels_or_are_sanitised() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let ours = BlockName::http_rbac("in", "");
    let (of_policy, of_rules) = (ours.below("policy").below("ns[default]-policy[deny]-rule[0]"), "pre-x");
    let rules = [of_policy, BlockName::http_rbac("in", of_rules), BlockName::rbac("net"), BlockName::rbac("net").below("istio:dry-run")];
    let rules = rules.map(|name| registry.block(rbac::DEFS, name));
    rules.iter().for_each(|block| shards[0].inc(block, rbac::ALLOWED));
    let limits = [BlockName::local_rate_limit("a-b"), BlockName::listener_rate_limit("c"), BlockName::plain("x[0].größe")];
    let limits = limits.map(|name| registry.block(connection_rate_limit::DEFS, name));
    limits.iter().for_each(|block| shards[0].inc(block, connection_rate_limit::RATE_LIMITED));
    let quota = registry.block(connection_quota::DEFS, BlockName::ratelimit("q"));
    shards[0].inc(&quota, connection_quota::OVER_LIMIT);
    let open = registry.block(connection_limit::DEFS, BlockName::connection_limit("o"));
    shards[0].inc(&open, connection_limit::LIMITED_CONNECTIONS);
    let requests = registry.block(local_rate_limit::DEFS, BlockName::http_local_rate_limit("requests"));
    shards[0].inc(&requests, local_rate_limit::OK);
    let asked = registry.block(ext_authz::DEFS, BlockName::cluster("c").ext_authz("mine"));
    shards[0].inc(&asked, ext_authz::DENIED);
    let page = answer(&registry, "format=prometheus&usedonly");
    let lines: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        [
            "envoy_cluster_ext_authz_denied{envoy_ext_authz_prefix=\"mine\",envoy_cluster_name=\"c\"} 1",
            "envoy_connection_limit_limited_connections{envoy_connection_limit_prefix=\"o\"} 1",
            "envoy_http_local_rate_limit_ok{envoy_local_http_ratelimit_prefix=\"requests\"} 1",
            "envoy_http_rbac_allowed{envoy_rbac_http_prefix=\"pre-x\",envoy_http_conn_manager_prefix=\"in\"} 1",
            "envoy_http_rbac_policy_allowed{envoy_rbac_policy_name=\"ns[default]-policy[deny]-rule[0]\",envoy_http_conn_manager_prefix=\"in\"} 1",
            "envoy_listener_local_ratelimit_rate_limited{envoy_local_listener_ratelimit_prefix=\"c\"} 1",
            "envoy_local_rate_limit_rate_limited{envoy_local_network_ratelimit_prefix=\"a-b\"} 1",
            "envoy_ratelimit_over_limit{envoy_ratelimit_prefix=\"q\"} 1",
            "envoy_rbac_allowed{envoy_rbac_prefix=\"net\"} 1",
            "envoy_rbac_istio_dry_run_allowed{envoy_rbac_prefix=\"net\"} 1",
            "envoy_x_0__gr__e_rate_limited{} 1",
        ]
    );
}

#[test]
fn colons_stay_in_names_of_filters_only() {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let own = registry.block(http::DEFS, BlockName::http("a.b:c"));
    let filter = registry.block(rbac::DEFS, BlockName::http_rbac("a.b:c", ""));
    let clusters = ["local:8080", "http://x.", "n\0l"].map(|name| registry.block(cluster::DEFS, BlockName::cluster(name)));
    shards[0].inc(&own, http::DOWNSTREAM_CX_TOTAL);
    shards[0].inc(&filter, rbac::ALLOWED);
    clusters.iter().for_each(|block| shards[0].inc(block, cluster::UPSTREAM_CX_TOTAL));
    assert_eq!(answer(&registry, "usedonly&filter=local_8080"), "cluster.local_8080.upstream_cx_total: 1\n");
    registry.show_only(std::sync::Arc::new(|name| !name.starts_with("cluster.local_")));
    assert_eq!(
        answer(&registry, "usedonly"),
        "cluster.http_x.upstream_cx_total: 1\ncluster.n_l.upstream_cx_total: 1\nhttp.a.b:c.rbac.allowed: 1\nhttp.a.b_c.downstream_cx_total: 1\n"
    );
}

#[test]
fn names_that_sanitising_makes_equal_are_one_line_in_istios_style_too() {
    let ok = |prefix| (local_rate_limit::DEFS, BlockName::http_local_rate_limit(prefix), local_rate_limit::OK);
    let lines = lines_of(TagStyle::Istio, &[ok("größe[0]"), ok("gr__e_0_"), ok("gr__e.0;")]);
    assert_eq!(lines, ["envoy_gr__e_0__http_local_rate_limit_ok{} 3"]);
}
