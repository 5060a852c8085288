//! An upstream's HTTP/1 connection.
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncWriteExt as _, WriteHalf, split};

use super::Script;
use crate::case::{Answer, Then, wire};
use crate::compressed;
use crate::wire::{Cut, Head, Io, Reader, fields};

/// More than a socket holds, when a body must not be drained.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) async fn serve(stream: impl Io, name: &str, script: &Script) -> Result<(), Cut> {
    let (read, mut write) = split(stream);
    let mut reader = Reader::new(read);
    loop {
        let head = reader.head().await?;
        let mut words = head.line.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (method, path, version) = (word(), word(), word());
        let headers = head.fields.iter().filter(|(n, _)| n != "x-step").map(|(n, v)| (n.as_str(), v.as_str()));
        let seen = json!({"upstream": name, "version": version, "method": method, "path": path, "headers": fields(headers)});
        let (at, answer) = script.next(name, seen);
        if !answer.early {
            body(&mut reader, &head, at, script).await?;
        }
        tokio::time::sleep(Duration::from_millis(answer.after_ms)).await;
        if answer.silent {
            std::future::pending::<()>().await;
        }
        reply(&mut write, &answer, name, method == "HEAD").await.map_err(|_| Cut::Reset)?;
        if answer.upgrade.is_some() {
            return echo(&mut reader, &mut write).await;
        }
        match answer.then {
            Then::Keep if !answer.early => {}
            Then::Keep => {
                body(&mut reader, &head, at, script).await?;
            }
            Then::Close => {
                let _ = write.shutdown().await;
                return Ok(());
            }
            Then::Reset | Then::Refuse => {
                tokio::time::sleep(PAUSE).await;
                let stream = read_back(reader, write);
                stream.tcp().set_zero_linger().map_err(|_| Cut::Reset)?;
                return Ok(());
            }
        }
    }
}

fn read_back<S: Io>(reader: Reader<tokio::io::ReadHalf<S>>, write: WriteHalf<S>) -> S {
    reader.into_inner().unsplit(write)
}

async fn body<R: tokio::io::AsyncRead + Unpin>(reader: &mut Reader<R>, head: &Head, at: usize, script: &Script) -> Result<(), Cut> {
    let _reading = script.read();
    let mut bytes = Vec::new();
    let outcome = if head.is_chunked() {
        reader.chunks(&mut bytes).await.map(|trailers| {
            if !trailers.fields.is_empty() {
                script.note(at, "trailers", fields(trailers.fields.iter().map(|(n, v)| (n.as_str(), v.as_str()))));
            }
        })
    } else {
        reader.exactly(head.length().unwrap_or(0), &mut bytes).await
    };
    script.note(at, "body", compressed::shown(&bytes, head.get("content-encoding")));
    if outcome.is_err() {
        script.note(at, "body_incomplete", true.into());
    }
    outcome
}

async fn reply<W: tokio::io::AsyncWrite + Unpin>(write: &mut W, answer: &Answer, name: &str, is_head: bool) -> std::io::Result<()> {
    for status in &answer.before {
        write.write_all(format!("HTTP/1.1 {status} Before\r\nx-before: {status}\r\n\r\n").as_bytes()).await?;
    }
    if let Some(raw) = &answer.raw {
        return write.write_all(&wire(raw)).await;
    }
    if let Some(protocol) = &answer.upgrade {
        let head = match protocol.as_str() {
            "CONNECT" => "HTTP/1.1 200 OK\r\nx-tunnel: yes\r\n\r\n".to_owned(),
            other => format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {other}\r\n\r\n"),
        };
        return write.write_all(head.as_bytes()).await;
    }
    if answer.then != Then::Keep && answer.body.is_none() && answer.status == 200 && answer.headers.0.is_empty() {
        // Nothing is answered: the connection just ends.
        return Ok(());
    }
    let body = super::body_of(answer, name);
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, super::reason(answer.status));
    answer.headers.0.iter().for_each(|(n, v)| head += &format!("{n}: {v}\r\n"));
    let bodiless = matches!(answer.status, 204 | 304);
    let chunked = !answer.trailers.0.is_empty();
    if chunked {
        head += "transfer-encoding: chunked\r\n";
    } else if !bodiless && !answer.headers.has("content-length") {
        head += &format!("content-length: {}\r\n", body.len());
    }
    write.write_all(format!("{head}\r\n").as_bytes()).await?;
    tokio::time::sleep(Duration::from_millis(answer.pause_ms)).await;
    if is_head || bodiless {
        return Ok(());
    }
    if !chunked {
        return write.write_all(&body).await;
    }
    write.write_all(format!("{:x}\r\n", body.len()).as_bytes()).await?;
    write.write_all(&body).await?;
    let trailers: String = answer.trailers.0.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    write.write_all(format!("\r\n0\r\n{trailers}\r\n").as_bytes()).await
}

/// Sends back what comes, until the end.
async fn echo<R: tokio::io::AsyncRead + Unpin, W: tokio::io::AsyncWrite + Unpin>(reader: &mut Reader<R>, write: &mut W) -> Result<(), Cut> {
    loop {
        let bytes = reader.some().await?;
        write.write_all(&bytes).await.map_err(|_| Cut::Reset)?;
    }
}
