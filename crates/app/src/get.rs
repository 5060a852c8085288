//! `lateen app get`: a small curl for pods that have none.
use crate::call::whole;
use crate::load::{header, http_url};
use crate::options::parse_duration;
use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::io::Write as _;
use std::time::Duration;

/// Options of `lateen app get`.
#[derive(Clone, Debug, Args)]
pub struct GetOptions {
    /// What to ask for: http://host:port/path
    #[arg(value_parser = http_url)]
    pub url: Uri,
    /// A request header, `Name: value`; repeatable
    #[arg(short = 'H', long = "header", value_parser = header, value_name = "HEADER")]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Ask this many times
    #[arg(short = 'n', long, default_value_t = 1)]
    pub count: u64,
    /// Method
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: Method,
    /// Body
    #[arg(short, long, default_value = "")]
    pub data: String,
    /// Print the status line and headers too
    #[arg(short, long)]
    pub include: bool,
    /// Speak HTTP/2 without TLS
    #[arg(long)]
    pub http2: bool,
    /// Give up after this long
    #[arg(long, default_value = "15s", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
}

/// Asks and prints; fails when the last request got no answer at all.
///
/// # Errors
/// When no answer came.
pub async fn get(options: GetOptions) -> anyhow::Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).http2_only(options.http2).build(connector);
    let mut failed = None;
    for _ in 0..options.count {
        failed = match tokio::time::timeout(options.timeout, ask(&client, &options)).await {
            Ok(Ok(answer)) => match print(&mut std::io::stdout().lock(), &answer)? {
                Reader::Listens => None,
                Reader::Left => return Ok(()),
            },
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("no answer within {:?}", options.timeout)),
        };
        if let Some(error) = &failed {
            eprintln!("{}: {error}", options.url);
        }
    }
    match failed {
        Some(_) if options.count == 1 => std::process::exit(1),
        Some(error) => bail!("the last request failed: {error}"),
        None => Ok(()),
    }
}

/// Whether anybody still reads what is printed.
#[derive(Debug, PartialEq, Eq)]
enum Reader {
    Listens,
    Left,
}

/// `lateen app get URL | head -n 1` has seen what it wanted: a closed pipe is no failure of the request.
fn print(out: &mut impl std::io::Write, answer: &[u8]) -> std::io::Result<Reader> {
    match out.write_all(answer).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Listens),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(Reader::Left),
        Err(e) => Err(e),
    }
}

/// The answer as it is to be printed.
async fn ask(client: &Client<HttpConnector, Full<Bytes>>, options: &GetOptions) -> anyhow::Result<Vec<u8>> {
    let mut request = Request::new(Full::from(options.data.clone()));
    *request.method_mut() = options.method.clone();
    *request.uri_mut() = options.url.clone();
    request.headers_mut().extend(options.headers.iter().cloned());
    let response = client.request(request).await.map_err(|error| anyhow::anyhow!(whole(&error)))?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut out = Vec::with_capacity(body.len() + 1024);
    if options.include {
        let head = Response::from_parts(parts, ());
        writeln!(out, "{:?} {}", head.version(), head.status())?;
        for (name, value) in head.headers() {
            writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        writeln!(out)?;
    }
    out.extend_from_slice(&body);
    if !body.ends_with(b"\n") {
        out.push(b'\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind, Write};

    /// Fails as told.
    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(Error::from(self.0))
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure() {
        assert_eq!(print(&mut Failing(ErrorKind::BrokenPipe), b"text").unwrap(), Reader::Left);
        assert_eq!(print(&mut Failing(ErrorKind::StorageFull), b"text").unwrap_err().kind(), ErrorKind::StorageFull);
        let mut out = Vec::new();
        assert_eq!(print(&mut out, b"text").unwrap(), Reader::Listens);
        assert_eq!(out, b"text");
    }
}
