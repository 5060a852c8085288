//! Active health checks: HTTP, gRPC and TCP, one loop per host and check.
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_balance::host::FAILED_ACTIVE_HC;
use lateen_balance::{Address, Host};
use lateen_snapshot::Cluster;
use lateen_snapshot::cluster::{HealthCheck, HealthCheckKind, UpstreamHttp};
use tokio::task::{AbortHandle, JoinSet};

use super::Main;
use super::upstream::connect_host;

/// The largest answer to a health check that is read.
const MAX_ANSWER: usize = 4096;

type Key = (Arc<str>, Address, usize);

/// Keeps a loop running for each check of each host.
pub(super) async fn run(main: Arc<Main>) {
    let mut snapshots = main.snapshots();
    let mut running: HashMap<Key, (Arc<Host>, AbortHandle)> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let mut wanted: HashMap<Key, (Arc<Cluster>, Arc<Host>)> = HashMap::new();
        for cluster in snapshot.clusters.iter().flatten() {
            for index in 0..cluster.config.health_checks.len() {
                for host in cluster.hosts.hosts() {
                    wanted.insert((cluster.config.name.clone(), host.address.clone(), index), (cluster.clone(), host.clone()));
                }
            }
        }
        running.retain(|key, (host, task)| {
            let keep = wanted.get(key).is_some_and(|(_, h)| Arc::ptr_eq(h, host));
            if !keep {
                task.abort();
            }
            keep
        });
        for (key, (cluster, host)) in wanted {
            let index = key.2;
            running.entry(key).or_insert_with(|| (host.clone(), tasks.spawn(check(main.clone(), cluster, host, index))));
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

/// A new host counts as failed until its first check passes (Envoy: the first result decides at once).
async fn check(main: Arc<Main>, cluster: Arc<Cluster>, host: Arc<Host>, index: usize) {
    let Some(check) = cluster.config.health_checks.get(index).cloned() else { return };
    let mut first = true;
    let (mut good, mut bad) = (0u32, 0u32);
    set(&main, &cluster, &host, true);
    loop {
        let passed = matches!(tokio::time::timeout(check.timeout, probe(&main, &cluster, &host, &check)).await, Ok(true));
        (good, bad) = if passed { (good.saturating_add(1), 0) } else { (0, bad.saturating_add(1)) };
        if passed && (first || good >= check.healthy_threshold) {
            set(&main, &cluster, &host, false);
        } else if !passed && (first || bad >= check.unhealthy_threshold) {
            set(&main, &cluster, &host, true);
        }
        first = false;
        tokio::time::sleep(check.interval).await;
    }
}

/// The members may have been republished since: the flag is the host's, the notice goes to the set in force.
fn set(main: &Main, cluster: &Cluster, host: &Host, failed: bool) {
    let was_failed = host.flags() & FAILED_ACTIVE_HC != 0;
    if was_failed == failed {
        return;
    }
    host.set_flag(FAILED_ACTIVE_HC, failed);
    tracing::info!(cluster = &*cluster.config.name, host = %host.address, healthy = !failed, "active health check");
    if let Some((_, current)) = main.snapshot().cluster_named(&cluster.config.name) {
        current.hosts.health_changed();
    }
}

async fn probe(main: &Main, cluster: &Arc<Cluster>, host: &Arc<Host>, check: &HealthCheck) -> bool {
    let h2 = matches!(cluster.config.http, UpstreamHttp::Http2(_)) || matches!(check.kind, HealthCheckKind::Grpc { .. });
    let alpn: [Vec<u8>; 1] = [if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let offered = (!matches!(check.kind, HealthCheckKind::Tcp)).then_some(&alpn[..]);
    let Ok(stream) = connect_host(cluster, host, main.upstream_mark, offered).await else { return false };
    match &check.kind {
        HealthCheckKind::Tcp => true,
        HealthCheckKind::Http { host, path, expected } => {
            let request = http::Request::get(format!("http://{host}{path}")).header("user-agent", "Envoy/HC");
            let Ok(request) = request.body(Full::new(Bytes::new())) else { return false };
            match exchange(stream, request, h2).await {
                Some((status, _, _)) => expected.iter().any(|r| r.contains(&status)),
                None => false,
            }
        }
        HealthCheckKind::Grpc { service, authority } => {
            let uri = format!("http://{authority}/grpc.health.v1.Health/Check");
            let request = http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
            let Ok(request) = request.body(Full::new(grpc_request(service))) else { return false };
            matches!(exchange(stream, request, true).await, Some((200, body, grpc_ok)) if grpc_ok && is_serving(&body))
        }
    }
}

/// `HealthCheckRequest { service = 1 }` in its five-byte frame.
fn grpc_request(service: &str) -> Bytes {
    let service = service.get(..127).unwrap_or(service).as_bytes();
    let message: Vec<u8> =
        if service.is_empty() { Vec::new() } else { [&[0x0a, u8::try_from(service.len()).unwrap_or(127)], service].concat() };
    let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    [&[0u8][..], &length, &message].concat().into()
}

/// `HealthCheckResponse { status = 1 }` with `SERVING` = 1.
fn is_serving(body: &[u8]) -> bool {
    body.get(5..).is_some_and(|message| message.starts_with(&[0x08, 0x01]))
}

/// Status, body, and whether gRPC says OK.
async fn exchange(
    stream: Box<dyn lateen_xds::client::Io>,
    mut request: http::Request<Full<Bytes>>,
    h2: bool,
) -> Option<(u16, Bytes, bool)> {
    let io = TokioIo::new(stream);
    if h2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.ok()?;
        let task = tokio::spawn(connection);
        let response = sender.send_request(request).await;
        let answer = read(response.ok()?).await;
        task.abort();
        answer
    } else {
        let host = request.uri().authority()?.to_string();
        let path = request.uri().path_and_query()?.to_string();
        request.headers_mut().insert(http::header::HOST, host.parse().ok()?);
        *request.uri_mut() = path.parse().ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        let task = tokio::spawn(connection);
        let response = sender.send_request(request).await;
        let answer = read(response.ok()?).await;
        task.abort();
        answer
    }
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Option<(u16, Bytes, bool)> {
    let status = response.status().as_u16();
    let in_headers = response.headers().get("grpc-status").map(|s| s == "0");
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER).collect().await.ok()?;
    let in_trailers = body.trailers().and_then(|t| t.get("grpc-status")).map(|s| s == "0");
    Some((status, body.to_bytes(), in_trailers.or(in_headers).unwrap_or(false)))
}
