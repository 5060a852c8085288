//! Canonical proto3 JSON over the descriptor set: how bootstrap files are read and dumps are written.
//!
//! The descriptor pool costs some megabytes, so nobody keeps it: make a [`Codec`], use it, drop it.
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

/// Reads and writes canonical JSON of any message this crate knows, `Any` included.
pub struct Codec {
    pool: DescriptorPool,
}

/// Why JSON did not become a message, or a message not JSON.
#[derive(Debug, thiserror::Error)]
pub enum InvalidJson {
    /// The descriptor set has no such message.
    #[error("unknown message type {0}")]
    UnknownType(String),
    /// The JSON does not fit the message; the text names the offending field.
    #[error("{0}")]
    Shape(#[from] serde_json::Error),
    /// The bytes do not decode.
    #[error("{0}")]
    Decode(#[from] prost::DecodeError),
}

impl Codec {
    /// Decodes the descriptor set.
    ///
    /// # Panics
    /// Never in practice: the set was made by our own build script.
    pub fn new() -> Self {
        let pool = DescriptorPool::decode(crate::DESCRIPTORS).expect("the build script writes a valid descriptor set");
        Self { pool }
    }

    /// Reads a message from JSON (`camelCase` or `snake_case`, unknown fields refused).
    ///
    /// # Errors
    /// When the JSON does not fit `M`.
    pub fn read<M: Message + Name + Default>(&self, json: serde_json::Value) -> Result<M, InvalidJson> {
        let message = DynamicMessage::deserialize(self.descriptor(&M::full_name())?, json)?;
        Ok(M::decode(message.encode_to_vec().as_slice())?)
    }

    /// Writes a message as Envoy's admin endpoints do: `snake_case` names, defaults left out.
    ///
    /// # Errors
    /// When an `Any` inside names an unknown type.
    pub fn write<M: Message + Name>(&self, message: &M) -> Result<serde_json::Value, InvalidJson> {
        self.write_bytes(&M::full_name(), &message.encode_to_vec())
    }

    /// Writes an encoded message, named by its full name, as JSON.
    ///
    /// # Errors
    /// When the name is unknown or the bytes do not decode.
    pub fn write_bytes(&self, full_name: &str, bytes: &[u8]) -> Result<serde_json::Value, InvalidJson> {
        let message = DynamicMessage::decode(self.descriptor(full_name)?, bytes)?;
        let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(true);
        Ok(message.serialize_with_options(serde_json::value::Serializer, &options)?)
    }

    /// The pool itself, for walking fields (coverage tables, merging).
    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }

    fn descriptor(&self, full_name: &str) -> Result<prost_reflect::MessageDescriptor, InvalidJson> {
        self.pool.get_message_by_name(full_name).ok_or_else(|| InvalidJson::UnknownType(full_name.to_owned()))
    }
}

impl Default for Codec {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::listener::v3::Listener;

    #[test]
    fn a_listener_survives_json_with_its_filter_inside_an_any() {
        let codec = Codec::new();
        let json = serde_json::json!({
            "name": "l",
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": "x", "cluster": "c"}}]}]
        });
        let listener: Listener = codec.read(json.clone()).unwrap();
        assert_eq!(codec.write(&listener).unwrap(), json);
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = Codec::new().read::<Listener>(serde_json::json!({"nmae": "l"})).unwrap_err();
        assert!(error.to_string().contains("nmae"), "{error}");
    }
}
