//! Expressions of a rule: matches and verdicts, encoded as nested netlink attributes.
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::netlink::Message;

const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_SKGID: u32 = 11;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// An address range by prefix, host bits cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// A text that is not an address or `address/prefix`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IP address or address/prefix")]
pub struct InvalidCidr(String);

impl Cidr {
    /// The range of `address/prefix`; `None` when the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(a) if prefix <= 32 => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask4(prefix))),
            IpAddr::V6(a) if prefix <= 128 => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask6(prefix))),
            _ => return None,
        };
        Some(Self { address, prefix })
    }

    /// The one address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.prefix).is_some_and(|c| c.address == self.address && c.address.is_ipv4() == address.is_ipv4())
    }
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = InvalidCidr;
    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let bad = || InvalidCidr(text.to_owned());
        match text.split_once('/') {
            None => text.parse().map(Self::host).map_err(|_| bad()),
            Some((address, prefix)) => Self::new(address.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?).ok_or_else(bad),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Expr {
    Meta { key: u32 },
    Payload { base: u32, offset: u32, length: u32 },
    Bitwise { mask: Vec<u8> },
    Compare { equal: bool, value: Vec<u8> },
    Random { modulus: u32 },
    Immediate { register: u32, value: Vec<u8> },
    Verdict { code: i32, chain: Option<String> },
    Redirect,
    Nat { family: u8 },
    Masquerade,
    TcpReset,
}

/// One rule: matches left to right, then a verdict. Built by chaining.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    exprs: Vec<Expr>,
}

impl Rule {
    /// A rule that matches every packet and decides nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }

    fn compare(self, equal: bool, value: impl Into<Vec<u8>>) -> Self {
        self.push(Expr::Compare { equal, value: value.into() })
    }

    fn meta(self, key: u32, value: impl Into<Vec<u8>>) -> Self {
        self.push(Expr::Meta { key }).compare(true, value)
    }

    /// Transport protocol TCP.
    pub fn tcp(self) -> Self {
        self.meta(META_L4PROTO, [libc::IPPROTO_TCP as u8])
    }

    /// Transport protocol UDP.
    pub fn udp(self) -> Self {
        self.meta(META_L4PROTO, [libc::IPPROTO_UDP as u8])
    }

    /// Packet leaves by `name`.
    pub fn leaves_by(self, name: &str) -> Self {
        self.meta(META_OIFNAME, interface(name))
    }

    /// Packet came in by `name`.
    pub fn arrives_by(self, name: &str) -> Self {
        self.meta(META_IIFNAME, interface(name))
    }

    /// Packet mark (the socket's `SO_MARK` for a local packet).
    pub fn mark(self, mark: u32) -> Self {
        self.meta(META_MARK, mark.to_ne_bytes())
    }

    /// User id of the socket's owner.
    pub fn socket_user(self, id: u32) -> Self {
        self.meta(META_SKUID, id.to_ne_bytes())
    }

    /// Group id of the socket's owner.
    pub fn socket_group(self, id: u32) -> Self {
        self.meta(META_SKGID, id.to_ne_bytes())
    }

    /// Destination port of TCP or UDP; say [`Rule::tcp`] or [`Rule::udp`] first.
    pub fn destination_port(self, port: u16) -> Self {
        self.port(true, port)
    }

    /// Any other destination port.
    pub fn not_destination_port(self, port: u16) -> Self {
        self.port(false, port)
    }

    fn port(self, equal: bool, port: u16) -> Self {
        self.push(Expr::Payload { base: TRANSPORT_HEADER, offset: 2, length: 2 }).compare(equal, port.to_be_bytes())
    }

    /// Destination in `range`.
    pub fn destination(self, range: Cidr) -> Self {
        self.address(range, true, 16, 24)
    }

    /// Destination of `range`'s family but outside of it.
    pub fn not_destination(self, range: Cidr) -> Self {
        self.address(range, false, 16, 24)
    }

    /// Source in `range`.
    pub fn source(self, range: Cidr) -> Self {
        self.address(range, true, 12, 8)
    }

    fn address(self, range: Cidr, equal: bool, offset4: u32, offset6: u32) -> Self {
        let (family, offset, bytes, mask) = match range.address {
            IpAddr::V4(a) => (NFPROTO_IPV4, offset4, a.octets().to_vec(), mask4(range.prefix).to_be_bytes().to_vec()),
            IpAddr::V6(a) => (NFPROTO_IPV6, offset6, a.octets().to_vec(), mask6(range.prefix).to_be_bytes().to_vec()),
        };
        let rule = self.meta(META_NFPROTO, [family]);
        let length = bytes.len() as u32;
        let rule = rule.push(Expr::Payload { base: NETWORK_HEADER, offset, length });
        let rule = if mask.iter().all(|b| *b == 0xff) { rule } else { rule.push(Expr::Bitwise { mask }) };
        rule.compare(equal, bytes)
    }

    /// One packet in `modulus`, at random.
    pub fn one_in(self, modulus: u32) -> Self {
        if modulus <= 1 { self } else { self.push(Expr::Random { modulus }).compare(true, 0u32.to_ne_bytes()) }
    }

    /// Leaves the chain; a base chain's packet passes unchanged.
    pub fn pass(self) -> Self {
        self.push(Expr::Verdict { code: -5, chain: None })
    }

    /// Goes on in `chain`, and here again if that decides nothing.
    pub fn jump(self, chain: &str) -> Self {
        self.push(Expr::Verdict { code: -3, chain: Some(chain.to_owned()) })
    }

    /// Goes on in `chain` for good.
    pub fn goto(self, chain: &str) -> Self {
        self.push(Expr::Verdict { code: -4, chain: Some(chain.to_owned()) })
    }

    /// Rewrites the destination to `port` of this machine.
    pub fn redirect(self, port: u16) -> Self {
        self.push(Expr::Immediate { register: REG_1, value: port.to_be_bytes().to_vec() }).push(Expr::Redirect)
    }

    /// Rewrites the destination to `address:port`.
    pub fn destination_nat(self, address: IpAddr, port: u16) -> Self {
        let (family, bytes) = match address {
            IpAddr::V4(a) => (NFPROTO_IPV4, a.octets().to_vec()),
            IpAddr::V6(a) => (NFPROTO_IPV6, a.octets().to_vec()),
        };
        self.push(Expr::Immediate { register: REG_1, value: bytes })
            .push(Expr::Immediate { register: REG_2, value: port.to_be_bytes().to_vec() })
            .push(Expr::Nat { family })
    }

    /// Rewrites the source to the address of the interface that the packet leaves by.
    pub fn masquerade(self) -> Self {
        self.push(Expr::Masquerade)
    }

    /// Refuses a TCP connection as a closed port does.
    pub fn tcp_reset(self) -> Self {
        self.push(Expr::TcpReset)
    }

    pub(super) fn encode(&self, message: &mut Message) {
        for expr in &self.exprs {
            message.nest(1, |m| {
                m.text(1, expr.name()).nest(2, |m| expr.encode(m));
            });
        }
    }
}

/// An interface name as the kernel compares it: sixteen bytes, zero filled.
fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn value(m: &mut Message, kind: u16, bytes: &[u8]) {
    m.nest(kind, |m| {
        m.attr(1, bytes);
    });
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::Payload { .. } => "payload",
            Self::Bitwise { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Random { .. } => "numgen",
            Self::Immediate { .. } | Self::Verdict { .. } => "immediate",
            Self::Redirect => "redir",
            Self::Nat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::TcpReset => "reject",
        }
    }

    fn encode(&self, m: &mut Message) {
        match self {
            Self::Meta { key } => {
                m.u32_be(1, REG_1).u32_be(2, *key);
            }
            Self::Payload { base, offset, length } => {
                m.u32_be(1, REG_1).u32_be(2, *base).u32_be(3, *offset).u32_be(4, *length);
            }
            Self::Bitwise { mask } => {
                m.u32_be(1, REG_1).u32_be(2, REG_1).u32_be(3, mask.len() as u32);
                value(m, 4, mask);
                value(m, 5, &vec![0; mask.len()]);
            }
            Self::Compare { equal, value: bytes } => {
                m.u32_be(1, REG_1).u32_be(2, u32::from(!equal));
                value(m, 3, bytes);
            }
            Self::Random { modulus } => {
                m.u32_be(1, REG_1).u32_be(2, *modulus).u32_be(3, 1).u32_be(4, 0);
            }
            Self::Immediate { register, value: bytes } => {
                m.u32_be(1, *register);
                value(m, 2, bytes);
            }
            Self::Verdict { code, chain } => {
                m.u32_be(1, REG_VERDICT).nest(2, |m| {
                    m.nest(2, |m| {
                        m.u32_be(1, *code as u32);
                        if let Some(chain) = chain {
                            m.text(2, chain);
                        }
                    });
                });
            }
            Self::Redirect => {
                m.u32_be(1, REG_1);
            }
            Self::Nat { family } => {
                m.u32_be(1, 1).u32_be(2, u32::from(*family)).u32_be(3, REG_1).u32_be(5, REG_2);
            }
            Self::Masquerade => {}
            Self::TcpReset => {
                m.u32_be(1, 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_clear_host_bits_and_refuse_nonsense() {
        assert_eq!("10.1.2.3/8".parse::<Cidr>().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!("1.2.3.4".parse::<Cidr>().unwrap().to_string(), "1.2.3.4/32");
        assert_eq!("fd00::1/64".parse::<Cidr>().unwrap().to_string(), "fd00::/64");
        assert_eq!("0.0.0.0/0".parse::<Cidr>().unwrap().to_string(), "0.0.0.0/0");
        for bad in ["", "10.0.0.0/33", "a/8", "10.0.0.0/", "::/129", "*"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn containment_keeps_families_apart() {
        let all4: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all4.contains("9.9.9.9".parse().unwrap()));
        assert!(!all4.contains("::1".parse().unwrap()));
        assert!(!"10.244.0.0/16".parse::<Cidr>().unwrap().contains("10.245.0.1".parse().unwrap()));
    }

    #[test]
    fn interface_names_are_cut_not_overrun() {
        assert_eq!(&interface("a-very-long-interface")[..], b"a-very-long-int\0");
    }
}
