//! Which host gets the next request or connection: subsets, limits of single hosts, degraded and slow hosts.
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::*;
use crate::swap::discover;

/// A cluster whose hosts have one `envoy.lb` label each.
fn labelled(name: &str, key: &str, hosts: &[(u16, &str)], more: &str) -> String {
    let endpoint = |(port, value): &(u16, &str)| {
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}, \
             metadata: {{filter_metadata: {{envoy.lb: {{{key}: {value}}}}}}}}}"
        )
    };
    let endpoints: Vec<String> = hosts.iter().map(endpoint).collect();
    format!(
        "- name: {name}\n  type: STATIC\n  connect_timeout: 1s\n{more}  load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}",
        endpoints.join(", ")
    )
}

#[test]
fn a_requests_metadata_chooses_among_subsets_and_choices_are_counted() {
    let (one, two) = (Upstream::ok("one"), Upstream::ok("two"));
    let subsets = "  lb_subset_config: {fallback_policy: ANY_ENDPOINT, subset_selectors: [{keys: [v]}]}\n";
    let mut config =
        Config::to(&[]).routes("- {match: {prefix: /}, route: {cluster: c, metadata_match: {filter_metadata: {envoy.lb: {v: one}}}}}");
    config.clusters = vec![labelled("c", "v", &[(one.port(), "one"), (two.port(), "two")], subsets)];
    config.filters = "- name: envoy.filters.http.header_to_metadata\n  typed_config:\n    \
                      \"@type\": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config\n    \
                      request_rules: [{header: x-v, on_header_present: {metadata_namespace: envoy.lb, key: v}}]"
        .to_owned();
    let proxy = config.start();
    let ask = |v: &str| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-v: {v}\r\n\r\n")).body;
    assert_eq!((proxy.get("/").body, ask("two"), ask("one")), ("one".into(), "two".into(), "one".into()));
    let fallbacks: Vec<String> = (0..10).map(|_| ask("three")).collect();
    assert!(fallbacks.contains(&"one".to_owned()) && fallbacks.contains(&"two".to_owned()), "{fallbacks:?}");
    assert_eq!((proxy.stat("cluster.c.lb_subsets_selected"), proxy.stat("cluster.c.lb_subsets_fallback")), (3, 10));
}

#[test]
fn a_tcp_proxy_goes_to_the_subset_that_it_names() {
    let server = |name: &'static str| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || listener.incoming().for_each(|s| Write::write_all(&mut s.unwrap(), name.as_bytes()).unwrap()));
        port
    };
    let subsets = "  lb_subset_config: {subset_selectors: [{keys: [v]}]}\n";
    let cluster = labelled("c", "v", &[(server("one"), "one"), (server("two"), "two")], subsets);
    let start = |clusters: &str| {
        start(&format!(
            "node: {{id: t, cluster: t}}\nstatic_resources:\n  listeners:\n  - name: l\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    \
             filter_chains: [{{filters: [{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
             stat_prefix: t, {clusters}}}}}]}}]\n  clusters:\n{}",
            cluster.lines().map(|l| format!("  {l}\n")).collect::<String>()
        ))
    };
    let read = |proxy: &Proxy| {
        let mut text = String::new();
        proxy.connect().read_to_string(&mut text).unwrap();
        text
    };
    let two = "metadata_match: {filter_metadata: {envoy.lb: {v: two}}}";
    let proxy = start(&format!("cluster: c, {two}"));
    assert_eq!([read(&proxy), read(&proxy)], ["two", "two"]);
    let proxy = start(&format!(
        "metadata_match: {{filter_metadata: {{envoy.lb: {{v: one}}}}}}, weighted_clusters: {{clusters: [{{name: c, weight: 1, {two}}}]}}"
    ));
    assert_eq!([read(&proxy), read(&proxy)], ["two", "two"]);
    assert_eq!(read(&start("cluster: c")), "", "without asking there is no subset");
}

#[test]
fn a_host_gets_no_more_connections_than_it_may_have() {
    let (started, release) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (flag, go) = (started.clone(), release.clone());
    let upstream = Upstream::start(move |number, _, stream| {
        flag.store(true, SeqCst);
        while number == 1 && !go.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        write_ok(stream, "ok")
    });
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[upstream.port()], "circuit_breakers: {per_host_thresholds: [{max_connections: 1}]}")];
    let proxy = Arc::new(config.start());
    let call = |proxy: &Arc<Proxy>| {
        let proxy = proxy.clone();
        std::thread::spawn(move || proxy.get("/").status)
    };
    let first = call(&proxy);
    eventually(|| started.load(SeqCst));
    let second = call(&proxy);
    eventually(|| proxy.stat("cluster.c.upstream_cx_overflow") == 1);
    release.store(true, SeqCst);
    assert_eq!((first.join().unwrap(), second.join().unwrap()), (200, 200));
    assert_eq!(upstream.connections.load(SeqCst), 1, "the second waited for the connection of the first");
}

#[test]
fn a_host_that_calls_itself_degraded_comes_last() {
    let unwell = Upstream::start(|_, _, stream| {
        Write::write_all(stream, b"HTTP/1.1 200 OK\r\nx-envoy-degraded: true\r\ncontent-length: 6\r\n\r\nunwell").is_ok()
    });
    let well = Upstream::ok("well");
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster(
        "c",
        &[unwell.port(), well.port()],
        "outlier_detection: {detect_degraded_hosts: true}\ncommon_lb_config: {healthy_panic_threshold: {value: 0}}",
    )];
    let proxy = config.start();
    eventually(|| proxy.get("/").body == "unwell");
    // Half of the hosts are healthy, which with overprovisioning is seven tenths of the traffic.
    let late = (0..200).filter(|_| proxy.get("/").body == "unwell").count();
    assert!((20..100).contains(&late), "{late} of 200, where half came before");
}

#[test]
fn by_peak_ewma_the_slow_host_gets_little() {
    let slow = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(40));
        write_ok(stream, "slow")
    });
    let quick = Upstream::ok("quick");
    let policy = "load_balancing_policy:\n  policies:\n  - typed_extension_config:\n      name: ewma\n      typed_config: \
                  {\"@type\": type.googleapis.com/envoy.extensions.load_balancing_policies.peak_ewma.v3.PeakEwma, default_rtt: 0.00001s}";
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[slow.port(), quick.port()], policy)];
    let proxy = config.start();
    let answers: Vec<String> = (0..60).map(|_| proxy.get("/").body).collect();
    let slow = answers.iter().filter(|a| *a == "slow").count();
    assert!((1..20).contains(&slow), "{slow} of 60 went to the slow host, which is tried once at least");
}

#[test]
fn a_clusters_own_hash_policy_stands_instead_of_the_routes() {
    let (one, two, three) = (Upstream::ok("one"), Upstream::ok("two"), Upstream::ok("three"));
    let own = "load_balancing_policy: {policies: [{typed_extension_config: {name: m, typed_config: {\"@type\": \
               type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev, \
               consistent_hashing_lb_config: {hash_policy: [{header: {header_name: x-own}}]}}}}]}";
    let mut config = Config::to(&[]).routes("- {match: {prefix: /}, route: {cluster: c, hash_policy: [{header: {header_name: x-route}}]}}");
    config.clusters = vec![cluster("c", &[one.port(), two.port(), three.port()], own)];
    let proxy = config.start();
    let ask = |own: u32, route: u32| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-own: {own}\r\nx-route: {route}\r\n\r\n")).body;
    let by_own: Vec<String> = (0..30).map(|own| ask(own, 0)).collect();
    assert!(by_own.iter().any(|body| *body != by_own[0]), "thirty keys would not all meet one host");
    assert!((0..30).all(|key| ask(0, key) == by_own[0]), "the route's header does not count");
}

#[test]
fn hosts_get_requests_by_the_load_that_they_report() {
    // One tells with its headers, the other with its trailers.
    let calm = Upstream::start(|_, _, stream| {
        let report = "endpoint-load-metrics: TEXT rps_fractional=90,cpu_utilization=0.3";
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{report}\r\ncontent-length: 0\r\n\r\n").as_bytes()).is_ok()
    });
    let busy = Upstream::start(|_, _, stream| {
        let report = "endpoint-load-metrics: JSON {\"rpsFractional\": 90, \"cpuUtilization\": 0.9}";
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
        stream.write_all(format!("{head}{report}\r\n\r\n").as_bytes()).is_ok()
    });
    let by_load = "load_balancing_policy: {policies: [{typed_extension_config: {name: l, typed_config: {\"@type\": \
                   type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin, \
                   blackout_period: 0s, weight_update_period: 0.1s}}}]}";
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[calm.port(), busy.port()], by_load)];
    let proxy = config.start();
    for _ in 0..4 {
        proxy.get("/");
    }
    std::thread::sleep(Duration::from_millis(150));
    let before = (calm.seen().len(), busy.seen().len());
    for _ in 0..200 {
        proxy.get("/");
    }
    let (calm, busy) = (calm.seen().len() - before.0, busy.seen().len() - before.1);
    // Weights are computed again and again meanwhile, and turns begin anew.
    assert!((140..=160).contains(&calm), "three to one: {calm} {busy}");
}

/// What was said to set, as a caller sends it back.
fn brought(set: &str) -> String {
    format!("cookie: {}\r\n", set.split(';').next().unwrap().replace('"', ""))
}

#[test]
fn a_cookie_that_is_made_leads_back_and_is_one_for_all_requests_of_a_connection() {
    let upstreams = [Upstream::ok("one"), Upstream::ok("two"), Upstream::ok("three")];
    let route = "- {match: {prefix: /}, route: {cluster: c, hash_policy: [{cookie: {name: to, ttl: 60s}}]}}";
    let mut config = Config::to(&[]).routes(route);
    config.clusters = vec![cluster("c", &upstreams.each_ref().map(Upstream::port), "lb_policy: RING_HASH")];
    let proxy = config.start();
    let ask = |stream: &mut std::net::TcpStream, more: &str| {
        stream.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\n{more}\r\n").as_bytes()).unwrap();
        Answer::read(stream)
    };
    let mut met = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let mut caller = proxy.connect();
        let first = ask(&mut caller, "");
        let set = first.header("set-cookie").unwrap();
        // An empty one is none.
        for none in ["", "cookie: to=\r\n", "cookie: too=x\r\n"] {
            let again = ask(&mut caller, none);
            assert_eq!((again.header("set-cookie"), &again.body), (Some(set), &first.body), "{none}");
        }
        let elsewhere = ask(&mut proxy.connect(), &brought(set));
        assert_eq!((elsewhere.header("set-cookie"), &elsewhere.body), (None, &first.body));
        met.insert(first.body);
    }
    assert_eq!(met.len(), 3, "connections have cookies of their own: {met:?}");
}

#[test]
fn a_new_host_is_slow_to_get_its_share() {
    let (old, new) = (Upstream::ok("old"), Upstream::ok("new"));
    let slow = "round_robin_lb_config: {slow_start_config: {slow_start_window: 2s, min_weight_percent: {value: 5}}}";
    let mut config = Config::to(&[]);
    config.clusters.clear();
    let yaml = config.yaml();
    let mut compiler = compiler(&yaml);
    let proxy = start_with(&yaml, discover(&mut compiler, &[old.port()], slow, 1));
    assert_eq!(proxy.get("/").body, "old");
    // Until the old one is new no more.
    let window = Duration::from_millis(2_100);
    std::thread::sleep(window);
    publish(&proxy.worker, discover(&mut compiler, &[old.port(), new.port()], slow, 2));
    let share = |count: usize| (0..count).filter(|_| proxy.get("/").body == "new").count();
    let begin = Instant::now();
    let early = share(40);
    let took = begin.elapsed();
    // Its weight is that part of the whole which the time is of the window.
    let most = (40.0 * (took.as_secs_f64() / 2.0).max(0.05) + 2.0).min(19.0);
    assert!((early as f64) < most, "{early} of 40 within {took:?}, where less than {most} are due");
    std::thread::sleep(window.saturating_sub(took));
    let late = share(40);
    assert!((19..=21).contains(&late), "{late} of 40 afterwards");
}
