//! The PROXY protocol, versions 1 and 2: reading it in front of a connection, writing it upstream.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use lateen_snapshot::proxy_protocol::{ProxyProtocol, ProxyProtocolFilter, ProxyProtocolVersion, Tlv};

use crate::upstream::Proxied;

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
    /// There is none, and there need not be.
    Absent,
    /// Sent by the proxy itself (health checks): the socket's own addresses hold.
    Local {
        size: usize,
    },
    Proxied {
        size: usize,
        source: SocketAddr,
        destination: SocketAddr,
        tlvs: Vec<Tlv>,
    },
}

/// Reads a header as the filter demands it. A version that is refused is none where there need not be any.
pub(super) fn parse(bytes: &[u8], filter: &ProxyProtocolFilter) -> Header {
    let begins = |signature: &[u8], refused: bool| {
        let common = bytes.len().min(signature.len());
        (bytes[..common] == signature[..common] && !(filter.optional && refused)).then_some(common == signature.len())
    };
    match (begins(SIGNATURE, filter.refuses_v2), begins(b"PROXY ", filter.refuses_v1)) {
        (Some(true), _) if filter.refuses_v2 => Header::Invalid,
        (_, Some(true)) if filter.refuses_v1 => Header::Invalid,
        (Some(true), _) => v2(bytes, filter.wants_tlvs()),
        (_, Some(true)) => v1(bytes),
        (None, None) if filter.optional => Header::Absent,
        (None, None) => Header::Invalid,
        _ => Header::NeedMore,
    }
}

/// A connection has two ends, and neither is everybody or nobody.
fn proxied(size: usize, source: SocketAddr, destination: SocketAddr, tlvs: Vec<Tlv>) -> Header {
    let is_host = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    if is_host(source) && is_host(destination) { Header::Proxied { size, source, destination, tlvs } } else { Header::Invalid }
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
                (Some(source), Some(destination)) => proxied(size, source, destination, Vec::new()),
                _ => Header::Invalid,
            }
        }
        _ => Header::Invalid,
    }
}

fn v2(bytes: &[u8], wants_tlvs: bool) -> Header {
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
    let behind = |addresses: usize| if wants_tlvs { tlvs(body.get(addresses..)?) } else { Some(Vec::new()) };
    // Connections and datagrams, over IPv4 and IPv6.
    match (command & 0xf, family) {
        (0, _) | (1, 0) => Header::Local { size },
        (1, 0x11 | 0x12) => match (body.first_chunk::<12>(), behind(12)) {
            (Some([a, b, c, d, e, f, g, h, p, q, r, s]), Some(tlvs)) => proxied(
                size,
                SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*p, *q])),
                SocketAddr::new(Ipv4Addr::new(*e, *f, *g, *h).into(), u16::from_be_bytes([*r, *s])),
                tlvs,
            ),
            _ => Header::Invalid,
        },
        (1, 0x21 | 0x22) => {
            let (Some(source), Some(destination), Some([p, q, r, s]), Some(tlvs)) = (
                body.first_chunk::<16>(),
                body.get(16..).and_then(<[u8]>::first_chunk::<16>),
                body.get(32..).and_then(<[u8]>::first_chunk::<4>),
                behind(36),
            ) else {
                return Header::Invalid;
            };
            proxied(
                size,
                SocketAddr::new(Ipv6Addr::from(*source).into(), u16::from_be_bytes([*p, *q])),
                SocketAddr::new(Ipv6Addr::from(*destination).into(), u16::from_be_bytes([*r, *s])),
                tlvs,
            )
        }
        _ => Header::Invalid,
    }
}

/// The values behind the addresses; `None` when the last one is cut off.
fn tlvs(mut bytes: &[u8]) -> Option<Vec<Tlv>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let [kind, high, low] = *bytes.first_chunk::<3>()?;
        let end = 3 + usize::from(u16::from_be_bytes([high, low]));
        all.push(Tlv { kind, value: Bytes::copy_from_slice(bytes.get(3..end)?) });
        bytes = bytes.get(end..)?;
    }
    Some(all)
}

/// A header as configured; without a caller it says that the connection is the proxy's own.
pub(crate) fn encode(config: &ProxyProtocol, caller: Option<&Proxied>) -> Vec<u8> {
    match config.version {
        ProxyProtocolVersion::V1 => encode_v1(caller.map(|c| (c.source, c.destination))),
        ProxyProtocolVersion::V2 => encode_v2(config, caller),
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
fn encode_v2(config: &ProxyProtocol, caller: Option<&Proxied>) -> Vec<u8> {
    let mut body = Vec::new();
    let (command, family) = match caller.map(|c| (c.source, c.destination)) {
        Some((SocketAddr::V4(source), SocketAddr::V4(destination))) => {
            body.extend_from_slice(&source.ip().octets());
            body.extend_from_slice(&destination.ip().octets());
            body.extend_from_slice(&source.port().to_be_bytes());
            body.extend_from_slice(&destination.port().to_be_bytes());
            (0x21, 0x11)
        }
        Some((SocketAddr::V6(source), SocketAddr::V6(destination))) => {
            body.extend_from_slice(&source.ip().octets());
            body.extend_from_slice(&destination.ip().octets());
            body.extend_from_slice(&source.port().to_be_bytes());
            body.extend_from_slice(&destination.port().to_be_bytes());
            (0x21, 0x21)
        }
        _ => (0x20, 0),
    };
    if let Some(caller) = caller.filter(|_| command == 0x21) {
        for tlv in config.tlvs(&caller.tlvs) {
            // Both were bounded when they were read; whatever does not fit is left out.
            let Ok(length) = u16::try_from(tlv.value.len()) else { continue };
            if body.len() + 3 + tlv.value.len() > usize::from(u16::MAX) {
                break;
            }
            body.push(tlv.kind);
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(&tlv.value);
        }
    }
    let mut out = SIGNATURE.to_vec();
    out.extend_from_slice(&[command, family]);
    out.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(&body);
    out
}

#[cfg(test)]
mod tests {
    use lateen_snapshot::proxy_protocol::PassThrough;

    use super::*;

    fn config(version: ProxyProtocolVersion) -> ProxyProtocol {
        ProxyProtocol { version, pass_through: PassThrough::All, added: Vec::new() }
    }

    fn read(bytes: &[u8]) -> Header {
        parse(bytes, &ProxyProtocolFilter::default())
    }

    fn tlv(kind: u8, value: &'static [u8]) -> Tlv {
        Tlv { kind, value: Bytes::from_static(value) }
    }

    #[test]
    fn both_versions_round_trip_and_every_prefix_wants_more() {
        let pairs = [("10.0.0.1:5", "10.0.0.2:80"), ("[2001:db8::1]:5", "[2001:db8::2]:443")];
        for (source, destination) in pairs {
            let caller = Proxied { source: source.parse().unwrap(), destination: destination.parse().unwrap(), tlvs: Vec::new() };
            for version in [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2] {
                let bytes = encode(&config(version), Some(&caller));
                let size = bytes.len();
                let Proxied { source, destination, tlvs } = caller.clone();
                assert_eq!(read(&bytes), Header::Proxied { size, source, destination, tlvs });
                for end in 0..size {
                    assert_eq!(read(&bytes[..end]), Header::NeedMore);
                }
            }
        }
        assert!(matches!(read(&encode(&config(ProxyProtocolVersion::V2), None)), Header::Local { size: 16 }));
        assert!(matches!(read(&encode(&config(ProxyProtocolVersion::V1), None)), Header::Local { .. }));
    }

    #[test]
    fn values_behind_the_addresses_are_read_where_they_are_wanted() {
        let tlvs = vec![tlv(0xea, b"vpce"), tlv(1, b"")];
        let caller = Proxied { source: "10.0.0.1:5".parse().unwrap(), destination: "10.0.0.2:80".parse().unwrap(), tlvs: tlvs.clone() };
        let mut bytes = encode(&config(ProxyProtocolVersion::V2), Some(&caller));
        let filter = ProxyProtocolFilter { pass_through: PassThrough::All, ..ProxyProtocolFilter::default() };
        let of = |header| if let Header::Proxied { tlvs, .. } = header { Some(tlvs) } else { None };
        assert_eq!(of(parse(&bytes, &filter)), Some(tlvs));
        assert_eq!(of(read(&bytes)), Some(Vec::new()));
        // One value says that it is longer than the header.
        let at = bytes.len() - 1;
        bytes[at] = 9;
        assert_eq!(parse(&bytes, &filter), Header::Invalid);
        assert_eq!(of(read(&bytes)), Some(Vec::new()));
    }

    #[test]
    fn a_header_may_be_missing_where_it_need_not_be_there() {
        let optional = ProxyProtocolFilter { optional: true, ..ProxyProtocolFilter::default() };
        assert_eq!(parse(b"GET / HTTP/1.1\r\n", &optional), Header::Absent);
        assert_eq!(parse(b"PRO", &optional), Header::NeedMore);
        assert_eq!(parse(b"PROX/", &optional), Header::Absent);
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n";
        assert_eq!(parse(line, &ProxyProtocolFilter { refuses_v1: true, ..ProxyProtocolFilter::default() }), Header::Invalid);
        assert_eq!(
            parse(line, &ProxyProtocolFilter { refuses_v1: true, optional: true, ..ProxyProtocolFilter::default() }),
            Header::Absent
        );
        assert!(matches!(parse(line, &ProxyProtocolFilter { refuses_v2: true, ..optional }), Header::Proxied { .. }));
    }

    #[test]
    fn damaged_headers_are_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 80\r\n",
            b"PROXY TCP4 0.0.0.0 5.6.7.8 9 80\r\n",
            b"PROXY TCP4 1.2.3.4 224.0.0.1 9 80\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            b"PROXY \xff\xfe\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04abcd",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
            b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x00",
        ] {
            assert_eq!(read(bytes), Header::Invalid, "{bytes:?}");
        }
    }
}
