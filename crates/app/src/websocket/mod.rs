//! WebSocket echo (RFC 6455), enough to test upgrades through proxies: every message comes back.
mod frame;
mod sha1;

use crate::http::Body;
use base64::Engine as _;
use frame::{Frame, OpCode};
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The text that RFC 6455 appends to a key before hashing it.
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A silent socket is closed after this long.
const IDLE: Duration = Duration::from_secs(600);

/// Whether a request asks for a WebSocket over HTTP/1.1.
pub(crate) fn is_upgrade<B>(request: &Request<B>) -> bool {
    let named = |name, value: &str| {
        let header = request.headers().get(name).and_then(|header| header.to_str().ok());
        header.is_some_and(|header| header.split(',').any(|part| part.trim().eq_ignore_ascii_case(value)))
    };
    request.method() == Method::GET && named(UPGRADE, "websocket") && named(CONNECTION, "upgrade")
}

/// Switches protocols and echoes in a task of its own.
pub(crate) fn accept<B>(request: Request<B>) -> Response<Body>
where
    B: 'static,
{
    let mut response = Response::new(Body::empty());
    let Some(key) = request.headers().get("sec-websocket-key").map(|key| accept_key(key.as_bytes())) else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    tokio::task::spawn_local(async move {
        match hyper::upgrade::on(request).await {
            Ok(socket) => {
                let _ = echo(TokioIo::new(socket)).await;
            }
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert("sec-websocket-accept", key);
    response
}

fn accept_key(key: &[u8]) -> HeaderValue {
    let digest = sha1::digest(&[key, MAGIC.as_bytes()].concat());
    let text = base64::engine::general_purpose::STANDARD.encode(digest);
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

async fn echo(mut socket: TokioIo<Upgraded>) -> std::io::Result<()> {
    let mut input = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match frame::parse(&input) {
            Ok(Some((frame, used))) => {
                input.drain(..used);
                let Some(answer) = reply(&frame) else { continue };
                socket.write_all(&answer).await?;
                if frame.op == OpCode::Close {
                    return socket.shutdown().await;
                }
            }
            Ok(None) => {
                let read = tokio::time::timeout(IDLE, socket.read(&mut chunk)).await??;
                if read == 0 {
                    return Ok(());
                }
                input.extend_from_slice(&chunk[..read]);
            }
            Err(code) => {
                socket.write_all(&frame::write(OpCode::Close, true, &code.to_be_bytes())).await?;
                return socket.shutdown().await;
            }
        }
    }
}

/// Data comes back as it came, fragments too; pings are answered, pongs ignored.
fn reply(frame: &Frame) -> Option<Vec<u8>> {
    match frame.op {
        OpCode::Ping => Some(frame::write(OpCode::Pong, true, &frame.payload)),
        OpCode::Pong => None,
        op => Some(frame::write(op, frame.last, &frame.payload)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_is_accepted_as_the_rfc_says() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
