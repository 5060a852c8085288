//! One resource as it travels: a name, a version that is a hash of its content, and its bytes.
use std::fmt::Write;
use std::sync::Arc;

use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use lateen_proto::{Any, any};
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use sha2::{Digest, Sha256};

/// A named, versioned, encoded xDS resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub name: String,
    /// Opaque to the receiver. Ours are content hashes: equal content has equal versions, also
    /// across a restart of the control plane, so what a client already holds is not sent again.
    pub version: String,
    pub body: Any,
}

impl Resource {
    /// A resource whose version is the hash of its content. Map entries are put in a fixed order
    /// first (see [`crate::canonical`]), so equal messages have equal bytes.
    pub fn new(name: impl Into<String>, body: Any) -> Self {
        let body = crate::canonical::canonical(body);
        Self { name: name.into(), version: content_version(&body), body }
    }

    /// [`Resource::new`], to be shared between streams.
    pub fn shared(name: impl Into<String>, body: Any) -> Arc<Self> {
        Arc::new(Self::new(name, body))
    }
}

/// A version that depends on nothing but type and bytes: 128 bits of SHA-256, in hexadecimal.
pub fn content_version(body: &Any) -> String {
    let mut hash = Sha256::new();
    hash.update(body.type_url.as_bytes());
    hash.update([0]);
    hash.update(&body.value);
    hash.finalize().iter().take(16).fold(String::with_capacity(32), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The name inside an encoded resource, which state-of-the-world responses do not repeat outside.
/// Every named xDS resource keeps it as the string field 1 (Listener.name, Cluster.name,
/// ClusterLoadAssignment.cluster_name, Secret.name, ...). `None` when the bytes are not a message or
/// the field is missing.
pub fn name_inside(body: &Any) -> Option<String> {
    let mut bytes = body.value.as_slice();
    let mut name = None;
    while bytes.has_remaining() {
        let (tag, wire_type) = decode_key(&mut bytes).ok()?;
        if tag == 1 && wire_type == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
            let text = std::str::from_utf8(bytes.get(..length)?).ok()?;
            // As in protobuf decoding, the last occurrence wins.
            name = Some(text.to_owned());
            bytes.advance(length);
        } else {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).ok()?;
        }
    }
    name
}

/// The name of the endpoints that a cluster waits for; `None` when it finds its endpoints otherwise
/// (Envoy cluster.proto, `eds_cluster_config.service_name`: the cluster's own name unless given).
pub fn endpoints_of(resource: &Resource) -> Option<String> {
    let cluster: Cluster = any::open(&resource.body).ok()?;
    let is_eds = cluster.cluster_discovery_type == Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
    let given = cluster.eds_cluster_config.map(|c| c.service_name).filter(|name| !name.is_empty());
    is_eds.then(|| given.unwrap_or(cluster.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_proto::any::pack;
    use lateen_proto::envoy::config::cluster::v3::cluster::EdsClusterConfig;
    use lateen_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;

    #[test]
    fn names_are_read_from_the_bytes() {
        let cluster = Cluster { name: "outbound|80||a".into(), alt_stat_name: "x".into(), ..Default::default() };
        assert_eq!(name_inside(&pack(&cluster)).as_deref(), Some("outbound|80||a"));
        let endpoints = ClusterLoadAssignment { cluster_name: "c".into(), ..Default::default() };
        assert_eq!(name_inside(&pack(&endpoints)).as_deref(), Some("c"));
        assert_eq!(name_inside(&pack(&Cluster::default())), None);
    }

    #[test]
    fn bytes_that_are_no_message_have_no_name() {
        for value in
            [&[0x0a][..], &[0x0a, 0x7f, b'x'], &[0x0a, 0x01, 0xff], &[0xff, 0xff, 0xff, 0xff], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]]
        {
            assert_eq!(name_inside(&Any { type_url: crate::types::CLUSTER.into(), value: value.to_vec() }), None, "{value:?}");
        }
    }

    #[test]
    fn only_eds_clusters_wait_for_endpoints() {
        let eds = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
        let cluster = Cluster { name: "a".into(), cluster_discovery_type: eds, ..Default::default() };
        assert_eq!(endpoints_of(&Resource::new("a", pack(&cluster))).as_deref(), Some("a"));
        let config = EdsClusterConfig { service_name: "b".into(), ..Default::default() };
        let renamed = Cluster { eds_cluster_config: Some(config), ..cluster };
        assert_eq!(endpoints_of(&Resource::new("a", pack(&renamed))).as_deref(), Some("b"));
        assert_eq!(endpoints_of(&Resource::new("a", pack(&Cluster { name: "a".into(), ..Default::default() }))), None);
    }

    #[test]
    fn versions_follow_content_alone() {
        let make = |name: &str| Resource::new("n", pack(&Cluster { name: name.into(), ..Default::default() }));
        assert_eq!(make("a").version, make("a").version);
        assert_ne!(make("a").version, make("b").version);
        assert_eq!(make("a").version.len(), 32);
    }
}
