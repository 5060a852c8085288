//! Everything that is not plain HTTP/1.1 by service name: TCP, server-first TCP, WebSocket, gRPC, HTTP/2, IPv6, headless services.
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{RECOMMENDATION, document, routes, subsets, to};

exercises!("protocols": tcp_echo, tcp_is_steered, server_first_tcp, server_first_on_an_undeclared_port, websocket, grpc_unary, grpc_stream, grpc_errors_in_trailers,
    grpc_is_steered, http2_prior_knowledge, headless_service, pod_address, ipv6_pod_address, every_form_of_the_name);

fn tcp_echo(mesh: &Mesh) {
    settles("lines come back", || {
        let output = mesh.from("customer").probe(&["talk", "recommendation:9000", "one", "two"]);
        let lines: Vec<&str> = output.out.lines().collect();
        check!(lines.len() == 2 && lines[0].ends_with(": one") && lines[1].ends_with(": two"), "{output:?}")
    });
}

fn tcp_is_steered(mesh: &Mesh) {
    let route = "tcp: [{match: [{port: 9000}], route: [{destination: {host: recommendation, subset: v2, port: {number: 9000}}}]}]";
    mesh.apply(&(subsets() + &document("VirtualService", "recommendation-tcp", &format!("hosts: [recommendation], {route}"))));
    let version = || mesh.from("customer").probe(&["talk", "recommendation:9000", "hello"]).out;
    settles("v2 answers", || check!((0..6).all(|_| version().starts_with("recommendation v2")), "not every time"));
}

fn server_first_tcp(mesh: &Mesh) {
    settles("the server's greeting arrives", || {
        let output = mesh.from("customer").probe(&["talk", "recommendation:9025"]);
        ensure!(output.out.starts_with("220 recommendation"), "{output:?}");
        check!(output.took < Duration::from_secs(2), "only after {:?}", output.took)
    });
}

fn server_first_on_an_undeclared_port(mesh: &Mesh) {
    settles("the greeting arrives though nobody declared the protocol", || {
        let output = mesh.from("customer").probe(&["talk", "preference:9025"]);
        check!(output.out.starts_with("220 preference"), "{output:?}")
    });
}

fn websocket(mesh: &Mesh) {
    settles("messages come back", || {
        let output = mesh.from("customer").probe(&["websocket", "recommendation:8080", "recommendation:8080", "hello"]);
        check!(output.out == "hello 0\nhello 1\nhello 2\n", "{output:?}")
    });
}

fn grpc(mesh: &Mesh, method: &str, options: &[&str]) -> anyhow::Result<Value> {
    let output = mesh.from("customer").probe(&[&["grpc", "http://recommendation:9090", method], options].concat());
    serde_json::from_str(&output.out).map_err(|_| anyhow::anyhow!("{output:?}"))
}

fn grpc_unary(mesh: &Mesh) {
    settles("an answer with its status in the trailers", || {
        let answer = grpc(mesh, "Call", &["message=hello"])?;
        ensure!(answer["versions"].as_array().is_some_and(|v| v.len() == 1), "{answer}");
        check!(answer["grpc_status_in_trailers"] == "0" && answer["grpc_status_in_headers"].is_null(), "{answer}")
    });
}

fn grpc_stream(mesh: &Mesh) {
    settles("every message of the stream, and its end", || {
        let answer = grpc(mesh, "Stream", &["message=hello", "count=20", "interval=10"])?;
        ensure!(answer["versions"].as_array().is_some_and(|v| v.len() == 20), "{answer}");
        check!(answer["grpc_status_in_trailers"] == "0", "{answer}")
    });
    let broken = grpc(mesh, "Stream", &["message=hello", "count=3", "fail=9"]).unwrap();
    assert_eq!(broken["versions"].as_array().map(Vec::len), Some(3), "{broken}");
    assert_eq!(broken["grpc_status_in_trailers"], "9", "a failure after three messages: {broken}");
}

fn grpc_errors_in_trailers(mesh: &Mesh) {
    settles("a refusal reaches the caller as the service sent it", || {
        let answer = grpc(mesh, "Call", &["fail=7"])?;
        let status = [&answer["grpc_status_in_headers"], &answer["grpc_status_in_trailers"]];
        check!(answer["status"] == 200 && status.contains(&&Value::from("7")) && answer["message"] == "failing as asked", "{answer}")
    });
    mesh.apply(&routes(&format!("{{fault: {{abort: {{percentage: {{value: 100}}, grpcStatus: UNAVAILABLE}}}}, {}}}", to("v1"))));
    settles("an injected refusal is gRPC's", || {
        let answer = grpc(mesh, "Call", &["message=x"])?;
        check!(answer["status"] == 200 && answer["grpc_status_in_headers"] == "14", "{answer}")
    });
}

fn grpc_is_steered(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{match: [{{uri: {{prefix: /lateen.app.Echo/Call}}}}], {}}}, {{{}}}", to("v2"), to("v1"))));
    settles("the method chooses the version", || {
        let (call, stream) = (grpc(mesh, "Call", &["message=x"])?, grpc(mesh, "Stream", &["message=x"])?);
        check!(call["versions"] == serde_json::json!(["v2"]) && stream["versions"] == serde_json::json!(["v1"]), "{call} {stream}")
    });
}

fn http2_prior_knowledge(mesh: &Mesh) {
    settles("HTTP/2 from the caller", || {
        let report = mesh.from("customer").load_with(RECOMMENDATION, 100, &["--http2", "--connections", "2"])?;
        report.ensure_clean().map(drop)
    });
}

fn headless_service(mesh: &Mesh) {
    settles("a service without an address of its own", || {
        let report = mesh.from("customer").load("http://recommendation-pods:8080/", 20)?;
        report.ensure_clean().map(drop)
    });
}

fn pod_address(mesh: &Mesh) {
    let address = mesh.pod_address("recommendation-v2", false);
    let answer = mesh.from("customer").get(&format!("http://{address}:8080/"));
    assert_eq!(answer.ensure_status(200).unwrap().version().unwrap(), "v2");
}

fn ipv6_pod_address(mesh: &Mesh) {
    let address = mesh.pod_address("recommendation-v2", true);
    let answer = mesh.from("customer").get(&format!("http://[{address}]:8080/"));
    assert_eq!(answer.ensure_status(200).unwrap().version().unwrap(), "v2");
}

fn every_form_of_the_name(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{{}}}", to("v2"))));
    settles("the rule holds under the short name", || {
        mesh.from("customer").load(RECOMMENDATION, 10)?.share("recommendation", "v2").ensure_all()
    });
    for name in ["recommendation.default", "recommendation.default.svc", "recommendation.default.svc.cluster.local"] {
        let report = mesh.from("customer").load(&format!("http://{name}:8080/"), 10).unwrap();
        report.ensure_clean().unwrap().share("recommendation", "v2").ensure_all().unwrap();
    }
}
