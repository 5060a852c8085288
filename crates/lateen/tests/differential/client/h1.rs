//! A caller's HTTP/1 exchange.
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWriteExt as _, split};
use tokio::sync::Notify;

use crate::case::{Step, Version, wire};
use crate::compressed;
use crate::config::Places;
use crate::wire::{Cut, Head, Io, Reader, fields, shown, within};

/// How long a raw request's connection is watched for its end.
const RAW_PATIENCE: Duration = Duration::from_secs(3);

pub(super) async fn ask(stream: impl Io + 'static, step: &Step, index: usize, places: &Places, patience: Duration) -> Value {
    let (read, mut write) = split(stream);
    let mut reader = Reader::new(read);
    if let Some(raw) = &step.raw {
        let bytes = wire(&places.fill(&raw.replace("{step}", &index.to_string())));
        // A proxy may close before it has read everything.
        let _ = write.write_all(&bytes).await;
        let is_head = raw.starts_with("HEAD ");
        return all(&mut reader, is_head, step.patience_ms.map_or(RAW_PATIENCE, Duration::from_millis)).await;
    }
    let (head, pieces) = message(step, index, places);
    let go = Arc::new(Notify::new());
    let waits = step.headers.has("expect");
    let (told, step_pieces) = (Arc::clone(&go), pieces);
    let then = step.then_send.clone();
    let switched = Arc::new(Notify::new());
    let upgraded = Arc::clone(&switched);
    let writer = tokio::spawn(async move {
        let _ = write.write_all(&head).await;
        if waits {
            told.notified().await;
        }
        for piece in step_pieces {
            let _ = write.write_all(&piece).await;
        }
        if let Some(then) = then {
            upgraded.notified().await;
            let _ = write.write_all(then.as_bytes()).await;
        }
        write
    });
    let bodiless = step.method_and_path().0 == "HEAD" || step.then_send.is_some();
    let mut answer = one(&mut reader, bodiless, patience, &go).await;
    if let Some(then) = &step.then_send {
        switched.notify_one();
        let mut back = Vec::new();
        let outcome = within(patience, reader.exactly(then.len(), &mut back)).await;
        answer["echoed"] = shown(&back);
        if let Err(cut) = outcome {
            answer["cut"] = cut.name().into();
        }
    }
    writer.abort();
    answer
}

/// The head, and the body's pieces as they go over the wire.
fn message(step: &Step, index: usize, places: &Places) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (method, path) = step.method_and_path();
    let version = if step.version == Version::Http10 { "1.0" } else { "1.1" };
    let (pieces, chunked) = step.pieces();
    let mut head = format!("{method} {path} HTTP/{version}\r\n");
    if !step.headers.has("host") {
        head += &format!("host: {}\r\n", super::host(step, places));
    }
    super::headers(step, index, places).iter().for_each(|(n, v)| head += &format!("{n}: {v}\r\n"));
    if !chunked {
        let length: usize = pieces.iter().map(Vec::len).sum();
        if !pieces.is_empty() && !step.headers.has("content-length") {
            head += &format!("content-length: {length}\r\n");
        }
        return ((head + "\r\n").into_bytes(), pieces);
    }
    let frame = |piece: &Vec<u8>| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
    let trailers: String = step.trailers.0.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    let last = format!("0\r\n{trailers}\r\n").into_bytes();
    ((head + "transfer-encoding: chunked\r\n\r\n").into_bytes(), pieces.iter().map(frame).chain([last]).collect())
}

/// One answer with the 1xx before it.
async fn one<R: AsyncRead + Unpin>(reader: &mut Reader<R>, is_head: bool, patience: Duration, go: &Notify) -> Value {
    let mut before = Vec::new();
    loop {
        let head = match within(patience, reader.head()).await {
            Ok(head) => head,
            // Whether bytes of ours were still unread when it closed is a matter of timing.
            Err(Cut::Reset) => return json!({"before": before, "cut": Cut::Closed.name()}),
            Err(cut) => return json!({"before": before, "cut": cut.name()}),
        };
        go.notify_one();
        let status = status(&head);
        let told = json!({"line": head.line.trim_end(), "headers": fields(head.fields.iter().map(|(n, v)| (n.as_str(), v.as_str())))});
        if (100..200).contains(&status) && status != 101 {
            before.push(told);
            continue;
        }
        let mut answer = told;
        if !before.is_empty() {
            answer["before"] = before.into();
        }
        body(reader, &head, is_head || matches!(status, 101 | 204 | 304), patience, &mut answer).await;
        return answer;
    }
}

fn status(head: &Head) -> u16 {
    head.line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

async fn body<R: AsyncRead + Unpin>(reader: &mut Reader<R>, head: &Head, bodiless: bool, patience: Duration, answer: &mut Value) {
    let mut bytes = Vec::new();
    let outcome = if bodiless {
        return;
    } else if head.is_chunked() {
        within(patience, reader.chunks(&mut bytes)).await.map(|trailers| {
            if !trailers.fields.is_empty() {
                answer["trailers"] = fields(trailers.fields.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            }
        })
    } else if let Some(length) = head.length() {
        within(patience, reader.exactly(length, &mut bytes)).await
    } else {
        match tokio::time::timeout(patience, reader.rest(&mut bytes)).await {
            Ok(Cut::Closed) => Ok(()),
            Ok(cut) => Err(cut),
            Err(_) => Err(Cut::Timeout),
        }
    };
    answer["body"] = compressed::shown(&bytes, head.get("content-encoding"));
    if let Err(cut) = outcome {
        answer["cut"] = cut.name().into();
    }
}

/// Every answer until the connection ends, for raw bytes that may be any number of requests.
async fn all<R: AsyncRead + Unpin>(reader: &mut Reader<R>, is_head: bool, patience: Duration) -> Value {
    let mut answers = Vec::new();
    let go = Notify::new();
    loop {
        let answer = one(reader, is_head, patience, &go).await;
        let Some(cut) = answer.get("cut").filter(|_| answer.get("line").is_none()) else {
            answers.push(answer);
            continue;
        };
        // A reset is a close with bytes of ours still unread.
        let end = if cut == Cut::Timeout.name() { "open" } else { "closed" };
        return json!({"answers": answers, "end": end});
    }
}
