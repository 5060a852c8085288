//! DNS messages (RFC 1035, EDNS sizes of RFC 6891): one question in, A and AAAA records out.
use std::net::IpAddr;

const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const ANY: u16 = 255;
const OPT: u16 = 41;
const IN: u16 = 1;
/// A datagram without EDNS may not be longer.
const PLAIN_LIMIT: usize = 512;
/// We never send longer datagrams, whatever the client offers.
const EDNS_LIMIT: usize = 1232;

/// Response codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Ok = 0,
    Malformed = 1,
    Failed = 2,
    NoSuchName = 3,
    NotImplemented = 4,
}

/// A question that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    id: [u8; 2],
    recursion_desired: bool,
    /// The question as it came, echoed in the reply (some clients vary the case and compare).
    question: Vec<u8>,
    name: String,
    kind: u16,
    edns: Option<u16>,
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// The reply to send at once (malformed, or an operation that we do not have), or none for what is not a query at all.
    pub fn parse(bytes: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        let (Some(&[id0, id1, flags0, _]), true) = (bytes.first_chunk::<4>(), bytes.len() >= HEADER) else { return Err(None) };
        if flags0 & 0x80 != 0 {
            return Err(None);
        }
        let refuse = |code: Code| Err(Some(header([id0, id1], flags0 & 1 != 0, code, false, 0, 0)));
        if flags0 >> 3 & 15 != 0 {
            return refuse(Code::NotImplemented);
        }
        let count = |at: usize| bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
        let Some((name, end)) = name(bytes, HEADER) else { return refuse(Code::Malformed) };
        let Some(tail) = bytes.get(end..end + 4) else { return refuse(Code::Malformed) };
        if count(4) != 1 || u16::from_be_bytes([tail[2], tail[3]]) != IN {
            return refuse(Code::NotImplemented);
        }
        Ok(Self {
            id: [id0, id1],
            recursion_desired: flags0 & 1 != 0,
            question: bytes[HEADER..end + 4].to_vec(),
            name,
            kind: u16::from_be_bytes([tail[0], tail[1]]),
            edns: if count(6) == 0 && count(8) == 0 { edns_size(bytes, end + 4, count(10)) } else { None },
        })
    }

    /// The name asked for: lower case, without the closing dot.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long a datagram the client takes.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_LIMIT, |size| usize::from(size).clamp(PLAIN_LIMIT, EDNS_LIMIT))
    }

    /// The reply with those of `addresses` that are of the type asked for; truncated (TC) when longer than `limit`.
    pub fn reply(&self, code: Code, addresses: &[IpAddr], ttl: u32, limit: usize) -> Vec<u8> {
        let mut records = Vec::new();
        let mut count = 0u16;
        let mut truncated = false;
        let extra = if self.edns.is_some() { 11 } else { 0 };
        for address in addresses.iter().filter(|a| self.wants(a)) {
            let record = record(*address, ttl);
            if HEADER + self.question.len() + records.len() + record.len() + extra > limit {
                truncated = true;
                break;
            }
            records.extend_from_slice(&record);
            count += 1;
        }
        let mut reply = header(self.id, self.recursion_desired, code, truncated, count, u16::from(self.edns.is_some()));
        // One question, which the header of a refusal does not have.
        reply[5] = 1;
        reply.extend_from_slice(&self.question);
        reply.extend_from_slice(&records);
        if self.edns.is_some() {
            reply.extend_from_slice(&[0, 0, OPT as u8, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        }
        reply
    }

    fn wants(&self, address: &IpAddr) -> bool {
        match self.kind {
            A => address.is_ipv4(),
            AAAA => address.is_ipv6(),
            kind => kind == ANY,
        }
    }
}

fn header(id: [u8; 2], recursion: bool, code: Code, truncated: bool, answers: u16, additional: u16) -> Vec<u8> {
    let mut bytes = vec![id[0], id[1], 0x84 | u8::from(recursion) | u8::from(truncated) << 1, 0x80 | code as u8, 0, 0];
    bytes.extend_from_slice(&answers.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&additional.to_be_bytes());
    bytes
}

fn record(address: IpAddr, ttl: u32) -> Vec<u8> {
    let (kind, data) = match address {
        IpAddr::V4(a) => (A, a.octets().to_vec()),
        IpAddr::V6(a) => (AAAA, a.octets().to_vec()),
    };
    // The name is the question's, twelve bytes into the message.
    let mut bytes = vec![0xc0, HEADER as u8];
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&IN.to_be_bytes());
    bytes.extend_from_slice(&ttl.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&data);
    bytes
}

/// The uncompressed name at `at` and where it ends. Queries never need compression, so a pointer is malformed.
fn name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut text = String::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((text, at));
        }
        if length > 63 || text.len() + length > 254 {
            return None;
        }
        let label = bytes.get(at..at + length)?;
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| if b.is_ascii_graphic() { b.to_ascii_lowercase() as char } else { '?' }));
        at += length;
    }
}

/// The datagram size in an OPT record, when it is the first additional record.
fn edns_size(bytes: &[u8], at: usize, additional: u16) -> Option<u16> {
    let opt = bytes.get(at..at + 5).filter(|_| additional > 0)?;
    (opt[0] == 0 && u16::from_be_bytes([opt[1], opt[2]]) == OPT).then(|| u16::from_be_bytes([opt[3], opt[4]]))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest_free::fuzz;

    pub(in crate::dns) fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0, kind as u8, 0, 1]);
        bytes
    }

    /// Every cut and a walk of flipped bytes: cheap stand-in for a fuzzer in unit tests.
    mod proptest_free {
        pub(super) fn fuzz(seed: &[u8], mut check: impl FnMut(&[u8])) {
            for end in 0..=seed.len() {
                check(&seed[..end]);
            }
            for at in 0..seed.len() {
                for value in [0, 1, 63, 64, 127, 128, 192, 255] {
                    let mut changed = seed.to_vec();
                    changed[at] = value;
                    check(&changed);
                }
            }
        }
    }

    #[test]
    fn a_reply_echoes_the_question_and_points_back_to_it() {
        let parsed = Query::parse(&query("ReViews.default", A)).unwrap();
        assert_eq!(parsed.name(), "reviews.default");
        let both = ["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()];
        let reply = parsed.reply(Code::Ok, &both, 5, 512);
        assert_eq!(&reply[..12], &[0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(&reply[13..20], b"ReViews");
        assert_eq!(&reply[reply.len() - 16..], &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 96, 0, 1]);
    }

    #[test]
    fn long_answers_are_cut_to_the_clients_limit_and_say_so() {
        let many: Vec<IpAddr> = (0..100).map(|i| IpAddr::from([10, 244, 0, i])).collect();
        let plain = Query::parse(&query("a.b", A)).unwrap();
        let reply = plain.reply(Code::Ok, &many, 5, plain.udp_limit());
        assert!(reply.len() <= 512 && reply[2] & 2 != 0);
        assert_eq!(plain.reply(Code::Ok, &many, 5, 65535)[7], 100);
        let mut with_opt = query("a.b", A);
        with_opt[11] = 1;
        with_opt.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        let edns = Query::parse(&with_opt).unwrap();
        assert_eq!(edns.udp_limit(), EDNS_LIMIT);
        assert_eq!(edns.reply(Code::Ok, &many[..1], 5, 512)[11], 1, "an OPT record answers an OPT record");
    }

    #[test]
    fn broken_messages_are_refused_or_dropped_without_harm() {
        assert_eq!(Query::parse(&[1, 2, 3]), Err(None));
        let mut response = query("a", A);
        response[2] |= 0x80;
        assert_eq!(Query::parse(&response), Err(None), "a response is never answered");
        let mut pointer = query("a", A);
        pointer[12] = 0xc0;
        assert_eq!(Query::parse(&pointer).unwrap_err().unwrap()[3] & 15, 1);
        let mut seed = query("reviews.default.svc", AAAA);
        seed[11] = 1;
        seed.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        fuzz(&seed, |bytes| {
            if let Ok(parsed) = Query::parse(bytes) {
                assert!(parsed.reply(Code::Ok, &["::1".parse().unwrap()], 1, 512).len() <= 512);
            }
        });
    }
}
