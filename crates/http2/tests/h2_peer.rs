//! The `h2` crate as a peer that nobody here wrote, on the other end of an in-memory pipe.
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode};
use lateen_http2::{Config, Connection, Event, RequestHead};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Writes the output, then reads once; returns the events.
async fn turn(connection: &mut Connection, io: &mut DuplexStream, bytes: &mut BytesMut) -> Vec<Event> {
    flush(connection, io).await;
    let mut events = Vec::new();
    while events.is_empty() {
        assert!(io.read_buf(bytes).await.unwrap() > 0, "the peer closed");
        connection.receive(bytes, &mut events).unwrap();
        flush(connection, io).await;
    }
    events
}

async fn flush(connection: &mut Connection, io: &mut DuplexStream) {
    while !connection.output().is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 8];
        let filled = connection.output().slices(&mut slices);
        let written = io.write_vectored(&slices[..filled]).await.unwrap();
        connection.written(written);
    }
}

#[tokio::test]
async fn our_server_answers_their_client() {
    let (theirs, mut ours) = tokio::io::duplex(1 << 16);
    let client = tokio::spawn(async move {
        let (mut sender, connection) = h2::client::handshake(theirs).await.unwrap();
        tokio::spawn(connection);
        let mut seen = Vec::new();
        for n in 0..20 {
            let request = Request::post(format!("http://a/{n}")).header("x-same", "yes").body(()).unwrap();
            sender = sender.ready().await.unwrap();
            let (response, mut body) = sender.send_request(request, false).unwrap();
            body.send_data(Bytes::from(format!("ping {n}")), true).unwrap();
            let mut response = response.await.unwrap();
            let data = response.body_mut().data().await.unwrap().unwrap();
            let trailers = response.body_mut().trailers().await.unwrap().unwrap();
            seen.push((response.status(), data, trailers["grpc-status"].clone()));
        }
        seen
    });
    let (mut server, mut bytes) = (Connection::server(Config::default()), BytesMut::new());
    let mut answered = 0;
    while answered < 20 {
        for event in turn(&mut server, &mut ours, &mut bytes).await {
            if let Event::Data { id, data, end: true } = event {
                server.release(id, data.len());
                server.send_response(id, StatusCode::OK, &HeaderMap::new(), false);
                server.send_data(id, &mut data.clone(), false);
                server.send_trailers(id, &HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]));
                answered += 1;
            }
        }
    }
    flush(&mut server, &mut ours).await;
    let seen = client.await.unwrap();
    assert!(seen.iter().enumerate().all(|(n, (s, d, t))| *s == 200 && *d == format!("ping {n}") && t == "0"), "{seen:?}");
}

#[tokio::test]
async fn our_client_is_answered_by_their_server() {
    let (theirs, mut ours) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(theirs).await.unwrap();
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request.unwrap();
            let response = Response::builder().header("x-path", request.uri().path()).body(()).unwrap();
            let mut body = respond.send_response(response, false).unwrap();
            body.reserve_capacity(100_000);
            body.send_data(Bytes::from(vec![1; 100_000]), true).unwrap();
        }
    });
    let (mut client, mut bytes) = (Connection::client(Config::default()), BytesMut::new());
    for n in 0..10 {
        let head = RequestHead {
            scheme: Bytes::from_static(b"http"),
            authority: Bytes::from_static(b"a"),
            path: Bytes::from(format!("/{n}")),
            ..RequestHead::default()
        };
        client.send_request(head.as_ref(), true).unwrap();
        let (mut size, mut done) = (0, false);
        while !done {
            for event in turn(&mut client, &mut ours, &mut bytes).await {
                match event {
                    Event::Response { headers, .. } => assert_eq!(headers["x-path"], format!("/{n}")),
                    Event::Data { id, data, end } => {
                        size += data.len();
                        done = end;
                        client.release(id, data.len());
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(size, 100_000);
    }
}
