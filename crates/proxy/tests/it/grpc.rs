//! A gRPC server under test: what it answers to each message is a closure's business.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Response};
use prost::Message;

/// A cluster whose hosts speak HTTP/2.
pub(crate) const HTTP2: &str = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {http2_protocol_options: {}}";

/// What becomes of a message.
pub(crate) enum Reply {
    Message(Vec<u8>),
    /// Bytes as they are, instead of a framed message.
    Raw(Vec<u8>),
    /// Ends the call with this status.
    Status(u16),
    /// The same, but what the caller still sends is neither read nor refused.
    Ended(u16),
    /// Nothing, ever.
    Silence,
    Nothing,
}

impl Reply {
    pub(crate) fn of(message: &impl Message) -> Self {
        Self::Message(message.encode_to_vec())
    }
}

/// The server, with the heads of the calls that it got.
pub(crate) struct GrpcServer {
    address: SocketAddr,
    pub(crate) heads: Arc<Mutex<Vec<(String, HeaderMap)>>>,
    _runtime: tokio::runtime::Runtime,
}

impl GrpcServer {
    pub(crate) fn start(respond: impl Fn(&[u8]) -> Reply + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, respond) = (heads.clone(), Arc::new(respond));
        let address = runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(connection(stream, seen.clone(), respond.clone()));
                }
            });
            address
        });
        Self { address, heads, _runtime: runtime }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

type Respond = Arc<dyn Fn(&[u8]) -> Reply + Send + Sync>;

async fn connection(stream: tokio::net::TcpStream, heads: Arc<Mutex<Vec<(String, HeaderMap)>>>, respond: Respond) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, answer))) = connection.accept().await {
        heads.lock().unwrap().push((request.uri().path().to_owned(), request.headers().clone()));
        tokio::spawn(call(request.into_body(), answer, respond.clone()));
    }
}

async fn call(mut body: h2::RecvStream, mut answer: h2::server::SendResponse<Bytes>, respond: Respond) {
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut send) = answer.send_response(head, false) else { return };
    let mut buffer = BytesMut::new();
    let (mut status, mut lasts, mut taken) = (0, false, 0);
    'call: loop {
        while buffer.len() >= 5 {
            let length = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
            if buffer.len() < 5 + length {
                break;
            }
            buffer.advance(5);
            let message = buffer.split_to(length);
            match respond(&message) {
                Reply::Message(reply) => {
                    let framed = [&[0][..], &(reply.len() as u32).to_be_bytes(), &reply].concat();
                    let _ = send.send_data(framed.into(), false);
                }
                Reply::Raw(raw) => drop(send.send_data(raw.into(), false)),
                Reply::Status(code) => {
                    status = code;
                    break 'call;
                }
                Reply::Ended(code) => {
                    (status, lasts) = (code, true);
                    break 'call;
                }
                Reply::Silence => std::future::pending().await,
                Reply::Nothing => {}
            }
        }
        // Room for more is made when what has come is done with.
        let _ = body.flow_control().release_capacity(taken);
        match body.data().await {
            Some(Ok(data)) => {
                taken = data.len();
                buffer.extend_from_slice(&data);
            }
            Some(Err(_)) => return,
            None => break,
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    let _ = send.send_trailers(trailers);
    if lasts {
        tokio::time::sleep(2 * crate::support::WAIT).await;
    }
}
