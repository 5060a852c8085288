//! Reads server name and ALPN out of a TLS ClientHello without answering it (RFC 8446 4.1.2).
use std::sync::Arc;

/// A ClientHello of more than this is not waited for.
const LIMIT: usize = 64 * 1024;

/// What the first bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    NeedMore,
    NotTls,
    Client { server_name: Option<Arc<str>>, alpn: Vec<Arc<[u8]>> },
}

/// Looks at the first bytes. The handshake may be spread over several records.
pub(super) fn parse(bytes: &[u8]) -> Hello {
    let mut handshake = Vec::new();
    let mut rest = bytes;
    loop {
        let (kind, body, next) = match record(rest) {
            Record::NeedMore => return if bytes.len() > LIMIT { Hello::NotTls } else { Hello::NeedMore },
            Record::Invalid => return Hello::NotTls,
            Record::Whole { kind, body, rest } => (kind, body, rest),
        };
        if kind != 22 || handshake.len() + body.len() > LIMIT {
            return Hello::NotTls;
        }
        handshake.extend_from_slice(body);
        match message(&handshake) {
            Some(Ok(hello)) => return client_hello(hello).unwrap_or(Hello::NotTls),
            Some(Err(())) => return Hello::NotTls,
            None => rest = next,
        }
    }
}

enum Record<'a> {
    NeedMore,
    Invalid,
    Whole { kind: u8, body: &'a [u8], rest: &'a [u8] },
}

fn record(bytes: &[u8]) -> Record<'_> {
    match bytes {
        [] => Record::NeedMore,
        [kind, ..] if *kind != 22 => Record::Invalid,
        [_, major, ..] if *major != 3 => Record::Invalid,
        [kind, _, _, high, low, rest @ ..] => {
            let size = usize::from(u16::from_be_bytes([*high, *low]));
            if size == 0 || size > 16_384 + 256 {
                return Record::Invalid;
            }
            match rest.split_at_checked(size) {
                Some((body, rest)) => Record::Whole { kind: *kind, body, rest },
                None => Record::NeedMore,
            }
        }
        _ => Record::NeedMore,
    }
}

/// The first handshake message, which must be a ClientHello; `None` while incomplete.
fn message(bytes: &[u8]) -> Option<Result<&[u8], ()>> {
    let [kind, a, b, c, rest @ ..] = bytes else { return None };
    let size = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
    if *kind != 1 || size > LIMIT {
        return Some(Err(()));
    }
    rest.get(..size).map(Ok)
}

fn client_hello(body: &[u8]) -> Option<Hello> {
    let rest = body.get(2 + 32..)?;
    let (_, rest) = vector8(rest)?;
    let (_, rest) = vector16(rest)?;
    let (_, rest) = vector8(rest)?;
    let mut server_name = None;
    let mut alpn = Vec::new();
    if rest.is_empty() {
        return Some(Hello::Client { server_name, alpn });
    }
    let (mut extensions, _) = vector16(rest)?;
    while let [a, b, rest @ ..] = extensions {
        let (body, rest) = vector16(rest)?;
        match u16::from_be_bytes([*a, *b]) {
            0 => server_name = host_name(body),
            16 => alpn = protocols(body)?,
            _ => {}
        }
        extensions = rest;
    }
    Some(Hello::Client { server_name, alpn })
}

fn host_name(body: &[u8]) -> Option<Arc<str>> {
    let (list, _) = vector16(body)?;
    let [0, rest @ ..] = list else { return None };
    let (name, _) = vector16(rest)?;
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic())).then(|| Arc::from(name.to_ascii_lowercase()))
}

fn protocols(body: &[u8]) -> Option<Vec<Arc<[u8]>>> {
    let (mut list, _) = vector16(body)?;
    let mut out = Vec::new();
    while !list.is_empty() {
        let (name, rest) = vector8(list)?;
        out.push(Arc::from(name));
        list = rest;
    }
    Some(out)
}

fn vector8(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*size))
}

fn vector16(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [a, b, rest @ ..] = bytes else { return None };
    rest.split_at_checked(usize::from(u16::from_be_bytes([*a, *b])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A real ClientHello, from the TLS library we use.
    fn hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let roots = rustls::RootCertStore::empty();
        let provider = lateen_identity::tls::provider().clone();
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn wanted() -> Hello {
        Hello::Client { server_name: Some(Arc::from("reviews.example")), alpn: vec![Arc::from(&b"istio"[..]), Arc::from(&b"h2"[..])] }
    }

    #[test]
    fn name_and_protocols_are_read() {
        assert_eq!(parse(&hello("Reviews.example", &[b"istio", b"h2"])), wanted());
    }

    #[test]
    fn every_prefix_wants_more_and_nothing_panics_on_damage() {
        let bytes = hello("reviews.example", &[b"istio", b"h2"]);
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Hello::NeedMore, "at {end}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = parse(&damaged);
            }
        }
    }

    #[test]
    fn a_hello_spread_over_many_records_is_put_together() {
        let bytes = hello("reviews.example", &[b"istio", b"h2"]);
        let split: Vec<u8> = bytes[5..].chunks(7).flat_map(|c| [&[22, 3, 1, 0, c.len() as u8][..], c].concat()).collect();
        assert_eq!(parse(&split), wanted());
    }

    #[test]
    fn other_protocols_are_not_tls() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x05\x01\x00\x05hello", b"\x16\x03\x01\x00\x00", b"SSH-2.0"] {
            assert_eq!(parse(bytes), Hello::NotTls);
        }
    }
}
