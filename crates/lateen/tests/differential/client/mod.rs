//! The caller: sends a step's request and tells all that came back.
mod h1;
mod h2;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::case::{Step, Tls, Version};
use crate::certificates::Certificates;
use crate::config::Places;
use crate::wire::Io;

const PATIENCE: Duration = Duration::from_secs(5);

/// The answer to a step, as it is compared.
pub(crate) async fn ask(step: &Step, index: usize, places: &Places, certificates: &Certificates) -> Value {
    let patience = step.patience_ms.map_or(PATIENCE, Duration::from_millis);
    let port = step.listener.as_deref().unwrap_or("main");
    let Some(port) = places.listeners.get(port) else { return json!({"error": format!("the case has no listener {port}")}) };
    let stream = match TcpStream::connect(("127.0.0.1", *port)).await {
        Ok(stream) => stream,
        Err(e) => return json!({"error": format!("no connection: {}", e.kind())}),
    };
    let _ = stream.set_nodelay(true);
    let Some(tls) = &step.tls else { return speak(stream, step, index, places, patience).await };
    match certificates.connect(stream, tls).await {
        Ok((stream, shown)) => {
            let mut answer = speak(stream, step, index, places, patience).await;
            answer["certificate"] = shown.into();
            answer
        }
        Err(_) => json!({"error": "no TLS"}),
    }
}

async fn speak(stream: impl Io + 'static, step: &Step, index: usize, places: &Places, patience: Duration) -> Value {
    if step.version == Version::Http2 {
        h2::ask(stream, step, index, places, patience).await
    } else {
        h1::ask(stream, step, index, places, patience).await
    }
}

/// Headers that every structured request has, and those of the step.
fn headers(step: &Step, index: usize, places: &Places) -> Vec<(String, String)> {
    let own = step.headers.0.iter().map(|(n, v)| (n.clone(), places.fill(v)));
    [("x-step".to_owned(), index.to_string())].into_iter().chain(own).collect()
}

fn host(step: &Step, places: &Places) -> String {
    places.fill(step.host.as_deref().unwrap_or("example.com"))
}

impl Tls {
    pub(crate) fn server_name(&self) -> &str {
        self.sni.as_deref().unwrap_or("127.0.0.1")
    }
}
