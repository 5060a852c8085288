//! The upstreams behind both proxies: they answer as the case says and tell what they saw.
mod h1;
mod h2;
mod processor;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::case::{Answer, Step};
use crate::certificates::Certificates;
use crate::wire::Io;

/// The first bytes of HTTP/2, as many as tell it from any method.
const HTTP2: &[u8] = b"PRI ";
const TLS_HANDSHAKE: u8 = 22;
/// How long an answered request's body may still be on its way.
const ENDS_WITHIN: Duration = Duration::from_millis(500);

/// All upstreams of one proxy; they end when this is dropped.
pub(crate) struct Upstreams {
    pub(crate) ports: BTreeMap<String, u16>,
    script: Arc<Script>,
    _accepting: JoinSet<()>,
    _dead: Vec<TcpSocket>,
}

/// What is to be answered, and what was seen.
#[derive(Default)]
pub(crate) struct Script(Mutex<State>);

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    /// By the upstream's name, afterwards.
    answer_of: BTreeMap<String, Answer>,
    seen: Vec<Value>,
    /// How many connections were made to whom.
    connections: BTreeMap<String, u64>,
    /// Requests before those, so that what is late is not noted of another.
    before: usize,
    /// Bodies that are being read: what comes of them is not noted yet.
    reading: usize,
}

/// A body that is being read, until this is dropped.
pub(crate) struct Reading<'a>(&'a Script);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.reading = state.reading.saturating_sub(1);
    }
}

impl Script {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request whose head is here, and says what to answer.
    fn next(&self, name: &str, request: Value) -> (usize, Answer) {
        let mut state = self.state();
        state.seen.push(request);
        let answer = state.answers.pop_front().or_else(|| state.answer_of.get(name).cloned());
        (state.before + state.seen.len() - 1, answer.unwrap_or_default())
    }

    fn read(&self) -> Reading<'_> {
        self.state().reading += 1;
        Reading(self)
    }

    /// Adds what came after the head.
    fn note(&self, at: usize, field: &str, value: Value) {
        let mut state = self.state();
        let index = at.checked_sub(state.before);
        if let Some(seen) = index.and_then(|index| state.seen.get_mut(index)) {
            seen[field] = value;
        }
    }
}

impl Upstreams {
    pub(crate) async fn start(names: &[String], certificates: &Certificates) -> anyhow::Result<Self> {
        let (script, mut ports, mut accepting) = (Arc::new(Script::default()), BTreeMap::new(), JoinSet::new());
        let mut dead = Vec::new();
        for name in names {
            let socket = TcpSocket::new_v4()?;
            socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
            ports.insert(name.clone(), socket.local_addr()?.port());
            if name.starts_with("dead") {
                // Bound and never listened on: calls are refused, and no upstream of another case gets the port.
                dead.push(socket);
                continue;
            }
            let listener = socket.listen(128)?;
            let (name, script, tls) = (name.clone(), Arc::clone(&script), certificates.upstream(offers(name)));
            accepting.spawn(async move {
                let mut open = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    *script.state().connections.entry(name.clone()).or_default() += 1;
                    open.spawn(serve(stream, name.clone(), Arc::clone(&script), tls.clone()));
                }
            });
        }
        Ok(Self { ports, script, _accepting: accepting, _dead: dead })
    }

    /// Before a request: what will be answered.
    pub(crate) fn prepare(&self, step: &Step) {
        let mut state = self.script.state();
        state.before += state.seen.len();
        state.seen.clear();
        state.connections.clear();
        state.answers = step.answers.iter().cloned().collect();
        state.answer_of.clone_from(&step.answer_of);
    }

    /// What was seen since. A body whose caller has gone ends a moment later here; some end only with the next request.
    pub(crate) async fn seen(&self) -> Vec<Value> {
        let since = Instant::now();
        while self.script.state().reading > 0 && since.elapsed() < ENDS_WITHIN {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.script.state().seen.clone()
    }

    /// How many connections were made since, by upstream.
    pub(crate) fn connections(&self) -> BTreeMap<String, u64> {
        self.script.state().connections.clone()
    }
}

/// What an upstream of that name speaks over TLS.
fn offers(name: &str) -> &'static [&'static [u8]] {
    match name {
        _ if name.starts_with("http1") => &[b"http/1.1"],
        _ if name.starts_with("no_alpn") => &[],
        _ => &[b"h2", b"http/1.1"],
    }
}

async fn serve(mut stream: TcpStream, name: String, script: Arc<Script>, tls: TlsAcceptor) {
    if name.starts_with("echo") {
        let (mut read, mut write) = stream.split();
        // Whoever resets the connection has had enough.
        let _ = tokio::io::copy(&mut read, &mut write).await;
        return;
    }
    let mut first = [0; 4];
    loop {
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return,
            Ok(_) if first[0] == TLS_HANDSHAKE => {
                if let Ok(stream) = tls.accept(stream).await {
                    let session = stream.get_ref().1;
                    let http2 = session.alpn_protocol() == Some(b"h2");
                    let name = session.server_name().map_or(name.clone(), |asked| format!("{name} as {asked}"));
                    speak(stream, http2, &name, &script).await;
                }
                return;
            }
            Ok(n) if n >= HTTP2.len() => return speak(stream, first == HTTP2, &name, &script).await,
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn speak(stream: impl Io + 'static, http2: bool, name: &str, script: &Arc<Script>) {
    if http2 {
        h2::serve(stream, name, script).await;
    } else {
        // Its end, however it came, is the end of this connection only.
        let _ = h1::serve(stream, name, script).await;
    }
}

fn body_of(answer: &Answer, name: &str) -> Vec<u8> {
    if let Some(hexadecimal) = &answer.message {
        let digits: Vec<u32> = hexadecimal.chars().filter_map(|c| c.to_digit(16)).collect();
        let message: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8)).collect();
        return [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    }
    match (&answer.body, answer.body_bytes) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(n)) => vec![b'y'; n],
        (None, None) => format!("from {name}").into_bytes(),
    }
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Unnamed")
}
