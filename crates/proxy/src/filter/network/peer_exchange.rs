//! Istio's metadata exchange over TCP, the receiving half: a peer that negotiated `istio-peer-exchange` may put
//! a frame with its metadata before the first bytes. It must not reach the application.

use crate::io::Io;

/// Istio's magic number, big-endian.
const MAGIC: [u8; 4] = 0x3d23_0467u32.to_be_bytes();
const HEADER: usize = 8;
/// A frame that claims to be longer is taken for ordinary bytes.
const LONGEST: usize = 64 * 1024;

/// The negotiated protocol that announces frames.
const ALPN: &[u8] = b"istio-peer-exchange";

/// Whether a frame may come in front of what this peer sends.
pub(super) fn is_agreed(io: &Io) -> bool {
    io.tls().and_then(|tls| tls.alpn_protocol()) == Some(ALPN)
}

/// Takes the frame off, if the first bytes are one.
#[derive(Default)]
pub(super) struct Stripper(Vec<u8>);

/// What the bytes so far amount to.
pub(super) enum Stripped {
    /// Could still be a frame.
    More,
    /// Decided: these bytes are the application's.
    Rest(Vec<u8>),
}

impl Stripper {
    pub(super) fn push(&mut self, bytes: &[u8]) -> Stripped {
        self.0.extend_from_slice(bytes);
        let seen = &self.0;
        let common = seen.len().min(MAGIC.len());
        if seen[..common] != MAGIC[..common] {
            return Stripped::Rest(std::mem::take(&mut self.0));
        }
        let Some(&[_, _, _, _, a, b, c, d]) = seen.first_chunk::<HEADER>() else { return Stripped::More };
        let size = u32::from_be_bytes([a, b, c, d]) as usize;
        if size > LONGEST {
            return Stripped::Rest(std::mem::take(&mut self.0));
        }
        match seen.get(HEADER + size..) {
            Some(rest) => Stripped::Rest(rest.to_vec()),
            None => Stripped::More,
        }
    }

    /// The peer ended while it was undecided.
    pub(super) fn give_up(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(chunks: &[&[u8]]) -> Option<Vec<u8>> {
        let mut stripper = Stripper::default();
        let mut out: Option<Vec<u8>> = None;
        for chunk in chunks {
            match &mut out {
                Some(out) => out.extend_from_slice(chunk),
                None => {
                    if let Stripped::Rest(rest) = stripper.push(chunk) {
                        out = Some(rest);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn a_frame_is_taken_off_however_it_is_cut() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&5u32.to_be_bytes());
        bytes.extend_from_slice(b"12345GET");
        assert_eq!(run(&[&bytes]).unwrap(), b"GET");
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(run(&single).unwrap(), b"GET");
    }

    #[test]
    fn other_bytes_pass_unchanged() {
        assert_eq!(run(&[b"GET /"]).unwrap(), b"GET /");
        assert_eq!(run(&[&MAGIC[..2], b"xy"]).unwrap(), [&MAGIC[..2], b"xy"].concat());
        let huge = [&MAGIC[..], &[0xff; 4], b"z"].concat();
        assert_eq!(run(&[&huge]).unwrap(), huge);
    }
}
