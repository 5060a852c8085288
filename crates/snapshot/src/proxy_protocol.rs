//! The PROXY protocol: what is told of a connection upstream, and what is taken from the header in front of one.
use std::sync::Arc;

use bytes::Bytes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    V1,
    V2,
}

/// A type with a value, behind the addresses of a version 2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tlv {
    pub kind: u8,
    pub value: Bytes,
}

/// Which TLVs go on (Envoy `ProxyProtocolPassThroughTLVs`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PassThrough {
    #[default]
    None,
    All,
    These(Vec<u8>),
}

impl PassThrough {
    pub fn passes(&self, kind: u8) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::These(kinds) => kinds.contains(&kind),
        }
    }
}

/// The header sent in front of a connection to a host (Envoy `ProxyProtocolConfig`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    pub version: ProxyProtocolVersion,
    /// Which TLVs of the caller's own header are told.
    pub pass_through: PassThrough,
    /// Told always; one of a type stands instead of all of the caller's of that type.
    pub added: Vec<Tlv>,
}

impl ProxyProtocol {
    /// The TLVs to tell of a caller that told these.
    pub fn tlvs<'a>(&'a self, callers: &'a [Tlv]) -> impl Iterator<Item = &'a Tlv> {
        let replaced = |tlv: &&Tlv| self.added.iter().any(|a| a.kind == tlv.kind);
        self.added.iter().chain(callers.iter().filter(move |tlv| self.pass_through.passes(tlv.kind) && !replaced(tlv)))
    }
}

/// The header expected in front of a caller's connection (Envoy `ProxyProtocol` listener filter).
#[derive(Clone, Debug, Default)]
pub struct ProxyProtocolFilter {
    /// A connection without a header goes on as it is.
    pub optional: bool,
    pub refuses_v1: bool,
    pub refuses_v2: bool,
    /// TLVs to keep as metadata of the connection.
    pub rules: Vec<TlvRule>,
    /// TLVs to keep for those who send a header upstream.
    pub pass_through: PassThrough,
}

impl ProxyProtocolFilter {
    /// Whether TLVs are looked at at all.
    pub fn wants_tlvs(&self) -> bool {
        !self.rules.is_empty() || self.pass_through != PassThrough::None
    }
}

#[derive(Clone, Debug)]
pub struct TlvRule {
    pub kind: u8,
    pub namespace: Arc<str>,
    pub key: Arc<str>,
    /// As base64 instead of text.
    pub base64: bool,
}

/// What a TCP proxy tells beside the caller's own TLVs (Envoy `proxy_protocol_tlvs`).
#[derive(Clone, Debug, Default)]
pub struct MoreTlvs {
    pub tlvs: Vec<Tlv>,
    pub merge: TlvMerge,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlvMerge {
    /// Only where the caller told none at all.
    #[default]
    AddIfAbsent,
    /// In place of the caller's of the same type.
    OverwriteByType,
    Append,
}

impl MoreTlvs {
    /// Both together. `told` is `None` of a caller without a header.
    pub fn merge(&self, told: Option<&[Tlv]>) -> Vec<Tlv> {
        match (told, self.merge) {
            (Some(told), TlvMerge::AddIfAbsent) => told.to_vec(),
            (None, _) => self.tlvs.clone(),
            (Some(told), TlvMerge::Append) => told.iter().chain(&self.tlvs).cloned().collect(),
            (Some(told), TlvMerge::OverwriteByType) => {
                let stays = |tlv: &&Tlv| !self.tlvs.iter().any(|t| t.kind == tlv.kind);
                self.tlvs.iter().chain(told.iter().filter(stays)).cloned().collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlv(kind: u8, value: &'static str) -> Tlv {
        Tlv { kind, value: Bytes::from_static(value.as_bytes()) }
    }

    fn text<'a>(tlvs: impl IntoIterator<Item = &'a Tlv>) -> String {
        tlvs.into_iter().map(|t| format!("{}{}", t.kind, String::from_utf8_lossy(&t.value))).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn added_values_stand_in_place_of_the_callers() {
        let mut config = ProxyProtocol { version: ProxyProtocolVersion::V2, pass_through: PassThrough::All, added: vec![tlv(1, "a")] };
        let callers = [tlv(1, "b"), tlv(2, "c"), tlv(3, "d")];
        assert_eq!(text(config.tlvs(&callers)), "1a 2c 3d");
        config.pass_through = PassThrough::These(vec![3]);
        assert_eq!(text(config.tlvs(&callers)), "1a 3d");
        config.pass_through = PassThrough::None;
        assert_eq!(text(config.tlvs(&callers)), "1a");
    }

    #[test]
    fn a_tcp_proxy_merges_as_told() {
        let told = [tlv(1, "a"), tlv(2, "b")];
        let merged = |merge, told: Option<&[Tlv]>| text(&MoreTlvs { tlvs: vec![tlv(2, "x"), tlv(3, "y")], merge }.merge(told));
        assert_eq!(merged(TlvMerge::AddIfAbsent, Some(&told)), "1a 2b");
        assert_eq!(merged(TlvMerge::AddIfAbsent, None), "2x 3y");
        assert_eq!(merged(TlvMerge::OverwriteByType, Some(&told)), "2x 3y 1a");
        assert_eq!(merged(TlvMerge::Append, Some(&told)), "1a 2b 2x 3y");
    }
}
