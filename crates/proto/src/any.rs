//! Packing into and opening of `google.protobuf.Any`, the envelope of every xDS resource and extension.
use prost::{Message, Name};
use prost_types::Any;

/// Why an `Any` could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum InvalidAny {
    /// The envelope holds another message than the one asked for.
    #[error("holds {found}, expected {expected}")]
    WrongType { found: String, expected: String },
    /// The bytes are not a valid message of the type that the envelope names.
    #[error("{type_url} does not decode: {cause}")]
    Undecodable { type_url: String, cause: prost::DecodeError },
}

/// Wraps `message`, naming it `type.googleapis.com/<full name>` as Envoy does.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: url::<M>(), value: message.encode_to_vec() }
}

/// The type URL of `M`: `type.googleapis.com/envoy.config.listener.v3.Listener` for a listener.
pub fn url<M: Name>() -> String {
    format!("type.googleapis.com/{}", M::full_name())
}

/// The message name in a type URL: what follows the last slash.
pub fn name_of(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// Whether `any` names the type `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    name_of(&any.type_url) == M::full_name()
}

/// Opens `any` as `M`.
///
/// # Errors
/// [`InvalidAny`] when it names another type or its bytes do not decode.
pub fn open<M: Message + Name + Default>(any: &Any) -> Result<M, InvalidAny> {
    if !is::<M>(any) {
        return Err(InvalidAny::WrongType { found: any.type_url.clone(), expected: M::full_name() });
    }
    M::decode(any.value.as_slice()).map_err(|cause| InvalidAny::Undecodable { type_url: any.type_url.clone(), cause })
}
