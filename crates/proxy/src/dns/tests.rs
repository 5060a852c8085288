//! The resolver against servers on loopback that do as they are told.
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;

/// What a server says to a name and a kind of record: addresses, a code, or nothing.
type Says = fn(&str, u16) -> Option<(u8, Vec<IpAddr>)>;

/// A DNS server over UDP; what it was asked is kept.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

fn name_in(message: &[u8]) -> (String, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while message[at] != 0 {
        let length = usize::from(message[at]);
        labels.push(String::from_utf8(message[at + 1..at + 1 + length].to_vec()).unwrap());
        at += 1 + length;
    }
    (labels.join("."), at + 1)
}

fn reply(message: &[u8], code: u8, addresses: &[IpAddr], truncated: bool) -> Vec<u8> {
    let (_, end) = name_in(message);
    let mut bytes = message[..end + 4].to_vec();
    bytes[2] = 0x81 | u8::from(truncated) << 1;
    bytes[3] = 0x80 | code;
    bytes[6..12].copy_from_slice(&[0, addresses.len() as u8, 0, 0, 0, 0]);
    for address in addresses {
        let data = match address {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        bytes.extend_from_slice(&[0xc0, 12, 0, if address.is_ipv4() { 1 } else { 28 }, 0, 1, 0, 0, 0, 77, 0, data.len() as u8]);
        bytes.extend_from_slice(&data);
    }
    bytes
}

impl Server {
    async fn start(says: Says) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (socket.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let message = &buffer[..length];
                let (name, end) = name_in(message);
                let kind = u16::from_be_bytes([message[end], message[end + 1]]);
                log.lock().unwrap().push(format!("{name} {kind}"));
                if let Some((code, addresses)) = says(&name, kind) {
                    let _ = socket.send_to(&reply(message, code, &addresses, false), from).await;
                }
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn only(&self) -> StubResolver {
        StubResolver { servers: vec![self.address], no_search: true, timeout: Duration::from_secs(2), ..StubResolver::default() }
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

async fn look(name: &str, family: DnsFamily, how: StubResolver) -> Result<Answer, Failure> {
    Resolver::new(None, DnsResolver::Stub(how)).lookup(name, family, None).await
}

#[tokio::test]
async fn families_are_asked_for_as_wished() {
    let server = Server::start(|name, kind| {
        let found = match (kind, name) {
            (1, "six.test") | (28, "four.test") => vec![],
            (1, _) => ips(&["10.0.0.1"]),
            _ => ips(&["fd00::1"]),
        };
        Some((0, found))
    })
    .await;
    let found = async |name: &str, family| look(name, family, server.only()).await.unwrap().addresses;
    assert_eq!(found("both.test", DnsFamily::V4Only).await, ips(&["10.0.0.1"]));
    assert_eq!(found("both.test", DnsFamily::V6Only).await, ips(&["fd00::1"]));
    assert_eq!(found("both.test", DnsFamily::Auto).await, ips(&["fd00::1"]));
    assert_eq!(found("four.test", DnsFamily::Auto).await, ips(&["10.0.0.1"]));
    assert_eq!(found("both.test", DnsFamily::V4Preferred).await, ips(&["10.0.0.1"]));
    assert_eq!(found("six.test", DnsFamily::V4Preferred).await, ips(&["fd00::1"]));
    server.asked();
    assert_eq!(found("both.test", DnsFamily::All).await, ips(&["10.0.0.1", "fd00::1"]));
    let mut asked = server.asked();
    asked.sort();
    assert_eq!(asked, ["both.test 1", "both.test 28"]);
}

#[tokio::test]
async fn an_answer_has_its_time_to_live_and_no_such_name_is_an_answer() {
    let server = Server::start(|name, _| Some(if name == "gone.test" { (3, vec![]) } else { (0, ips(&["10.0.0.1"])) })).await;
    let answer = look("a.test", DnsFamily::V4Only, server.only()).await.unwrap();
    assert_eq!(answer.ttl, Some(Duration::from_secs(77)));
    assert_eq!(look("gone.test", DnsFamily::V4Only, server.only()).await.unwrap().addresses, ips(&[]));
    let literal = look("192.0.2.7", DnsFamily::V6Only, server.only()).await.unwrap();
    assert_eq!(literal, Answer { addresses: ips(&["192.0.2.7"]), ttl: None });
    assert_eq!(look("localhost", DnsFamily::V4Only, server.only()).await.unwrap().addresses, ips(&["127.0.0.1"]));
    assert_eq!(server.asked(), ["a.test 1", "gone.test 1"]);
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails_and_failures_are_no_answers() {
    let broken = Server::start(|_, _| Some((2, vec![]))).await;
    let good = Server::start(|_, _| Some((0, ips(&["10.0.0.9"])))).await;
    let both = StubResolver { servers: vec![broken.address, good.address], ..broken.only() };
    assert_eq!(look("a.test", DnsFamily::V4Only, both).await.unwrap().addresses, ips(&["10.0.0.9"]));
    let failure = look("a.test", DnsFamily::V4Only, broken.only()).await.unwrap_err();
    assert!(failure.contains("code 2"), "{failure}");
    assert_eq!(broken.asked().len(), 2, "a refusal is not asked for again");
}

#[tokio::test]
async fn a_lost_question_is_sent_again() {
    let mute = Server::start(|_, _| None).await;
    let how = StubResolver { tries: 3, timeout: Duration::from_millis(50), ..mute.only() };
    let failure = look("a.test", DnsFamily::V4Only, how).await.unwrap_err();
    assert!(failure.contains("no answer within"), "{failure}");
    assert_eq!(mute.asked().len(), 3);
}

#[tokio::test]
async fn a_long_answer_comes_over_tcp() {
    let (udp, tcp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // The same number may be taken over UDP.
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = tcp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
        udp.send_to(&reply(&buffer[..length], 0, &[], true), from).await.unwrap();
        for _ in 0..2 {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut message = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut message).await.unwrap();
            let answer = reply(&message, 0, &ips(&["10.0.0.5"; 100]), false);
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    let how = StubResolver { servers: vec![address], no_search: true, ..StubResolver::default() };
    assert_eq!(look("a.test", DnsFamily::V4Only, how.clone()).await.unwrap().addresses.len(), 100);
    let only_tcp = StubResolver { tcp: true, ..how };
    assert_eq!(look("a.test", DnsFamily::V4Only, only_tcp).await.unwrap().addresses.len(), 100);
}
