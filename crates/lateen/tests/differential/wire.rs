//! HTTP/1 as bytes, for a client and an upstream that may be as odd as a case wants.
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;

/// A connection, in the clear or within TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {
    fn tcp(&self) -> &TcpStream;
}

impl Io for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Io for tokio_rustls::server::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

impl Io for tokio_rustls::client::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Why reading ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Closed,
    Reset,
    Timeout,
    /// Not HTTP/1.
    Nonsense,
}

impl Cut {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Timeout => "nothing came in time",
            Self::Nonsense => "nonsense",
        }
    }
}

/// The first line and the fields of a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(crate) fn is_chunked(&self) -> bool {
        self.get("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().ends_with("chunked"))
    }

    pub(crate) fn length(&self) -> Option<usize> {
        self.get("content-length")?.parse().ok()
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let field =
            |line: &str| line.split_once(':').map_or((line.to_owned(), String::new()), |(n, v)| (n.to_owned(), v.trim().to_owned()));
        Self { line, fields: lines.filter(|l| !l.is_empty()).map(field).collect() }
    }
}

/// Fields as they are compared: every value of a name in its order, whatever stands between.
pub(crate) fn fields<'a>(all: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let mut map = Map::new();
    for (name, value) in all {
        let values = map.entry(name.to_owned()).or_insert_with(|| json!([]));
        if let Some(values) = values.as_array_mut() {
            values.push(value.into());
        }
    }
    Value::Object(map)
}

/// Bodies are compared as text; long ones by length and sum.
pub(crate) fn shown(body: &[u8]) -> Value {
    if body.len() <= 400 {
        return String::from_utf8_lossy(body).into_owned().into();
    }
    let sum = body.iter().fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
    format!("<{} bytes, sum {sum:x}>", body.len()).into()
}

/// Reads messages from a connection's receiving side.
pub(crate) struct Reader<R> {
    io: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, buffer: Vec::new() }
    }

    pub(crate) fn into_inner(self) -> R {
        self.io
    }

    async fn more(&mut self) -> Result<(), Cut> {
        let mut piece = vec![0; 16 << 10];
        match self.io.read(&mut piece).await {
            Ok(0) => Err(Cut::Closed),
            Ok(n) => {
                self.buffer.extend_from_slice(&piece[..n]);
                Ok(())
            }
            // TLS without a closing alert is an end like any other here.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(Cut::Closed),
            Err(_) => Err(Cut::Reset),
        }
    }

    /// Up to and without `end`.
    async fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, Cut> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|w| w == end) {
                let found: Vec<u8> = self.buffer.drain(..at + end.len()).collect();
                return Ok(found[..at].to_vec());
            }
            self.more().await?;
        }
    }

    pub(crate) async fn head(&mut self) -> Result<Head, Cut> {
        let bytes = self.until(b"\r\n\r\n").await?;
        Ok(Head::parse(&String::from_utf8_lossy(&bytes)))
    }

    pub(crate) async fn exactly(&mut self, length: usize, into: &mut Vec<u8>) -> Result<(), Cut> {
        let mut left = length;
        loop {
            let now = left.min(self.buffer.len());
            into.extend(self.buffer.drain(..now));
            left -= now;
            if left == 0 {
                return Ok(());
            }
            self.more().await?;
        }
    }

    /// What there is, at least one byte.
    pub(crate) async fn some(&mut self) -> Result<Vec<u8>, Cut> {
        if self.buffer.is_empty() {
            self.more().await?;
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// A chunked body; its trailers are returned.
    pub(crate) async fn chunks(&mut self, into: &mut Vec<u8>) -> Result<Head, Cut> {
        loop {
            let line = self.until(b"\r\n").await?;
            let digits = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(digits.split(';').next().unwrap_or("").trim(), 16).map_err(|_| Cut::Nonsense)?;
            if size == 0 {
                break;
            }
            self.exactly(size, into).await?;
            self.until(b"\r\n").await?;
        }
        let mut trailers = Head::default();
        loop {
            let line = self.until(b"\r\n").await?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.fields.extend(Head::parse(&format!("\r\n{}", String::from_utf8_lossy(&line))).fields);
        }
    }

    pub(crate) async fn rest(&mut self, into: &mut Vec<u8>) -> Cut {
        loop {
            into.append(&mut self.buffer);
            if let Err(cut) = self.more().await {
                return cut;
            }
        }
    }
}

/// A result in time.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Cut>>) -> Result<T, Cut> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(Cut::Timeout))
}
