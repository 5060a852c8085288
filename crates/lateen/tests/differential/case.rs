//! What a case file says: a piece of Envoy configuration, and the requests that are sent through it.
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value};

/// One file below `cases/`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// File name without its ending.
    #[serde(skip)]
    pub(crate) name: String,
    /// For readers.
    #[serde(rename = "about")]
    _about: String,
    /// The listener `main`.
    #[serde(default)]
    pub(crate) listener: Listener,
    /// Further listeners by name.
    #[serde(default)]
    pub(crate) listeners: BTreeMap<String, Listener>,
    /// Fields of each cluster over a static one. Besides Envoy's: `endpoints`, names of upstreams (default: the
    /// cluster's name; `dead` refuses connections, `echo` sends back bytes, over TLS `http1` offers no other version and `no_alpn` none), `http2: true`, and `fresh_connections: true` for one request on each. Without any there is `a`.
    #[serde(default)]
    pub(crate) clusters: BTreeMap<String, Map<String, Value>>,
    /// Merged over the whole bootstrap.
    #[serde(default)]
    pub(crate) bootstrap: Map<String, Value>,
    /// What a discovery server has for both proxies when they start. With it there is an aggregated stream, incremental.
    #[serde(default)]
    pub(crate) discovered: Option<Discovered>,
    /// Resources in files, by the file's name; `{file:NAME}` is where it is.
    #[serde(default)]
    pub(crate) files: BTreeMap<String, Vec<Value>>,
    /// How many answers of the discovery server each proxy refuses.
    #[serde(default)]
    pub(crate) refuses: usize,
    pub(crate) requests: Vec<Step>,
}

/// Resources of a discovery server, named by their `name`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Discovered {
    pub(crate) clusters: Vec<Value>,
    pub(crate) listeners: Vec<Value>,
    pub(crate) routes: Vec<Value>,
    pub(crate) scopes: Vec<Value>,
    pub(crate) virtual_hosts: Vec<Value>,
    pub(crate) extensions: Vec<Value>,
    /// Names of resources that are there no longer.
    pub(crate) gone: Vec<String>,
}

/// A listener with one HTTP connection manager, said by what differs from a plain one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Listener {
    /// Routes of the one virtual host `all` for every domain.
    pub(crate) routes: Option<Value>,
    /// Fields of the route configuration.
    pub(crate) route_config: Map<String, Value>,
    /// Filters before the router.
    pub(crate) http_filters: Vec<Value>,
    /// Fields of the connection manager. With `rds` or `scoped_routes` it has no routes of its own.
    pub(crate) hcm: Map<String, Value>,
    /// More fields of a log line.
    pub(crate) log: Map<String, Value>,
    /// Fields of the listener itself; `filter_chains` here stand instead of the connection manager.
    pub(crate) listener: Map<String, Value>,
}

/// A request and what the upstreams do with it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Step {
    pub(crate) name: String,
    /// `GET PATH`, or
    get: String,
    /// `METHOD PATH`, or
    request: String,
    /// these very bytes over HTTP/1; line ends become CR LF, unless one is there already.
    pub(crate) raw: Option<String>,
    /// `HTTP/1.1`, `HTTP/1.0` or `HTTP/2`.
    pub(crate) version: Version,
    /// A listener's name.
    pub(crate) listener: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) headers: Headers,
    /// What the discovery server has from now on beside what it had; both proxies have answered it before the request goes out.
    pub(crate) discovered: Option<Discovered>,
    /// With a content-length; in chunks when `chunks` or `trailers` are given.
    pub(crate) body: Option<String>,
    pub(crate) chunks: Vec<String>,
    /// A body of that many bytes.
    pub(crate) body_bytes: Option<usize>,
    pub(crate) trailers: Headers,
    /// Sent after `101 Switching Protocols`, or the 200 to a CONNECT; as much is read back.
    pub(crate) then_send: Option<String>,
    /// Over HTTP/2: an extended CONNECT for this protocol.
    pub(crate) protocol: Option<String>,
    pub(crate) tls: Option<Tls>,
    /// So many times; only how often which answer came and which endpoint was asked is compared.
    pub(crate) repeat: Option<usize>,
    /// With `repeat`: all at the same time, and how many connections to which endpoint were made is compared too.
    pub(crate) at_once: bool,
    /// By how much these counts may differ.
    pub(crate) tolerance: u64,
    /// What upstreams answer, one after the other; afterwards the plain answer.
    pub(crate) answers: Vec<Answer>,
    /// What the upstream of a name answers instead of the plain answer.
    pub(crate) answer_of: BTreeMap<String, Answer>,
    /// Milliseconds for an answer.
    pub(crate) patience_ms: Option<u64>,
    /// Milliseconds to wait afterwards for what goes on behind the answer.
    pub(crate) settle_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) enum Version {
    #[default]
    #[serde(rename = "HTTP/1.1")]
    Http11,
    #[serde(rename = "HTTP/1.0")]
    Http10,
    #[serde(rename = "HTTP/2")]
    Http2,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) sni: Option<String>,
    #[serde(default)]
    pub(crate) alpn: Vec<String>,
    /// Shows the certificate of that name.
    #[serde(default)]
    pub(crate) certificate: Option<String>,
}

/// What an upstream does with one request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Option<String>,
    pub(crate) body_bytes: Option<usize>,
    /// A gRPC message in hexadecimal, as body.
    pub(crate) message: Option<String>,
    pub(crate) trailers: Headers,
    /// These very bytes instead, over HTTP/1.
    pub(crate) raw: Option<String>,
    /// 1xx answers before.
    pub(crate) before: Vec<u16>,
    pub(crate) after_ms: u64,
    /// Between head and body.
    pub(crate) pause_ms: u64,
    /// Answers without waiting for the body.
    pub(crate) early: bool,
    /// Nothing is answered at all.
    pub(crate) silent: bool,
    /// Nor is the HTTP/2 connection read any more: its PINGs stay without an answer.
    pub(crate) deaf: bool,
    /// What happens afterwards.
    pub(crate) then: Then,
    /// Switches protocols, or takes a CONNECT, and echoes bytes.
    pub(crate) upgrade: Option<String>,
    /// Answers each `ProcessingRequest` that comes with the next of these, and those after the last with nothing to change.
    /// An answer is a `ProcessingResponse`, in which bytes are base64 or `text:` and text; a list of them; nothing for
    /// silence; or a number, the status with which the call ends.
    pub(crate) processor: Option<Vec<Value>>,
    /// The same by the part that a message is about, however a body is cut: `request_headers`, `request_body` for a piece,
    /// `request_end` for the last, `request_trailers`, and those of the response. What is not there is answered with nothing to
    /// change, which in full duplex is the piece itself.
    pub(crate) processor_by_part: Option<Map<String, Value>>,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            status: 200,
            headers: Headers::default(),
            body: None,
            body_bytes: None,
            message: None,
            trailers: Headers::default(),
            raw: None,
            before: Vec::new(),
            after_ms: 0,
            pause_ms: 0,
            early: false,
            silent: false,
            deaf: false,
            then: Then::Keep,
            upgrade: None,
            processor: None,
            processor_by_part: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Then {
    #[default]
    Keep,
    Close,
    /// A TCP reset, or a reset of the HTTP/2 stream.
    Reset,
    /// The HTTP/2 stream is refused.
    Refuse,
}

/// Headers in the order of the file; a list gives several values.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Map<String, Value>")]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl From<Map<String, Value>> for Headers {
    fn from(map: Map<String, Value>) -> Self {
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let values = |value: Value| match value {
            Value::Array(all) => all.into_iter().map(text).collect(),
            one => vec![text(one)],
        };
        Self(map.into_iter().flat_map(|(name, value)| values(value).into_iter().map(move |v| (name.clone(), v))).collect())
    }
}

impl Headers {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
    }
}

impl Case {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let value = lateen_snapshot::bootstrap::yaml::read(&text)?;
        let mut case: Self = serde_json::from_value(value).with_context(|| path.display().to_string())?;
        case.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for (index, step) in case.requests.iter_mut().enumerate() {
            if step.name.is_empty() {
                let (method, path) = step.method_and_path();
                let raw = step.raw.as_ref().and_then(|r| r.lines().next()).map(str::to_owned);
                step.name = format!("{}: {}", index + 1, raw.unwrap_or_else(|| format!("{method} {path}")));
            }
        }
        Ok(case)
    }

    /// Every listener by name.
    pub(crate) fn all_listeners(&self) -> BTreeMap<&str, &Listener> {
        let more = self.listeners.iter().map(|(name, listener)| (name.as_str(), listener));
        more.chain([("main", &self.listener)]).collect()
    }
}

impl Step {
    pub(crate) fn method_and_path(&self) -> (&str, &str) {
        if self.get.is_empty() { self.request.split_once(' ').unwrap_or(("GET", "/")) } else { ("GET", &self.get) }
    }

    /// The body's pieces, and whether they are chunked.
    pub(crate) fn pieces(&self) -> (Vec<Vec<u8>>, bool) {
        let whole = self.body.clone().map(String::into_bytes).or(self.body_bytes.map(|n| vec![b'x'; n]));
        let chunked = !self.chunks.is_empty() || !self.trailers.0.is_empty();
        let chunks = self.chunks.iter().map(|c| c.clone().into_bytes());
        (whole.into_iter().chain(chunks).collect(), chunked)
    }
}

/// Raw text as it goes over the wire.
pub(crate) fn wire(text: &str) -> Vec<u8> {
    if text.contains("\r\n") { text.as_bytes().to_vec() } else { text.replace('\n', "\r\n").into_bytes() }
}
