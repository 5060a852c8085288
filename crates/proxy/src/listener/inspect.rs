//! Looking at a connection's first bytes before its chain is chosen: PROXY protocol, TLS, HTTP.
//!
//! Bytes are read into a buffer of ours and put back in front of the connection, so the kernel is never
//! asked for the same bytes twice. Protocols in which the server speaks first send nothing: where the
//! listener says so, inspection gives up after its timeout and the connection goes on as it is.
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use bytes::{Buf, BytesMut};
use lateen_snapshot::listener::{ConnectionInfo, Inspectors};
use lateen_snapshot::metadata::Metadata;
use lateen_snapshot::proxy_protocol::{ProxyProtocolFilter, Tlv};
use lateen_telemetry::envoy_names::listener as names;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::hello::{self, Hello};
use super::proxy_header::{self, Header};
use super::{ListenerState, socket};
use crate::upstream::Source;
use crate::worker::Worker;

/// A connection with what its first bytes told.
pub(super) struct Inspected {
    pub(super) info: ConnectionInfo,
    pub(super) ahead: BytesMut,
    /// What a PROXY protocol header told beside addresses, where there was one.
    pub(super) told: Option<Box<Told>>,
    /// Where connections to hosts come from, when not from ourselves.
    pub(super) source: Option<Source>,
}

/// A request line longer than this is not looked at further.
const HTTP_LIMIT: usize = 8 * 1024;
const READ: usize = 4 * 1024;

/// Inspects; `None` when the connection ended or has to.
pub(super) async fn run(worker: &Worker, listener: &ListenerState, stream: &mut TcpStream, info: ConnectionInfo) -> Option<Inspected> {
    let inspection = listener.inspection(worker);
    let inspectors = &inspection.inspectors;
    if !inspection.admits(listener, info.destination.port(), worker.nanos()) {
        return None;
    }
    let mut probe = Probe::new(inspectors, info);
    if probe.done() {
        let source = source_of(inspectors, &probe.info);
        return Some(Inspected { info: probe.info, ahead: BytesMut::new(), told: None, source });
    }
    let _pending = listener.stats.hold(names::DOWNSTREAM_PRE_CX_ACTIVE);
    let outcome = match inspectors.timeout {
        Some(limit) => tokio::time::timeout(limit, probe.drive(stream)).await,
        None => Ok(probe.drive(stream).await),
    };
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(Ended::Closed)) => {
            listener.stats.inc(names::DOWNSTREAM_LISTENER_FILTER_REMOTE_CLOSE);
            return None;
        }
        Ok(Err(Ended::Invalid)) => {
            listener.stats.inc(names::DOWNSTREAM_LISTENER_FILTER_ERROR);
            return None;
        }
        Err(_) => {
            listener.stats.inc(names::DOWNSTREAM_PRE_CX_TIMEOUT);
            // Without its PROXY header a connection's source is unknown: that one may not be skipped.
            if !inspectors.continue_on_timeout || probe.proxy.as_ref().is_some_and(|filter| !filter.optional) {
                return None;
            }
        }
    }
    let source = source_of(inspectors, &probe.info);
    Some(Inspected { info: probe.info, ahead: probe.buffer, told: probe.told, source })
}

/// Where connections to hosts come from, on behalf of this caller.
fn source_of(inspectors: &Inspectors, info: &ConnectionInfo) -> Option<Source> {
    let (gate, settings) = inspectors.original_src.as_ref()?;
    if !gate.applies_to(info.destination.port()) {
        return None;
    }
    let caller = if settings.direct { info.direct_source } else { info.source };
    let port = if settings.bind_port { caller.port() } else { 0 };
    Some(Source { address: SocketAddr::new(caller.ip(), port), mark: settings.mark })
}

/// What a PROXY protocol header tells beside addresses.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// What may be told upstream as well.
    pub(crate) tlvs: Vec<Tlv>,
    /// What the listener wants to be known of the connection.
    pub(crate) metadata: Metadata,
}

impl Told {
    fn new(mut tlvs: Vec<Tlv>, filter: &ProxyProtocolFilter) -> Self {
        let mut metadata = Metadata::default();
        // Of several of a type the first counts.
        for tlv in tlvs.iter().rev() {
            for rule in filter.rules.iter().filter(|rule| rule.kind == tlv.kind) {
                metadata.set(&rule.namespace, &rule.key, Value::String(text_of(&tlv.value, rule.base64)));
            }
        }
        tlvs.retain(|tlv| filter.pass_through.passes(tlv.kind));
        Self { tlvs, metadata }
    }
}

/// The value as text: what is no UTF-8 becomes `!`, as in Envoy.
fn text_of(value: &[u8], base64: bool) -> String {
    if base64 {
        return base64::engine::general_purpose::STANDARD.encode(value);
    }
    let mut text = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

enum Ended {
    Closed,
    Invalid,
}

struct Probe {
    info: ConnectionInfo,
    buffer: BytesMut,
    told: Option<Box<Told>>,
    proxy: Option<Arc<ProxyProtocolFilter>>,
    tls: bool,
    http: bool,
}

impl Probe {
    fn new(inspectors: &Inspectors, info: ConnectionInfo) -> Self {
        let port = info.destination.port();
        let applies = |gate: &Option<lateen_snapshot::listener::PortGate>| gate.as_ref().is_some_and(|g| g.applies_to(port));
        Self {
            proxy: inspectors.proxy_protocol.as_ref().filter(|(gate, _)| gate.applies_to(port)).map(|(_, filter)| Arc::clone(filter)),
            told: None,
            tls: applies(&inspectors.tls),
            http: applies(&inspectors.http),
            info,
            buffer: BytesMut::new(),
        }
    }

    fn done(&self) -> bool {
        self.proxy.is_none() && !self.tls && !self.http
    }

    async fn drive(&mut self, stream: &mut TcpStream) -> Result<(), Ended> {
        while !self.done() {
            self.buffer.reserve(READ);
            match stream.read_buf(&mut self.buffer).await {
                // Something came, then the end: a chain may still want those bytes.
                Ok(0) if !self.buffer.is_empty() && self.proxy.is_none() => return Ok(()),
                Ok(0) | Err(_) => return Err(Ended::Closed),
                Ok(_) => self.look()?,
            }
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), Ended> {
        if let Some(filter) = &self.proxy {
            match proxy_header::parse(&self.buffer, filter) {
                Header::NeedMore => return Ok(()),
                Header::Invalid => return Err(Ended::Invalid),
                Header::Absent => {}
                Header::Local { size } => {
                    self.buffer.advance(size);
                    self.told = Some(Box::default());
                }
                Header::Proxied { size, source, destination, tlvs } => {
                    self.buffer.advance(size);
                    self.info.source = socket::plain(source);
                    self.info.destination = socket::plain(destination);
                    self.told = Some(Box::new(Told::new(tlvs, filter)));
                }
            }
            self.proxy = None;
        }
        if self.tls {
            match hello::parse(&self.buffer) {
                Hello::NeedMore => return Ok(()),
                Hello::NotTls => {}
                Hello::Client { server_name, alpn } => {
                    self.info.transport_protocol = "tls";
                    self.info.server_name = server_name;
                    self.info.application_protocols = alpn;
                    self.http = false;
                }
            }
            self.tls = false;
        }
        if self.http && !self.buffer.is_empty() {
            match http_version(&self.buffer) {
                Sniffed::NeedMore => return Ok(()),
                Sniffed::NotHttp => {}
                Sniffed::Version(name) => self.info.application_protocols = vec![name.into()],
            }
            self.http = false;
        }
        Ok(())
    }
}

/// The verdict in words; `None` while more bytes could change it.
#[cfg(feature = "fuzzing")]
pub(super) fn version_of(bytes: &[u8]) -> Option<String> {
    match http_version(bytes) {
        Sniffed::NeedMore => None,
        Sniffed::NotHttp => Some("no HTTP".to_owned()),
        Sniffed::Version(version) => Some(version.escape_ascii().to_string()),
    }
}

enum Sniffed {
    NeedMore,
    NotHttp,
    Version(&'static [u8]),
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Envoy's HTTP inspector: the HTTP/2 preface, or a request line.
fn http_version(bytes: &[u8]) -> Sniffed {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return if bytes.len() >= PREFACE.len() { Sniffed::Version(b"h2c") } else { Sniffed::NeedMore };
    }
    let line = match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]),
        None if bytes.len() < HTTP_LIMIT && may_be_request_line(bytes) => return Sniffed::NeedMore,
        None => return Sniffed::NotHttp,
    };
    if !may_be_request_line(line) {
        return Sniffed::NotHttp;
    }
    if line.ends_with(b" HTTP/1.1") {
        Sniffed::Version(b"http/1.1")
    } else if line.ends_with(b" HTTP/1.0") {
        Sniffed::Version(b"http/1.0")
    } else {
        Sniffed::NotHttp
    }
}

/// A method token, then a space, then printable bytes.
fn may_be_request_line(line: &[u8]) -> bool {
    let method = line.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-' || **b == b'_').count();
    method > 0
        && method <= 32
        && match line.get(method) {
            None => true,
            Some(b' ') => line[method..].iter().all(|b| (b' '..0x7f).contains(b) || *b >= 0x80 || *b == b'\r'),
            Some(_) => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_and_prefaces_are_told_from_other_protocols() {
        let version = |bytes: &[u8]| match http_version(bytes) {
            Sniffed::NeedMore => "more",
            Sniffed::NotHttp => "no",
            Sniffed::Version(v) => std::str::from_utf8(v).unwrap(),
        };
        assert_eq!(version(b"GET / HTTP/1.1\r\n"), "http/1.1");
        assert_eq!(version(b"GET / HTTP/1.0\r\nHost"), "http/1.0");
        assert_eq!(version(b"GET /somewhere"), "more");
        assert_eq!(version(PREFACE), "h2c");
        assert_eq!(version(b"PRI * HT"), "more");
        assert_eq!(version(b"\x16\x03\x01"), "no");
        assert_eq!(version(b"EHLO mail.example\r\n"), "no");
        assert_eq!(version(b"GET \x01\x02"), "no");
        assert_eq!(version(&[b'A'; 9000]), "no");
    }
}
