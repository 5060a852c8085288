//! The PROXY protocol, versions 1 and 2: reading it in front of a connection, writing it upstream.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lateen_snapshot::cluster::ProxyProtocolVersion;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest version 1 line, from the specification.
const V1_LIMIT: usize = 107;
/// A version 2 header with more TLVs than this is refused.
const V2_LIMIT: usize = 4096;

/// What stands in front of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Header {
    NeedMore,
    Invalid,
    /// Sent by the proxy itself (health checks): the socket's own addresses hold.
    Local {
        size: usize,
    },
    Proxied {
        size: usize,
        source: SocketAddr,
        destination: SocketAddr,
    },
}

pub(super) fn parse(bytes: &[u8]) -> Header {
    let common = bytes.len().min(SIGNATURE.len());
    if bytes[..common] == SIGNATURE[..common] {
        return if common == SIGNATURE.len() { v2(bytes) } else { Header::NeedMore };
    }
    let common = bytes.len().min(6);
    if bytes[..common] == b"PROXY "[..common] { v1(bytes) } else { Header::Invalid }
}

fn v1(bytes: &[u8]) -> Header {
    let Some(end) = bytes.windows(2).take(V1_LIMIT).position(|w| w == b"\r\n") else {
        return if bytes.len() > V1_LIMIT { Header::Invalid } else { Header::NeedMore };
    };
    let size = end + 2;
    let Ok(line) = std::str::from_utf8(&bytes[..end]) else { return Header::Invalid };
    let parts: Vec<&str> = line.split(' ').collect();
    match parts.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Header::Local { size },
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let address = |ip: &str, port: &str| {
                let ip: IpAddr = ip.parse().ok()?;
                (ip.is_ipv4() == (*family == "TCP4")).then_some(())?;
                Some(SocketAddr::new(ip, port.parse().ok()?))
            };
            match (address(source, source_port), address(destination, destination_port)) {
                (Some(source), Some(destination)) => Header::Proxied { size, source, destination },
                _ => Header::Invalid,
            }
        }
        _ => Header::Invalid,
    }
}

fn v2(bytes: &[u8]) -> Header {
    let [command, family, high, low] = match bytes.get(12..16) {
        Some([a, b, c, d]) => [*a, *b, *c, *d],
        _ => return Header::NeedMore,
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 || length > V2_LIMIT {
        return Header::Invalid;
    }
    let Some(body) = bytes.get(16..16 + length) else { return Header::NeedMore };
    let size = 16 + length;
    match (command & 0xf, family) {
        (0, _) | (1, 0) => Header::Local { size },
        (1, 0x11) => match body.first_chunk::<12>() {
            Some([a, b, c, d, e, f, g, h, p, q, r, s]) => Header::Proxied {
                size,
                source: SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*p, *q])),
                destination: SocketAddr::new(Ipv4Addr::new(*e, *f, *g, *h).into(), u16::from_be_bytes([*r, *s])),
            },
            None => Header::Invalid,
        },
        (1, 0x21) => {
            let (Some(source), Some(destination), Some([p, q, r, s])) = (
                body.first_chunk::<16>(),
                body.get(16..).and_then(<[u8]>::first_chunk::<16>),
                body.get(32..).and_then(<[u8]>::first_chunk::<4>),
            ) else {
                return Header::Invalid;
            };
            Header::Proxied {
                size,
                source: SocketAddr::new(Ipv6Addr::from(*source).into(), u16::from_be_bytes([*p, *q])),
                destination: SocketAddr::new(Ipv6Addr::from(*destination).into(), u16::from_be_bytes([*r, *s])),
            }
        }
        _ => Header::Invalid,
    }
}

/// A header of this version; without addresses it says that the connection is the proxy's own.
pub(crate) fn encode(version: ProxyProtocolVersion, addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    match version {
        ProxyProtocolVersion::V1 => encode_v1(addresses),
        ProxyProtocolVersion::V2 => encode_v2(addresses),
    }
}

/// A version 1 line.
fn encode_v1(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    match addresses {
        Some((source, destination)) if source.is_ipv4() == destination.is_ipv4() => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {} {} {} {}\r\n", source.ip(), destination.ip(), source.port(), destination.port()).into_bytes()
        }
        _ => b"PROXY UNKNOWN\r\n".to_vec(),
    }
}

/// A version 2 header.
fn encode_v2(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    match addresses {
        Some((SocketAddr::V4(source), SocketAddr::V4(destination))) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 12]);
            out.extend_from_slice(&source.ip().octets());
            out.extend_from_slice(&destination.ip().octets());
            out.extend_from_slice(&source.port().to_be_bytes());
            out.extend_from_slice(&destination.port().to_be_bytes());
        }
        Some((SocketAddr::V6(source), SocketAddr::V6(destination))) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 36]);
            out.extend_from_slice(&source.ip().octets());
            out.extend_from_slice(&destination.ip().octets());
            out.extend_from_slice(&source.port().to_be_bytes());
            out.extend_from_slice(&destination.port().to_be_bytes());
        }
        _ => out.extend_from_slice(&[0x20, 0, 0, 0]),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_round_trip_and_every_prefix_wants_more() {
        let pairs = [("10.0.0.1:5", "10.0.0.2:80"), ("[2001:db8::1]:5", "[2001:db8::2]:443")];
        for (source, destination) in pairs {
            let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
            for bytes in [encode_v1(Some((source, destination))), encode_v2(Some((source, destination)))] {
                let size = bytes.len();
                assert_eq!(parse(&bytes), Header::Proxied { size, source, destination });
                for end in 0..size {
                    assert_eq!(parse(&bytes[..end]), Header::NeedMore);
                }
            }
        }
        assert!(matches!(parse(&encode_v2(None)), Header::Local { size: 16 }));
        assert!(matches!(parse(&encode_v1(None)), Header::Local { .. }));
    }

    #[test]
    fn damaged_headers_are_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 80\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY \xff\xfe\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04abcd",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x00",
        ] {
            assert_eq!(parse(bytes), Header::Invalid, "{bytes:?}");
        }
    }
}
