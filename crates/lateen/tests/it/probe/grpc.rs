//! One gRPC call over HTTP/2 without TLS; prints as JSON the messages and where the status came from.
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// Options: `message=TEXT`, `count=N`, `interval=MS`, `fail=STATUS`.
pub(crate) fn run(url: &str, method: &str, options: &[&str]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), call(url, method, options)).await? })
}

async fn call(url: &str, method: &str, options: &[&str]) -> anyhow::Result<()> {
    let address = url.trim_start_matches("http://");
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/lateen.app.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(request(options)?))?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let text = |headers: &http::HeaderMap, name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let in_headers = text(response.headers(), "grpc-status");
    let message = text(response.headers(), "grpc-message");
    let whole = response.into_body().collect().await?;
    let in_trailers = whole.trailers().and_then(|t| text(t, "grpc-status"));
    let versions = versions(&whole.to_bytes())?;
    let found = serde_json::json!({
        "status": status, "versions": versions, "grpc_status_in_headers": in_headers, "grpc_status_in_trailers": in_trailers, "message": message,
    });
    println!("{found}");
    Ok(())
}

/// `lateen.app.EchoRequest` in its frame.
fn request(options: &[&str]) -> anyhow::Result<Bytes> {
    let mut message = BytesMut::new();
    for option in options {
        let (name, value) = option.split_once('=').context("name=value")?;
        let number = match name {
            "message" => {
                ensure!(value.len() < 128, "too long");
                message.extend_from_slice(&[0x0a, value.len() as u8]);
                message.extend_from_slice(value.as_bytes());
                continue;
            }
            "count" => 2,
            "interval" => 3,
            "fail" => 4,
            _ => anyhow::bail!("no option {name}"),
        };
        let value: u8 = value.parse()?;
        ensure!(value < 128, "one byte only");
        message.extend_from_slice(&[number << 3, value]);
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.extend_from_slice(&message);
    Ok(frame.freeze())
}

/// The version (field 3) of each `lateen.app.EchoReply`; all fields before it are short strings.
fn versions(mut body: &[u8]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    while let Some((frame, rest)) = body.split_at_checked(5) {
        let length = u32::from_be_bytes(frame[1..].try_into()?) as usize;
        let (mut message, rest) = rest.split_at_checked(length).context("a message that is cut off")?;
        body = rest;
        while let [tag, length, after @ ..] = message {
            let (value, after) = after.split_at_checked((*length).into()).context("a field that is cut off")?;
            if *tag == 0x1a {
                found.push(String::from_utf8_lossy(value).into_owned());
                break;
            }
            message = after;
        }
    }
    Ok(found)
}
