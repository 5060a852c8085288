//! Whether every proxy has taken what the control plane last sent: a pod is ready before its callers know of it.
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::pod::plan::Role;
use crate::pod::probe::connect;
use crate::store::mesh::Mesh;

/// Where the control plane shows the state of its proxies, to its own machine only.
const PAGE: &str = "/debug/syncz";
const PORT: u16 = 8080;
/// A page of thousands of proxies is smaller.
const LARGEST: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(2);

/// True when as many proxies as there are have acknowledged all they were sent, or when there is no control plane.
pub(super) async fn all(mesh: &Mesh) -> bool {
    let (namespaces, proxies) = {
        let state = mesh.state();
        let control =
            state.pods.iter().find(|((ns, _), pod)| ns == "istio-system" && pod.plan.labels.get("app").is_some_and(|a| a == "istiod"));
        let Some((_, control)) = control else { return true };
        let proxies = state.pods.values().filter(|p| !p.terminating && p.containers.iter().any(|c| c.plan.role == Role::Proxy)).count();
        (control.namespaces.clone(), proxies)
    };
    let page = tokio::time::timeout(PATIENCE, async {
        let stream = connect(&namespaces, SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))).await?;
        fetch(stream).await
    });
    matches!(page.await, Ok(Ok(page)) if acknowledged(&page, proxies))
}

async fn fetch(mut stream: tokio::net::TcpStream) -> io::Result<Value> {
    let request = format!("GET {PAGE} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LARGEST).read_to_end(&mut answer).await?;
    let body = answer.windows(4).position(|w| w == b"\r\n\r\n").and_then(|at| answer.get(at + 4..)).unwrap_or_default();
    serde_json::from_slice(body).map_err(io::Error::other)
}

/// The page lists each proxy with the state of each type of resource it takes.
fn acknowledged(page: &Value, proxies: usize) -> bool {
    let Some(list) = page.as_array() else { return false };
    let settled = |proxy: &&Value| {
        let types = proxy["types"].as_array().map(Vec::as_slice).unwrap_or_default();
        !types.is_empty() && types.iter().all(|t| t["state"] != "STALE" && t["state"] != "NOT SENT")
    };
    list.len() >= proxies && list.iter().all(|p| settled(&p))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_push_under_way_or_a_proxy_that_is_missing_is_waited_for() {
        let proxy =
            |state: &str| json!({"proxy": "a.default", "types": [{"type": "cds", "state": "SYNCED"}, {"type": "eds", "state": state}]});
        assert!(acknowledged(&json!([proxy("SYNCED"), proxy("SYNCED")]), 2));
        assert!(!acknowledged(&json!([proxy("SYNCED"), proxy("STALE")]), 2));
        assert!(!acknowledged(&json!([proxy("SYNCED")]), 2));
        assert!(!acknowledged(&json!([{"proxy": "a.default", "types": []}]), 1));
        assert!(!acknowledged(&json!({"error": "no"}), 0));
        // A proxy that refuses something has answered; waiting longer would not change it.
        assert!(acknowledged(&json!([proxy("NACK")]), 1));
    }
}
