//! Frames of RFC 6455, section 5.

/// The largest payload of one frame.
const MAX_PAYLOAD: u64 = 1 << 20;
/// Close codes of RFC 6455, section 7.4.1.
const PROTOCOL_ERROR: u16 = 1002;
const TOO_BIG: u16 = 1009;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpCode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) op: OpCode,
    /// Whether it is the last of its message.
    pub(super) last: bool,
    pub(super) payload: Vec<u8>,
}

/// Reads a client's frame: the frame and its length, `None` when more bytes are needed, or a close code.
pub(super) fn parse(input: &[u8]) -> Result<Option<(Frame, usize)>, u16> {
    let &[first, second, ..] = input else { return Ok(None) };
    let op = match first & 0x0f {
        0 => OpCode::Continuation,
        1 => OpCode::Text,
        2 => OpCode::Binary,
        8 => OpCode::Close,
        9 => OpCode::Ping,
        10 => OpCode::Pong,
        _ => return Err(PROTOCOL_ERROR),
    };
    // Reserved bits need an extension, and a client must mask.
    if first & 0x70 != 0 || second & 0x80 == 0 {
        return Err(PROTOCOL_ERROR);
    }
    let Some((length, at)) = payload_length(second & 0x7f, &input[2..]) else { return Ok(None) };
    let control = op as u8 >= 8;
    if control && (length > 125 || first & 0x80 == 0) {
        return Err(PROTOCOL_ERROR);
    }
    if length > MAX_PAYLOAD {
        return Err(TOO_BIG);
    }
    let (start, length) = (2 + at + 4, length as usize);
    let (Some(mask), Some(masked)) = (input.get(2 + at..start), input.get(start..start + length)) else { return Ok(None) };
    let payload = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Ok(Some((Frame { op, last: first & 0x80 != 0, payload }, start + length)))
}

/// The payload's length and how many bytes it took beyond the first two.
fn payload_length(short: u8, rest: &[u8]) -> Option<(u64, usize)> {
    match short {
        126 => rest.first_chunk::<2>().map(|bytes| (u64::from(u16::from_be_bytes(*bytes)), 2)),
        127 => rest.first_chunk::<8>().map(|bytes| (u64::from_be_bytes(*bytes), 8)),
        short => Some((u64::from(short), 0)),
    }
}

/// A server's frame: unmasked.
pub(super) fn write(op: OpCode, last: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 10);
    out.push(op as u8 | if last { 0x80 } else { 0 });
    match payload.len() {
        short @ 0..=125 => out.push(short as u8),
        medium @ 126..=65_535 => {
            out.push(126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(op: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut out = write(OpCode::Text, true, payload);
        out[0] = 0x80 | op;
        out[1] |= 0x80;
        let at = out.len() - payload.len();
        out.truncate(at);
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let (frame, used) = parse(&bytes).unwrap().unwrap();
        assert_eq!((frame.op, frame.payload.as_slice(), used), (OpCode::Text, b"Hello".as_slice(), 11));
    }

    #[test]
    fn rules_are_kept() {
        assert_eq!(parse(&write(OpCode::Text, true, b"x")), Err(PROTOCOL_ERROR), "unmasked");
        assert_eq!(parse(&masked(3, b"", [0; 4])), Err(PROTOCOL_ERROR), "unknown operation");
        assert_eq!(parse(&masked(9, &[0; 126], [0; 4])), Err(PROTOCOL_ERROR), "long ping");
        assert_eq!(parse(&[0x82, 0xff, 0, 0, 0, 0xff, 0, 0, 0, 0]), Err(TOO_BIG));
    }

    proptest! {
        #[test]
        fn frames_survive_at_every_length_and_cut(payload in prop::collection::vec(any::<u8>(), 0..70_000), mask: [u8; 4], cut in 0usize..70_014) {
            let bytes = masked(2, &payload, mask);
            let (frame, used) = parse(&bytes).unwrap().unwrap();
            prop_assert_eq!(used, bytes.len());
            prop_assert_eq!(frame.payload, payload);
            prop_assert_eq!(parse(&bytes[..cut.min(bytes.len() - 1)]).unwrap(), None);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&bytes);
        }
    }
}
