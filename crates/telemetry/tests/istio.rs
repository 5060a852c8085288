//! Istio's metrics: exact labels for each reporter, sums over workers, and the limits.
use lateen_telemetry::ResponseFlags;
use lateen_telemetry::istio::*;
use lateen_telemetry::stats::{Query, Registry, TagStyle};
use std::sync::Arc;

fn workload(name: &str, version: &str) -> PeerMetadata {
    PeerMetadata {
        instance: format!("{name}-{version}-abc"),
        workload: format!("{name}-{version}"),
        namespace: "default".into(),
        app: name.into(),
        version: version.into(),
        canonical_name: name.into(),
        canonical_revision: version.into(),
        cluster: "Kubernetes".into(),
        owner: String::new(),
    }
}

fn setup(local: PeerMetadata, workers: usize) -> (Arc<Registry>, Arc<IstioMetrics>, Vec<IstioShard>) {
    let (registry, _) = Registry::new(workers, TagStyle::Istio);
    let mut config = Config::new(local);
    config.version = "1.30.0".into();
    let (metrics, shards) = IstioMetrics::new(config, workers);
    registry.add_source(metrics.clone());
    (registry, metrics, shards)
}

fn page(registry: &Registry, filter: &str) -> String {
    Query::parse(&format!("format=prometheus&filter={filter}")).unwrap().render(registry)
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

/// The labels of a real bookinfo sidecar, as Istio's documentation and dashboards show them.
#[test]
fn a_server_reports_as_istio_does() {
    let (registry, metrics, shards) = setup(workload("details", "v1"), 1);
    let header = workload("productpage", "v1").encode();
    let stream = StreamLabels {
        reporter: Reporter::Destination,
        destination: metrics.destination(Destination::service("details.default.svc.cluster.local", Some("details"), Some("default"))),
        peer: shards[0].peer_of_header(header.as_bytes()),
        peer_principal: metrics.principal(&spiffe("bookinfo-productpage")),
        local_principal: metrics.principal(&spiffe("bookinfo-details")),
    };
    for _ in 0..36 {
        shards[0].http(
            stream,
            &HttpOutcome { code: 200, duration_micros: 4_200, request_bytes: 800, response_bytes: 1_500, ..HttpOutcome::default() },
        );
    }
    assert_eq!(
        page(&registry, "istio_requests_total"),
        "# TYPE istio_requests_total counter\n\
         istio_requests_total{reporter=\"destination\",\
         source_workload=\"productpage-v1\",source_workload_namespace=\"default\",\
         source_principal=\"spiffe://cluster.local/ns/default/sa/bookinfo-productpage\",source_app=\"productpage\",source_version=\"v1\",\
         source_canonical_service=\"productpage\",source_canonical_revision=\"v1\",source_cluster=\"Kubernetes\",\
         destination_workload=\"details-v1\",destination_workload_namespace=\"default\",\
         destination_principal=\"spiffe://cluster.local/ns/default/sa/bookinfo-details\",destination_app=\"details\",destination_version=\"v1\",\
         destination_canonical_service=\"details\",destination_canonical_revision=\"v1\",destination_cluster=\"Kubernetes\",\
         destination_service=\"details.default.svc.cluster.local\",destination_service_name=\"details\",destination_service_namespace=\"default\",\
         request_protocol=\"http\",response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",connection_security_policy=\"mutual_tls\"} 36\n"
    );
    let durations = page(&registry, "istio_request_duration_milliseconds");
    assert!(durations.contains("connection_security_policy=\"mutual_tls\",le=\"5\"} 36\n"), "{durations}");
    assert!(durations.contains("le=\"1\"} 0\n"));
    let bytes = page(&registry, "istio_response_bytes");
    assert!(bytes.contains("le=\"1000\"} 0\n") && bytes.contains("le=\"2500\"} 36\n"), "{bytes}");
}

#[test]
fn there_are_25_labels_and_each_once() {
    let (registry, _, shards) = setup(workload("a", "v1"), 1);
    let stream = StreamLabels {
        reporter: Reporter::Source,
        destination: DestinationId::default(),
        peer: PeerId::default(),
        peer_principal: PrincipalId::default(),
        local_principal: PrincipalId::default(),
    };
    shards[0].http(stream, &HttpOutcome::default());
    let samples = Query::parse("filter=istio_requests_total").unwrap().samples(&registry);
    let mut keys: Vec<_> = samples[0].labels.iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(keys.len(), 25);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 25);
}

#[test]
fn a_caller_that_got_no_answer_knows_only_the_service() {
    let (registry, metrics, shards) = setup(workload("productpage", "v1"), 1);
    let stream = StreamLabels {
        reporter: Reporter::Source,
        destination: metrics.destination(Destination::service("reviews.default.svc.cluster.local", None, Some("default"))),
        peer: PeerId::default(),
        peer_principal: PrincipalId::default(),
        local_principal: metrics.principal(&spiffe("pp")),
    };
    let outcome = HttpOutcome { code: 503, flags: ResponseFlags::NO_HEALTHY_UPSTREAM, ..HttpOutcome::default() };
    shards[0].http(stream, &outcome);
    shards[0].http(stream, &HttpOutcome { code: 0, flags: ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, ..HttpOutcome::default() });
    let page = page(&registry, "istio_requests_total");
    for part in [
        "reporter=\"source\"",
        "destination_workload=\"unknown\"",
        "destination_canonical_revision=\"latest\"",
        "destination_principal=\"unknown\"",
        "destination_service=\"reviews.default.svc.cluster.local\"",
        "destination_service_name=\"reviews\"",
        "destination_service_namespace=\"default\"",
        "response_code=\"503\"",
        "response_flags=\"UH\"",
        "response_code=\"0\"",
        "response_flags=\"DC\"",
        "connection_security_policy=\"unknown\"",
    ] {
        assert!(page.contains(part), "{part} not in {page}");
    }
}

#[test]
fn catch_all_clusters_and_hosts_name_themselves() {
    let (registry, metrics, shards) = setup(workload("a", "v1"), 1);
    let stream = |destination| StreamLabels {
        reporter: Reporter::Source,
        destination,
        peer: PeerId::default(),
        peer_principal: PrincipalId::default(),
        local_principal: PrincipalId::default(),
    };
    shards[0].http(
        stream(metrics.destination(Destination::catch_all(CatchAll::BlackHole, ""))),
        &HttpOutcome { code: 502, ..HttpOutcome::default() },
    );
    shards[0].http(stream(shards[0].destination_of_host(b"example.org")), &HttpOutcome { code: 200, ..HttpOutcome::default() });
    let page = page(&registry, "istio_requests_total");
    assert!(page.contains("destination_service=\"unknown\",destination_service_name=\"BlackHoleCluster\""), "{page}");
    assert!(page.contains("destination_service=\"example.org\",destination_service_name=\"example.org\""), "{page}");
}

#[test]
fn a_certificate_beats_a_claim_about_the_namespace() {
    let (registry, metrics, shards) = setup(workload("server", "v1"), 1);
    let stream = StreamLabels {
        reporter: Reporter::Destination,
        destination: DestinationId::default(),
        peer: metrics.peer(PeerMetadata { namespace: "claimed".into(), ..workload("x", "v1") }),
        peer_principal: metrics.principal("spiffe://cluster.local/ns/proved/sa/x"),
        local_principal: PrincipalId::default(),
    };
    shards[0].http(stream, &HttpOutcome { code: 200, ..HttpOutcome::default() });
    let page = page(&registry, "istio_requests_total");
    assert!(page.contains("source_workload_namespace=\"proved\""), "{page}");
    assert!(page.contains("connection_security_policy=\"none\""), "one certificate alone is not mutual: {page}");
    assert!(page.contains("destination_service=\"server\",destination_service_name=\"server\""), "{page}");
}

#[test]
fn grpc_and_tcp_have_their_own_metrics_and_labels() {
    let (registry, _, shards) = setup(workload("a", "v1"), 1);
    let stream = StreamLabels {
        reporter: Reporter::Source,
        destination: DestinationId::default(),
        peer: PeerId::default(),
        peer_principal: PrincipalId::default(),
        local_principal: PrincipalId::default(),
    };
    let outcome = HttpOutcome { code: 200, grpc: true, grpc_status: Some(14), ..HttpOutcome::default() };
    shards[0].http(stream, &outcome);
    shards[0].grpc_messages(stream, 3, 5);
    let connection = shards[0].tcp(stream, ResponseFlags::NONE);
    connection.sent(100);
    connection.received(40);
    connection.closed();

    let requests = page(&registry, "istio_requests_total");
    assert!(requests.contains("request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"14\""), "{requests}");
    let messages = page(&registry, "messages_total");
    assert!(messages.lines().any(|l| l.starts_with("istio_request_messages_total{") && l.ends_with(" 3")), "{messages}");
    assert!(messages.lines().any(|l| l.starts_with("istio_response_messages_total{") && l.ends_with(" 5")));
    assert!(!messages.contains("response_code") && !messages.contains("request_protocol"));
    let tcp = page(&registry, "istio_tcp_");
    assert!(tcp.contains("request_protocol=\"tcp\"") && !tcp.contains("response_code"));
    for (name, value) in [("connections_opened", 1), ("connections_closed", 1), ("sent_bytes", 100), ("received_bytes", 40)] {
        let found = tcp.lines().any(|l| l.starts_with(&format!("istio_tcp_{name}_total{{")) && l.ends_with(&format!(" {value}")));
        assert!(found, "{name} in {tcp}");
    }
    assert!(page(&registry, "istio_build").contains("istio_build{component=\"proxy\",tag=\"1.30.0\"} 1\n"));
}

#[test]
fn workers_add_up() {
    let (registry, metrics, shards) = setup(workload("a", "v1"), 3);
    let destination = metrics.destination(Destination::service("b.default.svc.cluster.local", None, None));
    std::thread::scope(|scope| {
        for shard in shards {
            scope.spawn(move || {
                let stream = StreamLabels {
                    reporter: Reporter::Source,
                    destination,
                    peer: PeerId::default(),
                    peer_principal: PrincipalId::default(),
                    local_principal: PrincipalId::default(),
                };
                for _ in 0..10_000 {
                    shard.http(stream, &HttpOutcome { code: 200, duration_micros: 900, ..HttpOutcome::default() });
                }
            });
        }
    });
    let page = page(&registry, "istio_requests_total");
    assert!(page.trim_end().ends_with(" 30000"), "{page}");
    assert_eq!(metrics.len(), 1);
}

#[test]
fn series_are_bounded_and_what_is_over_is_not_lost() {
    let (registry, _) = Registry::new(1, TagStyle::Istio);
    let mut config = Config::new(workload("gateway", "v1"));
    config.max_series = 10;
    let (metrics, shards) = IstioMetrics::new(config, 1);
    registry.add_source(metrics.clone());
    let call = |destination, peer| {
        let none = PrincipalId::default();
        let stream = StreamLabels { reporter: Reporter::Source, destination, peer, peer_principal: none, local_principal: none };
        shards[0].http(stream, &HttpOutcome { code: 200, ..HttpOutcome::default() });
    };
    let mut last = DestinationId::default();
    for host in 0..5_000 {
        last = shards[0].destination_of_host(format!("h{host}.example").as_bytes());
        call(last, PeerId::default());
    }
    assert_eq!(last, DestinationId::default(), "names are bounded too");
    // 3072 names of callers took eight of ten series; the others of them counted as one of a host that is unknown.
    assert_eq!((metrics.len(), metrics.overflowed()), (9, 3_072 - 8));
    let overflow = |page: &str| page.lines().find(|l| l.contains("destination_service=\"overflow\"")).unwrap().to_owned();
    let shown = page(&registry, "istio_requests_total");
    assert!(overflow(&shown).ends_with(" 3064"), "{shown}");
    // What configuration knows has its place all the same, as much as there is.
    for name in ["reviews", "ratings"] {
        call(metrics.destination(Destination::service(&format!("{name}.default"), None, Some("default"))), PeerId::default());
    }
    let shown = page(&registry, "istio_requests_total");
    assert!(shown.contains("destination_service=\"reviews.default\"") && !shown.contains("ratings"), "{shown}");
    assert_eq!(metrics.len(), 10);
}

#[test]
fn peers_that_callers_invent_leave_room_for_those_of_endpoints() {
    let (registry, metrics, shards) = setup(workload("gateway", "v1"), 1);
    let invented: Vec<PeerId> = (0..4_000)
        .map(|n| shards[0].peer_of_header(PeerMetadata { workload: format!("w{n}"), ..PeerMetadata::default() }.encode().as_bytes()))
        .collect();
    assert_eq!(invented[3_999], PeerId::default());
    let known = metrics.peer(workload("reviews", "v3"));
    assert_ne!(known, PeerId::default());
    let none = PrincipalId::default();
    let stream = |peer| StreamLabels {
        reporter: Reporter::Source,
        destination: metrics.destination(Destination::service("reviews.default", None, None)),
        peer,
        peer_principal: none,
        local_principal: none,
    };
    for code in 200..210 {
        let outcome = HttpOutcome { code, ..HttpOutcome::default() };
        invented.iter().filter(|peer| **peer != PeerId::default()).for_each(|peer| shards[0].http(stream(*peer), &outcome));
    }
    assert_eq!(metrics.len(), 6_144);
    shards[0].http(stream(known), &HttpOutcome { code: 200, ..HttpOutcome::default() });
    assert!(page(&registry, "istio_requests_total").contains("destination_workload=\"reviews-v3\""));
}

#[test]
fn bad_peer_headers_cost_labels_only() {
    let (_, _, shards) = setup(workload("a", "v1"), 1);
    assert_eq!(shards[0].peer_of_header(b"***"), PeerId::default());
    let good = workload("b", "v1").encode();
    let id = shards[0].peer_of_header(good.as_bytes());
    assert_ne!(id, PeerId::default());
    for garbage in 0..3_000 {
        assert_eq!(shards[0].peer_of_header(format!("!{garbage}").as_bytes()), PeerId::default());
    }
    assert_eq!(shards[0].peer_of_header(good.as_bytes()), id);
    let another_pod = PeerMetadata { instance: "b-v1-xyz".into(), ..workload("b", "v1") };
    assert_eq!(shards[0].peer_of_header(another_pod.encode().as_bytes()), id, "pods of one workload share a series");
}

proptest::proptest! {
    /// The header is a caller's: any bytes decode or are refused.
    #[test]
    fn any_peer_header_is_survived(header in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = PeerMetadata::decode(&header);
    }

    #[test]
    fn any_metadata_survives_the_header(workload in "\\PC{0,40}", namespace in "[a-z-]{0,20}", version in "\\PC{0,10}") {
        let peer = PeerMetadata { workload, namespace, version, ..PeerMetadata::default() };
        proptest::prop_assert_eq!(PeerMetadata::decode(peer.encode().as_bytes()).unwrap(), peer);
    }
}
