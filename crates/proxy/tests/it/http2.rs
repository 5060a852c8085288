//! HTTP/2 on both sides: streams, trailers, translation to and from HTTP/1.
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};

use crate::support::*;

pub(crate) const H2_UPSTREAM: &str = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {http2_protocol_options: {}}";

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

pub(crate) async fn connect(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender.ready().await.unwrap()
}

async fn read(response: h2::client::ResponseFuture) -> (http::response::Parts, Vec<u8>, Option<http::HeaderMap>) {
    let (parts, mut body) = response.await.unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    (parts, bytes, body.trailers().await.unwrap())
}

/// An upstream that echoes bodies and ends with trailers.
async fn echo_server() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let te = request.headers().get("te").cloned();
                        let mut body = request.into_body();
                        let mut response = Response::new(());
                        response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                        if let Some(te) = te {
                            response.headers_mut().insert("x-te", te);
                        }
                        let mut send = respond.send_response(response, false).unwrap();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                            send.send_data(data, false).unwrap();
                        }
                        let mut trailers = body.trailers().await.unwrap().unwrap_or_default();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        send.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

pub(crate) fn get(path: &str) -> Request<()> {
    Request::get(format!("http://shop{path}")).body(()).unwrap()
}

#[test]
fn streams_share_connections_and_reach_http1_upstreams() {
    let upstream = Upstream::start(|_, request, stream| write_ok(stream, request.split(' ').nth(1).unwrap()));
    let proxy = Config::to(&[upstream.port()]).start();
    runtime().block_on(async {
        let mut sender = connect(proxy.address).await;
        let responses: Vec<_> = (0..20).map(|i| sender.send_request(get(&format!("/{i}")), true).unwrap().0).collect();
        for (i, response) in responses.into_iter().enumerate() {
            let (parts, body, _) = read(response).await;
            assert_eq!((parts.status, body), (StatusCode::OK, format!("/{i}").into_bytes()));
        }
    });
    assert!(upstream.seen().iter().all(|r| r.contains("host: shop\r\n")));
    assert_eq!(proxy.stat("http.t.downstream_cx_http2_total"), 1);
}

#[test]
fn grpc_like_exchanges_keep_bodies_and_trailers_end_to_end() {
    runtime().block_on(async {
        let address = echo_server().await;
        let mut config = Config::to(&[]);
        config.clusters = vec![cluster("c", &[address.port()], H2_UPSTREAM)];
        let proxy = tokio::task::block_in_place(|| config.start());
        let mut sender = connect(proxy.address).await;
        let request =
            Request::post("http://shop/svc/Method").header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap();
        let (response, mut send) = sender.send_request(request, false).unwrap();
        let big = Bytes::from(vec![b'm'; 200_000]);
        let sending = async {
            let mut left = big.clone();
            while !left.is_empty() {
                send.reserve_capacity(left.len());
                let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
                send.send_data(left.split_to(room.min(left.len())), false).unwrap();
            }
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-up", "yes".parse().unwrap());
            send.send_trailers(trailers).unwrap();
        };
        let ((parts, body, trailers), ()) = tokio::join!(read(response), sending);
        assert_eq!((parts.status, body.len()), (StatusCode::OK, big.len()));
        assert_eq!(parts.headers["x-te"], "trailers");
        let trailers = trailers.unwrap();
        assert_eq!((&trailers["grpc-status"], &trailers["x-up"]), (&"0".parse::<http::HeaderValue>().unwrap(), &"yes".parse().unwrap()));
        tokio::task::block_in_place(|| eventually(|| proxy.stat("cluster.c.upstream_cx_http2_total") == 1));
    });
}

#[test]
fn http1_callers_get_chunks_and_trailers_from_http2_upstreams_over_one_connection() {
    runtime().block_on(async {
        let address = echo_server().await;
        let mut config = Config::to(&[]);
        config.clusters = vec![cluster("c", &[address.port()], H2_UPSTREAM)];
        let proxy = tokio::task::block_in_place(|| config.start());
        let call = || tokio::task::block_in_place(|| proxy.call("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"));
        for _ in 0..3 {
            let answer = call();
            assert!(answer.body.contains("hello") && answer.body.contains("grpc-status: 0"), "{answer:?}");
        }
        assert_eq!(proxy.stat("cluster.c.upstream_cx_http2_total"), 1);
    });
}

#[test]
fn a_caller_that_resets_cancels_the_exchange_upstream() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(300));
        write_ok(stream, "late")
    });
    let proxy = Config::to(&[upstream.port()]).start();
    runtime().block_on(async {
        let mut sender = connect(proxy.address).await;
        let (response, mut stream) = sender.send_request(get("/"), true).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        tokio::task::block_in_place(|| eventually(|| proxy.stat("cluster.c.upstream_rq_cancelled") == 1));
        let (parts, ..) = read(sender.send_request(get("/again"), true).unwrap().0).await;
        assert_eq!(parts.status, StatusCode::OK);
    });
}

#[test]
fn a_head_with_two_conflicting_names_is_refused() {
    let upstream = Upstream::ok("no");
    let proxy = Config::to(&[upstream.port()]).start();
    runtime().block_on(async {
        let mut sender = connect(proxy.address).await;
        let request = Request::get("http://shop/").header("host", "other").body(()).unwrap();
        let answer = sender.send_request(request, true).unwrap().0.await;
        let refused = match &answer {
            Ok(response) => response.status() == StatusCode::BAD_REQUEST,
            Err(error) => error.reason() == Some(h2::Reason::PROTOCOL_ERROR),
        };
        assert!(refused, "{answer:?}");
    });
    assert!(upstream.seen().is_empty());
}

#[test]
fn a_drain_says_goaway_and_lets_open_streams_finish() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(300));
        write_ok(stream, "done")
    });
    let proxy = Config::to(&[upstream.port()]).start();
    runtime().block_on(async {
        let mut sender = connect(proxy.address).await;
        let (response, _) = sender.send_request(get("/"), true).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        proxy.worker.drain();
        let (parts, body, _) = read(response).await;
        assert_eq!((parts.status, body), (StatusCode::OK, b"done".to_vec()));
        tokio::task::block_in_place(|| eventually(|| proxy.worker.connections() == 0));
    });
}

#[test]
fn grpc_calls_and_messages_are_counted_by_cluster_and_method() {
    let runtime = runtime();
    let upstream = runtime.block_on(echo_server());
    let filter = |more: &str| {
        format!(
            "- name: envoy.filters.http.grpc_stats\n  typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig, {more}}}"
        )
    };
    let start = |more: &str| {
        let mut config = Config::to(&[]);
        config.clusters = vec![cluster("c", &[upstream.port()], H2_UPSTREAM)];
        config.filters = filter(more);
        config.start()
    };
    let call = |proxy: &Proxy| {
        runtime.block_on(async {
            let mut sender = connect(proxy.address).await;
            let request = Request::post("http://shop/a.B/C").header("content-type", "application/grpc").header("te", "trailers");
            let (response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
            body.send_data(Bytes::from_static(b"\0\0\0\0\x01x\0\0\0\0\0"), true).unwrap();
            read(response).await
        });
    };
    let counted = |proxy: &Proxy, under: &str| {
        eventually(|| proxy.stat(&format!("{under}.total")) == 1);
        ["success", "failure", "0", "request_message_count", "response_message_count"].map(|n| proxy.stat(&format!("{under}.{n}")))
    };
    let plain = start("emit_filter_state: true");
    call(&plain);
    assert_eq!(counted(&plain, "cluster.c.grpc"), [1, 0, 1, 2, 2]);
    let all = start("stats_for_all_methods: true, replace_dots_in_grpc_service_name: true");
    call(&all);
    assert_eq!(counted(&all, "cluster.c.grpc.a_B.C"), [1, 0, 1, 2, 2]);
    assert_eq!(all.stat("cluster.c.grpc.total"), 0);
    let other = start("individual_method_stats_allowlist: {services: [{name: a.B, method_names: [D]}]}");
    call(&other);
    assert_eq!(counted(&other, "cluster.c.grpc"), [1, 0, 1, 2, 2]);
}

#[test]
fn the_end_of_a_response_waits_for_its_caller_only_so_long() {
    let upstream = Upstream::ok("longer than the window");
    for (listener, route, least, most) in [
        ("stream_flush_timeout: 0.3s", "", 250, 5_000),
        ("stream_flush_timeout: 60s", ", flush_timeout: 0.3s", 250, 5_000),
        ("stream_idle_timeout: 0.3s", ", idle_timeout: 0.6s", 550, 5_000),
        // Neither limits of the response itself nor of its stream count any more.
        ("stream_flush_timeout: 1s\ncommon_http_protocol_options: {max_stream_duration: 0.3s}", ", timeout: 0.3s", 950, 5_000),
    ] {
        let mut config = Config::to(&[upstream.port()]).routes(&format!("- {{match: {{prefix: /}}, route: {{cluster: c{route}}}}}"));
        config.hcm = listener.to_owned();
        let proxy = config.start();
        runtime().block_on(async {
            let stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
            let (sender, connection) = h2::client::Builder::new().initial_window_size(10).handshake::<_, Bytes>(stream).await.unwrap();
            tokio::spawn(async move {
                let _ = connection.await;
            });
            let start = std::time::Instant::now();
            let (response, _) = sender.ready().await.unwrap().send_request(get("/"), true).unwrap();
            let mut body = response.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "longer tha");
            let end = tokio::time::timeout(WAIT, body.data()).await.expect("an end");
            assert!(end.unwrap().is_err(), "{listener} {route}");
            let millis = start.elapsed().as_millis();
            assert!((least..most).contains(&millis), "{listener} {route}: {millis}");
        });
    }
}

#[test]
fn a_delay_ends_with_the_caller_whose_body_is_not_all_there() {
    let mut config = Config::to(&[dead_port()]);
    config.filters = "- name: envoy.filters.http.fault\n  typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, \
                      delay: {fixed_delay: 60s, percentage: {numerator: 100}}}"
        .to_owned();
    let proxy = config.start();
    runtime().block_on(async {
        let mut sender = connect(proxy.address).await;
        let (response, mut send) = sender.send_request(Request::post("http://shop/").body(()).unwrap(), false).unwrap();
        send.send_data(Bytes::from_static(b"some"), false).unwrap();
        tokio::task::block_in_place(|| eventually(|| proxy.stat("http.t.fault.active_faults") == 1));
        send.send_reset(h2::Reason::CANCEL);
        tokio::task::block_in_place(|| eventually(|| proxy.stat("http.t.fault.active_faults") == 0));
        assert!(response.await.is_err());
    });
}
