//! Tracing: contexts that go upstream, and spans that reach the collector.
use serde_json::Value;

use crate::support::*;

const ZIPKIN: &str = "\"@type\": type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, collector_cluster: zipkin, \
                      collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON";
/// The share of this id is 0x1387, which is 49.99 %.
const ID: &str = "00001387-58bc-4eb4-8f3c-0e64a5c7f3a1";

fn traced(upstream: &Upstream, collector: &Upstream, provider: &str, more: &str) -> Proxy {
    let mut config = Config::to(&[upstream.port()])
        .routes("- {match: {prefix: /}, route: {cluster: c, timeout: 0s}, decorator: {operation: \"shop:80/*\"}}")
        .cluster(cluster("zipkin", &[collector.port()], ""));
    config.hcm = format!("tracing: {{provider: {{name: p, typed_config: {{{provider}}}}}, {more}}}");
    config.start()
}

fn collector() -> Upstream {
    Upstream::start(|_, _, stream| write_status(stream, 202))
}

fn reported(collector: &Upstream, count: usize) -> Vec<Value> {
    let spans = || -> Vec<Value> {
        let bodies = collector.seen().into_iter().map(|r| r.split_once("\r\n\r\n").unwrap().1.to_owned());
        bodies.flat_map(|b| serde_json::from_str::<Vec<Value>>(&b).unwrap()).collect()
    };
    eventually(|| spans().len() >= count);
    spans()
}

fn sent<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn zipkin_gets_spans_in_a_batch_with_envoys_tags() {
    let (upstream, collector) = (Upstream::ok("hello"), collector());
    let tags = "custom_tags: [{tag: istio.mesh_id, literal: {value: m}}, {tag: who, request_header: {name: x-who, default_value: nobody}}, \
                {tag: none, environment: {name: LATEEN_NO_SUCH_VARIABLE}}, {tag: code, value: \"%RESPONSE_CODE%\"}]";
    let proxy = traced(&upstream, &collector, ZIPKIN, tags);
    for _ in 0..5 {
        let answer = proxy.call("GET /long/path?q=1 HTTP/1.1\r\nhost: shop\r\nuser-agent: t\r\nx-who: me\r\n\r\n");
        assert_eq!(answer.header("x-envoy-decorator-operation"), Some("shop:80/*"));
    }
    let spans = reported(&collector, 5);
    assert_eq!((spans.len(), collector.seen().len()), (5, 1));
    let head = &collector.seen()[0];
    assert!(head.starts_with("POST /api/v2/spans HTTP/1.1\r\n") && head.contains("content-type: application/json"), "{head}");
    let (span, request) = (&spans[0], &upstream.seen()[0]);
    assert_eq!(span["kind"], "SERVER");
    assert_eq!(span["name"], "shop:80/*");
    assert_eq!(span["traceId"].as_str(), sent(request, "x-b3-traceid"));
    assert_eq!(span["id"].as_str(), sent(request, "x-b3-spanid"));
    assert_eq!(sent(request, "x-b3-sampled"), Some("1"));
    assert_eq!(sent(request, "x-request-id").unwrap().as_bytes()[14], b'9');
    let expected = [
        ("component", "proxy"),
        ("http.url", "http://shop/long/path?q=1"),
        ("http.method", "GET"),
        ("http.protocol", "HTTP/1.1"),
        ("http.status_code", "200"),
        ("upstream_cluster", "c"),
        ("upstream_cluster.name", "c"),
        ("user_agent", "t"),
        ("downstream_cluster", "-"),
        ("peer.address", "127.0.0.1"),
        ("response_flags", "-"),
        ("request_size", "0"),
        ("response_size", "5"),
        ("istio.mesh_id", "m"),
        ("who", "me"),
        ("code", "200"),
    ];
    for (name, value) in expected {
        assert_eq!(span["tags"][name], value, "{name}");
    }
    assert!(span["tags"].get("none").is_none() && span["tags"].get("error").is_none());
    eventually(|| proxy.stat("tracing.zipkin.spans_sent") == 5);
    assert_eq!(proxy.stat("http.t.tracing.random_sampling"), 5);
}

#[test]
fn a_callers_context_is_continued_and_its_decision_holds() {
    let (upstream, collector) = (Upstream::ok(""), collector());
    let proxy = traced(&upstream, &collector, ZIPKIN, "");
    let call = |context: &str| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\n{context}\r\n\r\n"));
    call("b3: 00000000000000aa-00000000000000bb-0");
    let single = "b3: 00000000000000aa-00000000000000bb-1-00000000000000cc\r\nx-envoy-decorator-operation: theirs";
    let answer = call(single);
    assert_eq!(answer.header("x-envoy-decorator-operation"), None);
    call("b3: nonsense");
    for _ in 0..4 {
        call("x-b3-traceid: 1\r\nx-b3-spanid: 2\r\nx-b3-sampled: 1");
    }
    let spans = reported(&collector, 5);
    assert_eq!(spans.len(), 5, "neither the unsampled nor the malformed one");
    // The server shares the span of the caller.
    assert_eq!((&spans[0]["traceId"], &spans[0]["id"]), (&"00000000000000aa".into(), &"00000000000000bb".into()));
    assert_eq!((&spans[0]["parentId"], &spans[0]["shared"]), (&"00000000000000cc".into(), &true.into()));
    assert_eq!(spans[0]["name"], "theirs");
    let requests = upstream.seen();
    assert_eq!(sent(&requests[0], "b3"), Some("00000000000000aa-00000000000000bb-0"));
    assert!(!requests[0].contains("x-b3-"), "a caller with one header gets one");
    assert_eq!(sent(&requests[1], "b3"), Some("00000000000000aa-00000000000000bb-1-00000000000000cc"));
    assert_eq!((sent(&requests[2], "b3"), sent(&requests[2], "x-b3-traceid")), (Some("nonsense"), None));
    assert_eq!(sent(&requests[3], "x-b3-spanid"), Some("0000000000000002"));
    assert!(!requests[1].contains("x-envoy-decorator-operation"));
}

#[test]
fn failures_are_marked_and_each_try_may_have_its_span() {
    let (upstream, collector) = (Upstream::start(|_, _, stream| write_status(stream, 503)), collector());
    let mut config = Config::to(&[upstream.port()])
        .routes("- {match: {prefix: /}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: 5xx, num_retries: 3}}}")
        .cluster(cluster("zipkin", &[collector.port()], ""));
    config.hcm = format!("tracing: {{spawn_upstream_span: true, provider: {{name: p, typed_config: {{{ZIPKIN}}}}}}}");
    let proxy = config.start();
    assert_eq!(proxy.get("/").status, 503);
    let spans = reported(&collector, 5);
    let (parent, tries) = spans.split_last().unwrap();
    assert_eq!((&parent["name"], &parent["tags"]["error"]), (&"a".into(), &"true".into()));
    assert_eq!(parent["tags"]["response_flags"], "URX");
    assert_eq!(
        tries.iter().map(|t| t["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["router c egress", "router c retry", "router c retry", "router c retry"]
    );
    for (attempt, request) in tries.iter().zip(upstream.seen()) {
        assert_eq!((&attempt["parentId"], &attempt["kind"]), (&parent["id"], &"CLIENT".into()));
        assert_eq!(attempt["id"].as_str(), sent(&request, "x-b3-spanid"));
    }
}

#[test]
fn a_route_has_shares_and_tags_of_its_own_and_tags_tell_what_filters_found() {
    let (upstream, collector) = (Upstream::ok(""), collector());
    let rbac = "- {name: envoy.filters.http.rbac, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, \
                shadow_rules_stat_prefix: istio_dry_run_, shadow_rules: {action: DENY, policies: {p: {permissions: [{any: true}], \
                principals: [{any: true}]}}}}}";
    let dry_run = "{kind: {request: {}}, metadata_key: {key: envoy.filters.http.rbac, path: [{key: istio_dry_run_shadow_engine_result}]}, \
                   default_value: none}";
    let mut config = Config::to(&[upstream.port()])
        .routes(
            "- {match: {prefix: /never}, route: {cluster: c}, tracing: {random_sampling: {numerator: 0}}}\n\
             - {match: {prefix: /}, route: {cluster: c}, tracing: {custom_tags: [{tag: who, literal: {value: route}}]}}",
        )
        .cluster(cluster("zipkin", &[collector.port()], ""));
    config.filters = rbac.to_owned();
    config.hcm = format!(
        "tracing: {{provider: {{name: p, typed_config: {{{ZIPKIN}}}}}, custom_tags: [{{tag: who, literal: {{value: listener}}}}, \
         {{tag: dry, metadata: {dry_run}}}, {{tag: other, metadata: {{metadata_key: {{key: none, path: [{{key: x}}]}}, default_value: d}}}}]}}"
    );
    let proxy = config.start();
    for _ in 0..5 {
        proxy.get("/never");
        proxy.get("/");
    }
    let spans = reported(&collector, 5);
    assert_eq!(spans.len(), 5);
    let tags = &spans[0]["tags"];
    assert_eq!((&tags["who"], &tags["dry"], &tags["other"]), (&"route".into(), &"denied".into(), &"d".into()));
}

#[test]
fn sampling_follows_the_request_id_and_what_is_not_sampled_is_not_reported() {
    let (upstream, collector) = (Upstream::ok(""), collector());
    let proxy = traced(&upstream, &collector, ZIPKIN, "random_sampling: {value: 50}");
    let call = |id: &str, more: &str| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n{more}\r\n"));
    let high = ID.replace("1387", "1388");
    for _ in 0..5 {
        call(&high, "");
        call(ID, "");
    }
    assert_eq!(reported(&collector, 5).len(), 5);
    let requests = upstream.seen();
    assert_eq!(sent(&requests[0], "x-request-id"), Some(&*high));
    assert_eq!(sent(&requests[0], "x-b3-sampled"), Some("0"));
    assert_eq!(sent(&requests[1], "x-request-id"), Some(&*ID.replace("-4eb4", "-9eb4")));
    assert_eq!((proxy.stat("http.t.tracing.random_sampling"), proxy.stat("http.t.tracing.not_traceable")), (5, 5));
}

#[test]
fn an_id_from_outside_is_kept_without_the_decision_in_it() {
    let (upstream, collector) = (Upstream::ok(""), collector());
    let mut config = Config::to(&[upstream.port()]).cluster(cluster("zipkin", &[collector.port()], ""));
    let tracing = format!("tracing: {{provider: {{name: p, typed_config: {{{ZIPKIN}}}}}, random_sampling: {{value: 0}}}}");
    config.hcm = format!("use_remote_address: true\npreserve_external_request_id: true\n{tracing}");
    let proxy = config.start();
    for id in [&*ID.replace("-4eb4", "-9eb4"), ""] {
        proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n\r\n"));
    }
    let requests = upstream.seen();
    assert_eq!((sent(&requests[0], "x-request-id"), sent(&requests[0], "x-b3-sampled")), (Some(ID), Some("0")));
    assert_eq!(sent(&requests[1], "x-request-id").map(str::len), Some(36), "an empty id is none");
}

#[test]
fn the_log_tells_the_trace_and_what_the_upstream_speaks() {
    let (upstream, collector, folder) = (Upstream::ok(""), collector(), tempfile::tempdir().unwrap());
    let log = folder.path().join("log");
    let mut config = Config::to(&[upstream.port()]).cluster(cluster("zipkin", &[collector.port()], ""));
    config.hcm = format!(
        "tracing: {{provider: {{name: p, typed_config: {{{ZIPKIN}}}}}}}\naccess_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, log_format: {{text_format_source: \
         {{inline_string: \"%TRACE_ID% %UPSTREAM_PROTOCOL% %RESP(:STATUS)%;\"}}}}}}}}]",
        log.display()
    );
    let proxy = config.start();
    assert_eq!(proxy.get("/").status, 200);
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually(|| !read().is_empty());
    let seen = upstream.seen();
    assert_eq!(read(), format!("{} HTTP/1.1 200;", sent(&seen[0], "x-b3-traceid").unwrap()));
}

#[test]
fn opentelemetry_over_http_speaks_w3c() {
    let (upstream, collector) = (Upstream::ok(""), Upstream::start(|_, _, stream| write_status(stream, 200)));
    let provider = "\"@type\": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: shop.default, http_service: \
                    {http_uri: {uri: \"http://otel.example/v1/traces\", cluster: zipkin, timeout: 1s}, \
                    request_headers_to_add: [{header: {key: x-token, value: secret}}]}";
    let proxy = traced(&upstream, &collector, provider, "");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for _ in 0..5 {
        proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\ntraceparent: {parent}\r\ntracestate: k=v\r\n\r\n"));
    }
    eventually(|| proxy.stat("tracing.opentelemetry.spans_sent") == 5);
    let report = &collector.seen()[0];
    assert!(report.starts_with("POST /v1/traces HTTP/1.1\r\nhost: otel.example\r\n"), "{report}");
    assert!(report.contains("application/x-protobuf") && report.contains("x-token: secret"));
    for text in ["service.name", "shop.default", "http.status_code", "shop:80/*", "k=v"] {
        assert!(report.contains(text), "{text}");
    }
    let requests = upstream.seen();
    let onward = sent(&requests[0], "traceparent").unwrap();
    assert!(onward.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && onward.ends_with("-01") && onward != parent, "{onward}");
    assert_eq!(sent(&requests[0], "tracestate"), Some("k=v"));
    assert!(!requests[0].contains("x-b3-"));
}

/// A collector that takes gRPC and tells the path and body of what it got.
fn grpc_collector(runtime: &tokio::runtime::Runtime) -> (u16, std::sync::mpsc::Receiver<(String, Vec<u8>)>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    runtime.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let head = format!("{} {:?}", request.uri().path(), request.headers());
                let (mut body, mut bytes) = (request.into_body(), Vec::new());
                while let Some(Ok(data)) = body.data().await {
                    bytes.extend_from_slice(&data);
                }
                let response = http::Response::builder().header("content-type", "application/grpc").header("grpc-status", "0");
                respond.send_response(response.body(()).unwrap(), true).unwrap();
                sender.send((head, bytes)).unwrap();
            });
        }
    });
    (port, receiver)
}

#[test]
fn opentelemetry_over_grpc_sends_one_framed_message() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (port, reports) = grpc_collector(&runtime);
    let upstream = Upstream::ok("");
    let h2 = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
              type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}";
    let mut config = Config::to(&[upstream.port()]).cluster(cluster("otel", &[port], h2));
    config.hcm = "tracing: {provider: {name: p, typed_config: {\"@type\": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, \
                  grpc_service: {envoy_grpc: {cluster_name: otel}, initial_metadata: [{key: x-token, value: t}]}}}}"
        .to_owned();
    let proxy = config.start();
    for _ in 0..5 {
        proxy.get("/");
    }
    let (head, body) = reports.recv_timeout(WAIT).unwrap();
    assert!(head.starts_with("/opentelemetry.proto.collector.trace.v1.TraceService/Export "), "{head}");
    assert!(head.contains("application/grpc") && head.contains("x-token"), "{head}");
    assert_eq!(body[0], 0);
    assert_eq!(u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize, body.len() - 5);
    assert!(String::from_utf8_lossy(&body).contains("unknown_service:envoy"));
    eventually(|| proxy.stat("tracing.opentelemetry.spans_sent") == 5);
}

#[test]
fn a_dead_collector_costs_spans_and_nothing_else() {
    let upstream = Upstream::ok("fine");
    let dead = dead_port();
    let mut config = Config::to(&[upstream.port()]).cluster(cluster("zipkin", &[dead], ""));
    config.hcm = format!("tracing: {{provider: {{name: p, typed_config: {{{ZIPKIN}}}}}}}");
    let proxy = config.start();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").body, "fine");
    }
    eventually(|| proxy.stat("tracing.zipkin.spans_dropped") >= 5);
    assert!(proxy.stat("tracing.zipkin.reports_failed") >= 1);
}

#[test]
fn an_operation_that_is_not_to_be_told_is_kept() {
    let (upstream, collector) = (Upstream::ok(""), collector());
    let mut config = Config::to(&[upstream.port()])
        .routes("- {match: {prefix: /}, route: {cluster: c}, decorator: {operation: inside, propagate: false}}")
        .cluster(cluster("zipkin", &[collector.port()], ""));
    config.hcm = format!("tracing: {{provider: {{name: p, typed_config: {{{ZIPKIN}}}}}}}");
    let proxy = config.start();
    for _ in 0..5 {
        assert_eq!(proxy.get("/").header("x-envoy-decorator-operation"), None);
    }
    assert!(reported(&collector, 5).iter().all(|span| span["name"] == "inside" && span["shared"] == true));
}
