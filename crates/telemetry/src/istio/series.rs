//! What tells one series from another, small enough to be a hash key.
use super::intern::{DestinationId, PeerId, PrincipalId};
use super::labels::{Protocol, Reporter};
use crate::ResponseFlags;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What is known of a stream apart from how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLabels {
    pub reporter: Reporter,
    pub destination: DestinationId,
    /// The other end's metadata.
    pub peer: PeerId,
    /// The other end's certificate, verified.
    pub peer_principal: PrincipalId,
    /// Our own certificate on that connection.
    pub local_principal: PrincipalId,
}

/// How an HTTP stream ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpOutcome {
    /// 0 when no response was produced.
    pub code: u16,
    pub flags: ResponseFlags,
    /// Whether the request was gRPC.
    pub grpc: bool,
    /// Of a gRPC stream, if the server sent one.
    pub grpc_status: Option<u16>,
    /// From the first byte of the request to the last of the response.
    pub duration_micros: u64,
    /// Received from the caller, with headers and framing.
    pub request_bytes: u64,
    /// Sent to the caller, with headers and framing.
    pub response_bytes: u64,
}

/// Which metrics a series holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    /// Counts of gRPC messages, which carry no outcome.
    Messages,
    Tcp,
}

/// The key of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) kind: Kind,
    pub(super) protocol: Protocol,
    pub(super) stream: StreamLabels,
    pub(super) code: u16,
    pub(super) flags: ResponseFlags,
    pub(super) grpc_status: Option<u16>,
}

impl Series {
    pub(super) fn http(stream: StreamLabels, outcome: &HttpOutcome) -> Self {
        let protocol = if outcome.grpc { Protocol::Grpc } else { Protocol::Http };
        // gRPC defines 17 codes; a server may send any number, which must not make series without bound.
        let grpc_status = outcome.grpc_status.filter(|_| outcome.grpc).map(|status| status.min(17));
        let code = if outcome.code < 1000 { outcome.code } else { 0 };
        Self { kind: Kind::Http, protocol, stream, code, flags: outcome.flags, grpc_status }
    }

    pub(super) fn tcp(stream: StreamLabels, flags: ResponseFlags) -> Self {
        Self { kind: Kind::Tcp, protocol: Protocol::Tcp, stream, code: 0, flags, grpc_status: None }
    }

    pub(super) fn messages(stream: StreamLabels) -> Self {
        Self { kind: Kind::Messages, protocol: Protocol::Grpc, stream, code: 0, flags: ResponseFlags::NONE, grpc_status: None }
    }
}

/// Three words instead of a dozen small writes: this is the hash of every request.
impl Hash for Series {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let stream = &self.stream;
        let status = self.grpc_status.map_or(0, |status| u64::from(status) + 1);
        let small = self.kind as u64 | (self.protocol as u64) << 2 | (stream.reporter as u64) << 4 | status << 5;
        state.write_u64(small | u64::from(self.code) << 16 | u64::from(self.flags.bits()) << 32);
        state.write_u64(u64::from(stream.destination.0) | u64::from(stream.peer.0) << 32);
        state.write_u64(u64::from(stream.peer_principal.0) | u64::from(stream.local_principal.0) << 32);
    }
}

/// A multiplicative hash for keys made of numbers that we gave out ourselves, so nobody outside can aim at it.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(super) type NumberHash = BuildHasherDefault<NumberHasher>;
