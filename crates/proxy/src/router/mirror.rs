//! Copies of requests for other clusters: sent and forgotten (Envoy request mirroring).
use std::rc::Rc;

use bytes::Bytes;
use http::HeaderValue;
use lateen_snapshot::ClusterId;
use lateen_snapshot::route::{Mirror, NamedCluster};
use tokio::sync::mpsc;

use crate::http::Exchange;
use crate::http::headers as names;
use crate::http::message::{Frame, Length, Request};
use crate::io::Text;
use crate::upstream::call::Call;
use crate::worker::{Live, Worker};

/// Pieces of a body that may wait for a slow mirror; a body that would exceed this is cut off there,
/// never slowing the real request down.
const WAITING: usize = 64;
/// A mirror that does not answer in time is given up.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(15);

/// The open ends of a request's copies.
#[derive(Default)]
pub(super) struct Mirrors(Vec<mpsc::Sender<Bytes>>);

impl Mirrors {
    pub(super) fn push(&mut self, data: &Bytes) {
        // A full queue drops the copy: an incomplete body ends as a reset, not as a request.
        self.0.retain(|sender| sender.try_send(data.clone()).is_ok());
    }

    /// The body is complete: an empty piece says so.
    pub(super) fn end(&mut self) {
        self.push(&Bytes::new());
        self.0.clear();
    }
}

/// Starts the copies that the dice call for.
pub(super) fn start(exchange: &Exchange<'_>, mirrors: &[Mirror]) -> Mirrors {
    let mut open = Mirrors::default();
    for mirror in mirrors {
        if !mirror.fraction.hits(exchange.worker.roll()) {
            continue;
        }
        let cluster = match &mirror.cluster {
            NamedCluster::Fixed(id) => Some(*id),
            NamedCluster::Header(name) => {
                let name = exchange.request.headers.get(name).and_then(|v| v.to_str().ok());
                name.and_then(|name| exchange.live.snapshot.cluster_named(name)).map(|(id, _)| id)
            }
        };
        let Some(cluster) = cluster else { continue };
        let copy = copy_of(exchange, mirror);
        let (sender, receiver) = mpsc::channel(WAITING);
        let has_body = copy.has_body();
        let (worker, live) = (Rc::clone(exchange.worker), Rc::clone(&exchange.live));
        crate::worker::spawn(exchange.worker, async move {
            let sending = send(&worker, &live, cluster, copy, receiver);
            let _ = tokio::time::timeout(LONGEST, Box::pin(sending)).await;
        });
        if has_body {
            open.0.push(sender);
        }
    }
    open
}

fn copy_of(exchange: &Exchange<'_>, mirror: &Mirror) -> Request {
    let request = &exchange.request;
    let mut authority = match &mirror.host_rewrite {
        Some(host) => Text::from(&**host),
        None => request.authority.clone(),
    };
    if mirror.append_shadow {
        let host = crate::http::host_of(&authority);
        authority = Text::from(format!("{host}-shadow{}", &authority[host.len()..]));
    }
    let mut headers = request.headers.clone();
    headers.remove(names::EXPECTED_TIMEOUT);
    if let Ok(address) = HeaderValue::from_str(&exchange.conn.remote.ip().to_string()) {
        headers.append(names::FORWARDED_FOR, address);
    }
    if !mirror.headers.is_empty() {
        super::changes::of_copy(exchange, &mirror.headers, &mut headers);
    }
    Request {
        method: request.method.clone(),
        scheme: request.scheme,
        scheme_given: request.scheme_given,
        headers,
        // Whatever the length said: a copy that is cut off must not look complete.
        length: if request.has_body() { Length::Unknown } else { Length::None },
        accepts_trailers: request.accepts_trailers,
        hints: request.hints,
        ..Request::get(authority, request.path.clone())
    }
}

async fn send(worker: &Rc<Worker>, live: &Live, id: ClusterId, request: Request, mut body: mpsc::Receiver<Bytes>) -> Option<()> {
    let mut call = Call::begin(worker, live, id, &request).await.ok()?;
    if request.has_body() {
        loop {
            let piece = body.recv().await?;
            if piece.is_empty() {
                break;
            }
            call.send(piece).await.ok()?;
        }
        call.end();
    }
    call.response(worker).await.ok()?;
    while let Some(frame) = call.frame().await {
        if let Frame::Trailers(_) = frame.ok()? {
            break;
        }
    }
    call.finish();
    Some(())
}
