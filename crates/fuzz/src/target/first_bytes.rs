//! The first bytes of a connection: PROXY protocol, TLS ClientHello, HTTP version. What a prefix settled, more bytes leave.
use lateen_proxy::fuzzing;

pub(crate) fn run(data: &[u8]) {
    for inspect in [fuzzing::proxy_header, fuzzing::hello, fuzzing::http_version] {
        let mut settled: Option<String> = None;
        // Every cut of a short input, some of a long one.
        let step = (data.len() / 128).max(1);
        for end in (0..=data.len()).step_by(step) {
            let now = inspect(&data[..end]);
            match (&settled, now) {
                (None, now) => settled = now,
                (Some(before), now) => assert_eq!(Some(before), now.as_ref(), "at {end} of {}", data.escape_ascii()),
            }
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        &b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET"[..],
        b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x01\0\x02",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbb\0\x01\0\x02",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        b"GET / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    seeds.push(hello());
    seeds
}

/// A ClientHello with a server name and two protocols.
fn hello() -> Vec<u8> {
    let sized = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let name = sized(&[&[0][..], &sized(b"shop.example")].concat());
    let alpn = sized(&[&[2][..], b"h2", &[8], b"http/1.1"].concat());
    let extensions = [&[0, 0][..], &sized(&name), &[0, 16], &sized(&alpn)].concat();
    let body = [&[3, 3][..], &[7; 32], &[0], &sized(&[0x13, 1]), &[1, 0], &sized(&extensions)].concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}
