//! DNS messages as whoever asks needs them (RFC 1035, datagram sizes of RFC 6891): one question out, addresses in.
use std::net::IpAddr;
use std::time::Duration;

const HEADER: usize = 12;
const CNAME: u16 = 5;
const OPT: u16 = 41;
const IN: u16 = 1;

/// Which addresses are asked for; the number is the type of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    A = 1,
    Aaaa = 28,
}

/// A question, ready to be sent.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) bytes: Vec<u8>,
    /// Where the question ends.
    end: usize,
    kind: Kind,
}

/// What a message says to the question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The addresses, none where there is no such name or it has none of this kind; the shortest time to live.
    Addresses(Vec<IpAddr>, Duration),
    /// Too long for a datagram: ask again over TCP.
    Truncated,
    /// The server cannot or will not answer.
    Failed(u8),
    /// No answer to this question.
    Foreign,
}

impl Query {
    /// `None` for what cannot be a name. `payload` is the longest datagram to be sent back.
    pub(super) fn new(id: u16, name: &str, kind: Kind, payload: u16) -> Option<Self> {
        let mut bytes = id.to_be_bytes().to_vec();
        // Recursion is desired; one question, one additional record.
        bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        for label in name.split('.') {
            let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?;
            bytes.push(length);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        if bytes.len() > HEADER + 255 {
            return None;
        }
        bytes.extend_from_slice(&(kind as u16).to_be_bytes());
        bytes.extend_from_slice(&IN.to_be_bytes());
        let end = bytes.len();
        bytes.push(0);
        bytes.extend_from_slice(&OPT.to_be_bytes());
        bytes.extend_from_slice(&payload.to_be_bytes());
        bytes.extend_from_slice(&[0; 6]);
        Some(Self { bytes, end, kind })
    }

    /// Reads a message that came back. Whatever stands in it, it is an answer to this question or [`Reply::Foreign`].
    pub(super) fn read(&self, message: &[u8]) -> Reply {
        self.try_read(message).unwrap_or(Reply::Foreign)
    }

    fn try_read(&self, message: &[u8]) -> Option<Reply> {
        let [flags, more] = *message.get(2..4)? else { return None };
        if message.get(..2)? != self.bytes.get(..2)? || flags & 0xf8 != 0x80 {
            return None;
        }
        let code = more & 15;
        if number(message, 4)? != 1 {
            // A server that did not understand may leave the question out.
            return (code != 0).then_some(Reply::Failed(code));
        }
        let question = message.get(HEADER..self.end)?;
        if !question.eq_ignore_ascii_case(self.bytes.get(HEADER..self.end)?) {
            return None;
        }
        match code {
            0 if flags & 2 != 0 => Some(Reply::Truncated),
            0 => self.addresses(message),
            3 => Some(Reply::Addresses(Vec::new(), Duration::ZERO)),
            code => Some(Reply::Failed(code)),
        }
    }

    /// Records of the kind asked for, whatever name they stand under: a server that resolves aliases gives them last.
    fn addresses(&self, message: &[u8]) -> Option<Reply> {
        let (mut at, mut addresses, mut ttl) = (self.end, Vec::new(), u32::MAX);
        for _ in 0..number(message, 6)? {
            at = skip_name(message, at)?;
            let (kind, class, length) = (number(message, at)?, number(message, at + 2)?, usize::from(number(message, at + 8)?));
            let lives = u32::from_be_bytes(message.get(at + 4..at + 8)?.try_into().ok()?);
            let data = message.get(at + 10..at + 10 + length)?;
            at += 10 + length;
            if class != IN || (kind != self.kind as u16 && kind != CNAME) {
                continue;
            }
            // A number with its highest bit set means zero (RFC 2181).
            ttl = ttl.min(if lives > i32::MAX as u32 { 0 } else { lives });
            if kind == CNAME {
                continue;
            }
            let v4 = |data: &[u8]| <[u8; 4]>::try_from(data).ok().map(IpAddr::from);
            let v6 = |data: &[u8]| <[u8; 16]>::try_from(data).ok().map(IpAddr::from);
            addresses.push(if self.kind == Kind::A { v4(data)? } else { v6(data)? });
        }
        let ttl = if addresses.is_empty() { 0 } else { ttl };
        Some(Reply::Addresses(addresses, Duration::from_secs(ttl.into())))
    }
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

/// Where the name at `at` ends. A pointer ends it, wherever that leads.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(query: &Query, code: u8, records: &[(u16, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = query.bytes[..query.end].to_vec();
        bytes[2] = 0x81;
        bytes[3] = 0x80 | code;
        bytes[6..12].copy_from_slice(&[0, records.len() as u8, 0, 0, 0, 0]);
        for (kind, ttl, data) in records {
            bytes.extend_from_slice(&[0xc0, 12]);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&[0, 1]);
            bytes.extend_from_slice(&ttl.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
            bytes.extend_from_slice(data);
        }
        bytes
    }

    #[test]
    fn addresses_come_with_the_shortest_time_to_live_of_the_way_to_them() {
        let query = Query::new(7, "www.example", Kind::A, 1232).unwrap();
        let reply = answer(&query, 0, &[(CNAME, 20, b"\x01a\x00"), (1, 300, &[10, 0, 0, 1]), (28, 1, &[0; 16]), (1, 60, &[10, 0, 0, 2])]);
        let addresses = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        assert_eq!(query.read(&reply), Reply::Addresses(addresses, Duration::from_secs(20)));
        let v6 = Query::new(7, "www.example", Kind::Aaaa, 1232).unwrap();
        let reply = answer(&v6, 0, &[(28, u32::MAX, &[0; 16])]);
        assert_eq!(v6.read(&reply), Reply::Addresses(vec!["::".parse().unwrap()], Duration::ZERO));
    }

    #[test]
    fn failures_are_told_from_names_that_do_not_exist() {
        let query = Query::new(7, "a", Kind::A, 1232).unwrap();
        assert_eq!(query.read(&answer(&query, 3, &[])), Reply::Addresses(Vec::new(), Duration::ZERO));
        assert_eq!(query.read(&answer(&query, 2, &[])), Reply::Failed(2));
        let mut truncated = answer(&query, 0, &[]);
        truncated[2] |= 2;
        assert_eq!(query.read(&truncated), Reply::Truncated);
        assert_eq!(query.read(&[0, 7, 0x80, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]), Reply::Failed(1));
    }

    #[test]
    fn answers_to_other_questions_are_none() {
        let query = Query::new(7, "www.example", Kind::A, 1232).unwrap();
        let other = Query::new(8, "www.example", Kind::A, 1232).unwrap();
        assert_eq!(query.read(&answer(&other, 0, &[])), Reply::Foreign);
        let other = Query::new(7, "www.examplf", Kind::A, 1232).unwrap();
        assert_eq!(query.read(&answer(&other, 0, &[])), Reply::Foreign);
        assert_eq!(query.read(&query.bytes), Reply::Foreign);
        let upper = Query::new(7, "WWW.example", Kind::A, 1232).unwrap();
        assert!(matches!(query.read(&answer(&upper, 0, &[])), Reply::Addresses(..)), "a server may change the case");
    }

    #[test]
    fn what_cannot_be_a_name_is_not_asked_for() {
        for name in ["", ".", "a..b", &"a".repeat(64), &["abcdefghi"; 26].join(".")] {
            assert!(Query::new(1, name, Kind::A, 1232).is_none(), "{name}");
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_read_without_harm() {
        let query = Query::new(7, "a.example", Kind::A, 1232).unwrap();
        let whole = answer(&query, 0, &[(CNAME, 20, b"\x01a\xc0\x0c"), (1, 300, &[10, 0, 0, 1])]);
        for end in 0..whole.len() {
            assert!(!matches!(query.read(&whole[..end]), Reply::Addresses(found, _) if !found.is_empty()));
        }
        for at in 0..whole.len() {
            for value in [0, 1, 63, 64, 127, 128, 192, 255] {
                let mut changed = whole.clone();
                changed[at] = value;
                let _ = query.read(&changed);
            }
        }
    }
}
