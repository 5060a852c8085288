//! Who the other end is: the metadata that Istio's proxies exchange in headers and endpoint metadata.
use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// The header with a base64 `google.protobuf.Struct` of the sender's metadata.
pub const PEER_HEADER: &str = "x-envoy-peer-metadata";
/// The header with the sender's node id.
pub const PEER_ID_HEADER: &str = "x-envoy-peer-metadata-id";

/// Longer header values are refused: the workload's own metadata takes some hundred bytes.
pub(super) const MAX_HEADER: usize = 16 * 1024;
/// Longer names are cut, so that one caller cannot fill the label store with megabytes.
pub(super) const MAX_NAME: usize = 253;

/// Some senders pad and some do not; both are read.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&ALPHABET, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// The workload at one end of a connection. Empty means unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerMetadata {
    /// The pod's name.
    pub instance: String,
    pub workload: String,
    pub namespace: String,
    /// Label `app`.
    pub app: String,
    /// Label `version`.
    pub version: String,
    /// Label `service.istio.io/canonical-name`.
    pub canonical_name: String,
    /// Label `service.istio.io/canonical-revision`.
    pub canonical_revision: String,
    /// The mesh cluster, not Envoy's: `Kubernetes`.
    pub cluster: String,
    /// `kubernetes://apis/apps/v1/namespaces/<ns>/deployments/<workload>`.
    pub owner: String,
}

/// A peer metadata header that does not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPeer {
    #[error("{PEER_HEADER} of {0} bytes is longer than the {MAX_HEADER} allowed")]
    TooLong(usize),
    #[error("{PEER_HEADER} is not base64")]
    Base64,
    #[error("{PEER_HEADER} is not a google.protobuf.Struct")]
    Struct,
}

impl PeerMetadata {
    /// Reads the header's value.
    ///
    /// # Errors
    /// [`InvalidPeer`]; a caller's bad header costs it its labels, never its request.
    pub fn decode(header: &[u8]) -> Result<Self, InvalidPeer> {
        if header.len() > MAX_HEADER {
            return Err(InvalidPeer::TooLong(header.len()));
        }
        let bytes = BASE64.decode(header).map_err(|_| InvalidPeer::Base64)?;
        let fields = Struct::decode(bytes.as_slice()).map_err(|_| InvalidPeer::Struct)?;
        Ok(Self::from_struct(&fields))
    }

    /// The value of our own header. The same metadata always gives the same text.
    pub fn encode(&self) -> String {
        BASE64.encode(self.to_struct().encode_to_vec())
    }

    /// Reads node metadata (`NAME`, `NAMESPACE`, `WORKLOAD_NAME`, `CLUSTER_ID`, `OWNER`, `LABELS`), which is
    /// also what the header carries. Other fields are ignored.
    pub fn from_struct(fields: &Struct) -> Self {
        let labels = match fields.fields.get("LABELS").and_then(|value| value.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => labels.clone(),
            _ => Struct::default(),
        };
        Self {
            instance: text(fields, "NAME"),
            workload: text(fields, "WORKLOAD_NAME"),
            namespace: text(fields, "NAMESPACE"),
            app: text(&labels, "app"),
            version: text(&labels, "version"),
            canonical_name: text(&labels, "service.istio.io/canonical-name"),
            canonical_revision: text(&labels, "service.istio.io/canonical-revision"),
            cluster: text(fields, "CLUSTER_ID"),
            owner: text(fields, "OWNER"),
        }
    }

    /// The form that the header carries.
    pub fn to_struct(&self) -> Struct {
        let labels = [
            ("app", &self.app),
            ("version", &self.version),
            ("service.istio.io/canonical-name", &self.canonical_name),
            ("service.istio.io/canonical-revision", &self.canonical_revision),
        ];
        let mut fields = texts(&[
            ("NAME", &self.instance),
            ("NAMESPACE", &self.namespace),
            ("WORKLOAD_NAME", &self.workload),
            ("CLUSTER_ID", &self.cluster),
            ("OWNER", &self.owner),
        ]);
        fields.fields.insert("LABELS".to_owned(), Value { kind: Some(Kind::StructValue(texts(&labels))) });
        fields
    }

    /// Reads Istio's endpoint metadata (`istio` / `workload`): `workload;namespace;canonical name;canonical revision;cluster`.
    pub fn from_endpoint(encoded: &str) -> Option<Self> {
        let mut parts = encoded.split(';').map(|part| clipped(part).to_owned());
        let (workload, namespace) = (parts.next()?, parts.next()?);
        let (canonical_name, canonical_revision, cluster) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { workload, namespace, canonical_name, canonical_revision, cluster, ..Self::default() })
    }

    /// What distinguishes metrics: everything but the single pod.
    pub(super) fn without_instance(mut self) -> Self {
        self.instance = String::new();
        self.owner = String::new();
        self
    }
}

fn text(fields: &Struct, key: &str) -> String {
    match fields.fields.get(key).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => clipped(text).to_owned(),
        _ => String::new(),
    }
}

fn clipped(text: &str) -> &str {
    let mut end = text.len().min(MAX_NAME);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn texts(pairs: &[(&str, &String)]) -> Struct {
    let fields = pairs.iter().filter(|(_, value)| !value.is_empty());
    Struct { fields: fields.map(|(key, value)| ((*key).to_owned(), Value { kind: Some(Kind::StringValue((*value).clone())) })).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviews() -> PeerMetadata {
        PeerMetadata {
            instance: "reviews-v2-7d79d5bd5d-x2x5v".into(),
            workload: "reviews-v2".into(),
            namespace: "default".into(),
            app: "reviews".into(),
            version: "v2".into(),
            canonical_name: "reviews".into(),
            canonical_revision: "v2".into(),
            cluster: "Kubernetes".into(),
            owner: "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v2".into(),
        }
    }

    #[test]
    fn metadata_survives_the_header() {
        let header = reviews().encode();
        assert_eq!(PeerMetadata::decode(header.as_bytes()).unwrap(), reviews());
        assert_eq!(PeerMetadata::decode(header.trim_end_matches('=').as_bytes()).unwrap(), reviews(), "unpadded");
        assert_eq!(reviews().encode(), header, "and is the same every time");
    }

    /// A header as Istio's proxy sends it: the bytes were put together by hand from the wire format.
    #[test]
    fn a_header_of_another_sender_is_read() {
        let entry = |key: &str, value: &str| {
            let value = [&[0x1a, value.len() as u8], value.as_bytes()].concat();
            let body = [&[0x0a, key.len() as u8], key.as_bytes(), &[0x12, value.len() as u8], &value].concat();
            [&[0x0a, body.len() as u8], body.as_slice()].concat()
        };
        let bytes = [entry("NAMESPACE", "shop"), entry("WORKLOAD_NAME", "cart-v1"), entry("UNHEARD_OF", "x")].concat();
        let peer = PeerMetadata::decode(base64::engine::general_purpose::STANDARD.encode(bytes).as_bytes()).unwrap();
        assert_eq!(peer, PeerMetadata { namespace: "shop".into(), workload: "cart-v1".into(), ..PeerMetadata::default() });
    }

    #[test]
    fn hostile_headers_are_refused_or_clipped() {
        assert_eq!(PeerMetadata::decode(b"%%%"), Err(InvalidPeer::Base64));
        assert_eq!(PeerMetadata::decode(b"/////w"), Err(InvalidPeer::Struct));
        assert!(matches!(PeerMetadata::decode(&vec![b'A'; 20_000]), Err(InvalidPeer::TooLong(20_000))));
        let long = PeerMetadata { workload: "ü".repeat(4_000), ..PeerMetadata::default() };
        assert!(PeerMetadata::decode(long.encode().as_bytes()).unwrap().workload.len() <= MAX_NAME);
    }

    #[test]
    fn endpoint_metadata_is_read() {
        let peer = PeerMetadata::from_endpoint("reviews-v3;default;reviews;v3;Kubernetes").unwrap();
        assert_eq!((peer.workload.as_str(), peer.canonical_revision.as_str(), peer.cluster.as_str()), ("reviews-v3", "v3", "Kubernetes"));
        assert_eq!(PeerMetadata::from_endpoint("a;b;c"), None);
    }
}
