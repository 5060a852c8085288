//! Compressed bodies are compared by what they say: two libraries make different bytes of the same text.
use serde_json::{Value, json};

use crate::wire;

/// More than any case sends.
const MOST: usize = 4 << 20;

/// A body of that `content-encoding`, decompressed if it can be.
pub(crate) fn shown(body: &[u8], coding: Option<&str>) -> Value {
    let read = match coding {
        Some("gzip") => gzip(body),
        Some("br") => brotli(body),
        Some("zstd") => zstd(body),
        _ => None,
    };
    read.map_or_else(|| wire::shown(body), |read| json!({"compressed": wire::shown(&read)}))
}

fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    let (mut stream, mut out) = (zlib_rs::Inflate::new(true, 15 + 16), vec![0; MOST]);
    let status = stream.decompress(body, &mut out, zlib_rs::InflateFlush::Finish).ok()?;
    out.truncate(usize::try_from(stream.total_out()).ok()?);
    (status == zlib_rs::Status::StreamEnd).then_some(out)
}

fn brotli(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    brotli::BrotliDecompress(&mut body, &mut out).ok().map(|()| out)
}

fn zstd(body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(MOST);
    zstd_safe::decompress(&mut out, body).ok().map(|_| out)
}
