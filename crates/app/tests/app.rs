//! The sample service over real sockets on loopback.
use bytes::Bytes;
use clap::Parser;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use lateen_app::load::{self, LoadOptions, Report};
use lateen_app::{AppArgs, Server};
use serde_json::Value;
use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: AppArgs,
}

fn local<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, limited)
}

struct Running {
    http: SocketAddr,
    tcp: Option<SocketAddr>,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<()>>,
}

async fn start(args: &[&str]) -> Running {
    let fixed = ["app", "--port", "0", "--address", "127.0.0.1"];
    let cli = Cli::try_parse_from(fixed.iter().chain(args)).unwrap();
    let server = Server::bind(cli.args.serve).await.unwrap();
    let (http, tcp) = (server.http_address().unwrap(), server.tcp_address());
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::task::spawn_local(server.run(async move {
        let _ = stopped.await;
    }));
    Running { http, tcp, stop, ended }
}

fn client(http2: bool) -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(http2).build(HttpConnector::new())
}

async fn fetch(http2: bool, request: Request<Full<Bytes>>) -> (u16, http::HeaderMap, String) {
    let (parts, body) = client(http2).request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned())
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = Request::get(format!("http://{address}{path}")).body(Full::default()).unwrap();
    let (status, _, body) = fetch(false, request).await;
    (status, body)
}

#[test]
fn a_chain_answers_in_the_tutorials_words() {
    local(async {
        let recommendation = start(&["--name", "recommendation", "--format", "tutorial"]).await;
        let call = format!("http://{}/", recommendation.http);
        let preference = start(&["--name", "preference", "--format", "tutorial", "--call", &call]).await;
        let call = format!("http://{}/", preference.http);
        let customer = start(&["--name", "customer", "--format", "tutorial", "--call", &call]).await;

        let (status, body) = get(customer.http, "/").await;
        assert_eq!(status, 200);
        assert!(body.starts_with("customer => preference => recommendation v1 from '") && body.ends_with("': 1\n"), "{body}");
        assert!(get(customer.http, "/").await.1.ends_with("': 2\n"));

        get(recommendation.http, "/admin/misbehave?code=503").await;
        let (status, body) = get(customer.http, "/").await;
        assert_eq!(status, 503);
        assert!(body.starts_with("customer => Error: 503 - preference => Error: 503 - recommendation misbehavior from '"), "{body}");
        get(recommendation.http, "/behave").await;
        assert_eq!(get(customer.http, "/").await.0, 200);
    });
}

#[test]
fn json_shows_the_request_and_forwards_what_traces_need() {
    local(async {
        let ratings = start(&["--name", "ratings", "--version", "v2"]).await;
        let call = format!("http://{}/ratings/1", ratings.http);
        let reviews = start(&["--name", "reviews", "--call", &call, "--message", "hi", "--forward", "x-flavour"]).await;
        let request = Request::post(format!("http://{}/any/path?q=1", reviews.http))
            .header("end-user", "jason")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .header("baggage-user-agent", "x")
            .header("x-flavour", "mint")
            .header("x-secret", "not forwarded")
            .body(Full::from("data"))
            .unwrap();
        let (status, headers, body) = fetch(false, request).await;
        assert_eq!(status, 200);
        assert_eq!(headers["x-app-chain"], "reviews/v1,ratings/v2");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["service"], &body["method"], &body["path"]), (&"reviews".into(), &"POST".into(), &"/any/path?q=1".into()));
        assert_eq!(body["message"], "hi");
        let inner = &body["calls"][0];
        assert_eq!(inner["status"], 200);
        assert_eq!(inner["body"]["version"], "v2");
        assert_eq!(inner["body"]["path"], "/ratings/1");
        for (name, value) in [("end-user", "jason"), ("baggage-user-agent", "x"), ("x-flavour", "mint")] {
            assert_eq!(inner["body"]["headers"][name], value);
        }
        assert!(inner["body"]["headers"]["traceparent"].is_string());
        assert!(inner["body"]["headers"]["x-secret"].is_null());
    });
}

#[test]
fn an_unreachable_callee_is_named_not_hidden() {
    local(async {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = nobody.local_addr().unwrap();
        drop(nobody);
        let app = start(&["--call", &format!("http://{dead}/")]).await;
        let (status, body) = get(app.http, "/").await;
        assert_eq!(status, 503);
        let error = serde_json::from_str::<Value>(&body).unwrap()["calls"][0]["error"].as_str().unwrap().to_owned();
        assert!(error.contains("refused"), "{error}");
        let slow = start(&["--latency", "5s"]).await;
        let impatient = start(&["--call", &format!("http://{}/", slow.http), "--call-timeout", "100ms"]).await;
        assert!(get(impatient.http, "/").await.1.contains("no answer within 100ms"));
    });
}

#[test]
fn knobs_and_utility_paths() {
    local(async {
        let app = start(&["--body-size", "5000"]).await;
        assert!(get(app.http, "/").await.1.len() >= 5_000);
        assert_eq!(get(app.http, "/healthz").await, (200, "ok\n".into()));
        assert_eq!(get(app.http, "/status/418").await.0, 418);
        assert_eq!(get(app.http, "/status/9999").await.0, 400);
        assert_eq!(get(app.http, "/status/101").await.0, 400);
        assert_eq!(get(app.http, "/bytes/200001").await.1.len(), 200_001);
        let started = std::time::Instant::now();
        get(app.http, "/delay/120").await;
        assert!(started.elapsed() >= Duration::from_millis(120));
        get(app.http, "/admin/latency?ms=150").await;
        let started = std::time::Instant::now();
        get(app.http, "/").await;
        assert!(started.elapsed() >= Duration::from_millis(150));
        assert_eq!(get(app.http, "/admin/latency?ms=soon").await.0, 400);
        assert_eq!(get(app.http, "/admin/nothing").await.0, 404);
        assert_eq!(get(app.http, "/count").await.1, "7\n", "knobs and health do not count");
        let stats: Value = serde_json::from_str(&get(app.http, "/stats").await.1).unwrap();
        assert_eq!(stats["requests"], 7);
        assert_eq!(stats["paths"]["/bytes/200001"], 1);
        assert_eq!(stats["recent"][1]["path"], "/status/418");
        get(app.http, "/stats/reset").await;
        assert_eq!(get(app.http, "/count").await.1, "0\n");
        let request = Request::post(format!("http://{}/echo", app.http)).body(Full::from("back again")).unwrap();
        assert_eq!(fetch(false, request).await.2, "back again");
    });
}

#[test]
fn errors_come_at_the_asked_rate() {
    local(async {
        let app = start(&["--error-rate", "0.3", "--error-code", "500"]).await;
        let mut options = LoadOptions::new(format!("http://{}/", app.http).parse().unwrap());
        options.rps = 4_000.0;
        options.requests = Some(2_000);
        let report = Rc::new(RefCell::new(Report::default()));
        load::run(&options, report.clone(), std::future::pending()).await;
        let failed = report.borrow().statuses[&500];
        // Six standard deviations of 2000 throws at 0.3.
        assert!((477..=723).contains(&failed), "{failed}");
    });
}

#[test]
fn http2_and_grpc_answer_on_the_same_port() {
    local(async {
        let app = start(&["--name", "echo"]).await;
        let request = Request::get(format!("http://{}/headers", app.http)).header("x-a", "b").body(Full::default()).unwrap();
        let (status, _, body) = fetch(true, request).await;
        assert_eq!(status, 200);
        assert!(body.contains("\"x-a\": \"b\"") && body.contains("\"host\""), "{body}");

        // EchoRequest { message: "hi", count: 3 }
        let message = [0x0a, 2, b'h', b'i', 0x10, 3];
        let framed = [&[0, 0, 0, 0, message.len() as u8], message.as_slice()].concat();
        for (path, replies, status) in
            [("/lateen.app.Echo/Call", 1, "0"), ("/lateen.app.Echo/Stream", 3, "0"), ("/lateen.app.Echo/Nope", 0, "12")]
        {
            let request =
                Request::post(format!("http://{}{path}", app.http)).header("content-type", "application/grpc").header("te", "trailers");
            let response = client(true).request(request.body(Full::from(framed.clone())).unwrap()).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.unwrap();
            let trailers = body.trailers().cloned().unwrap_or_default();
            let found = trailers.get("grpc-status").or(parts.headers.get("grpc-status")).unwrap();
            assert_eq!(found, status, "{path}");
            let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            assert_eq!(text.matches("echo").count(), replies, "{path}: {text}");
        }
        get(app.http, "/admin/misbehave?code=503").await;
        let request = Request::post(format!("http://{}/lateen.app.Echo/Call", app.http)).header("content-type", "application/grpc");
        let (status, headers, _) = fetch(true, request.body(Full::from(framed)).unwrap()).await;
        assert_eq!((status, &headers["grpc-status"]), (200, &"14".parse().unwrap()));

        let caller = start(&["--call", &format!("grpc://{}", app.http)]).await;
        assert!(get(caller.http, "/").await.1.contains("grpc-status 14"));
        get(app.http, "/admin/behave").await;
        let (status, body) = get(caller.http, "/").await;
        assert_eq!(status, 200);
        assert!(body.contains("\"service\": \"echo\""), "{body}");
    });
}

#[test]
fn websockets_echo() {
    local(async {
        let app = start(&[]).await;
        let mut socket = tokio::net::TcpStream::connect(app.http).await.unwrap();
        let request = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        // "Hello", masked, as in RFC 6455.
        socket.write_all(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]).await.unwrap();
        let mut echoed = [0; 7];
        socket.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"\x81\x05Hello");
        socket.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x88\x00");
    });
}

#[test]
fn tcp_greets_first_if_told_and_echoes_lines() {
    local(async {
        let app = start(&["--name", "db", "--tcp-port", "0", "--server-first"]).await;
        let mut socket = tokio::net::TcpStream::connect(app.tcp.unwrap()).await.unwrap();
        let mut greeting = [0; 9];
        socket.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 db v1");
        socket.write_all(b"one\ntwo\n").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut rest = String::new();
        socket.read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains(": one\n") && rest.ends_with(": two\n"), "{rest}");

        let quiet = start(&["--tcp-port", "0"]).await;
        let caller = start(&["--call", &format!("tcp://{}", quiet.tcp.unwrap())]).await;
        let (status, body) = get(caller.http, "/").await;
        assert!(status == 200 && body.contains("': hello\""), "{body}");
    });
}

#[test]
fn stopping_finishes_what_is_running() {
    local(async {
        let app = start(&["--latency", "400ms"]).await;
        let address = app.http;
        let running = tokio::task::spawn_local(async move { get(address, "/").await.0 });
        while get(address, "/count").await.1 == "0\n" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        app.stop.send(()).unwrap();
        assert_eq!(running.await.unwrap(), 200);
        app.ended.await.unwrap().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    });
}

#[test]
fn load_keeps_its_rate_and_counts_from_when_requests_were_due() {
    local(async {
        for extra in ["http1", "http2", "no-keepalive"] {
            let app = start(&["--name", "target", "--version", "v3", "--latency", "20ms"]).await;
            let mut options = LoadOptions::new(format!("http://{}/", app.http).parse().unwrap());
            options.rps = 200.0;
            options.duration = Some(Duration::from_secs(1));
            options.http2 = extra == "http2";
            options.no_keepalive = extra == "no-keepalive";
            let report = Rc::new(RefCell::new(Report::default()));
            load::run(&options, report.clone(), std::future::pending()).await;
            let report = report.borrow();
            assert_eq!(report.scheduled, 200, "{extra}");
            assert_eq!(report.answered, 200, "{extra}: {report}");
            assert_eq!(report.success_rate(), 1.0);
            assert_eq!(report.share("target", "v3"), 1.0);
            assert!(report.latency_millis().p50 >= 20.0);
        }
        // One connection, 50 ms a request, 40 due in a second: the last waits for all before it.
        let app = start(&["--latency", "50ms"]).await;
        let mut options = LoadOptions::new(format!("http://{}/", app.http).parse().unwrap());
        (options.rps, options.requests, options.connections) = (40.0, Some(40), 1);
        let report = Rc::new(RefCell::new(Report::default()));
        load::run(&options, report.clone(), std::future::pending()).await;
        assert!(report.borrow().latency_millis().max >= 900.0, "{}", report.borrow());
    });
}

#[test]
fn load_names_why_nothing_came() {
    local(async {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = nobody.local_addr().unwrap();
        drop(nobody);
        let mut options = LoadOptions::new(format!("http://{dead}/").parse().unwrap());
        (options.rps, options.requests) = (100.0, Some(5));
        let report = Rc::new(RefCell::new(Report::default()));
        load::run(&options, report.clone(), std::future::pending()).await;
        assert_eq!(report.borrow().errors["connect"], 5);
        let slow = start(&["--latency", "5s"]).await;
        let mut options = LoadOptions::new(format!("http://{}/", slow.http).parse().unwrap());
        (options.rps, options.requests, options.timeout) = (100.0, Some(5), Duration::from_millis(100));
        let report = Rc::new(RefCell::new(Report::default()));
        load::run(&options, report.clone(), std::future::pending()).await;
        assert_eq!(report.borrow().errors["timeout"], 5);
    });
}

/// As the program embeds it: its own `--version` must not collide with the service's.
#[test]
fn the_options_fit_below_a_program_with_a_version() {
    #[derive(Parser)]
    #[command(name = "program", version = "9.9", propagate_version = true)]
    enum Program {
        App(AppArgs),
    }
    use clap::CommandFactory as _;
    Program::command().debug_assert();
    let Program::App(args) = Program::try_parse_from(["program", "app", "--version", "v7"]).unwrap();
    assert_eq!(args.serve.version, "v7");
    let Program::App(args) = Program::try_parse_from(["program", "app", "load", "-u", "x:80"]).unwrap();
    assert!(args.command.is_some());
}

#[test]
fn wrong_options_are_refused() {
    for wrong in
        [&["--error-rate", "2"][..], &["--call", "https://x/"], &["--latency", "80ms..20ms"], &["--server-first"], &["--error-code", "99"]]
    {
        assert!(Cli::try_parse_from([&["app"], wrong].concat()).is_err(), "{wrong:?}");
    }
    assert!(Cli::try_parse_from(["app", "load", "--url", "https://x/"]).is_err());
    assert!(Cli::try_parse_from(["app", "load", "--url", "x:80/", "-H", "nonsense"]).is_err());
    assert!(Cli::try_parse_from(["app", "load", "--url", "x:80/", "-H", "a: b", "--rps", "5"]).is_ok());
}
