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

/// [`is`], for who reads the bytes otherwise.
///
/// # Errors
/// [`InvalidAny::WrongType`] when it names another type.
pub fn check<M: Name>(any: &Any) -> Result<(), InvalidAny> {
    if is::<M>(any) { Ok(()) } else { Err(InvalidAny::WrongType { found: any.type_url.clone(), expected: M::full_name() }) }
}

/// Opens `any` as `M`.
///
/// # Errors
/// [`InvalidAny`] when it names another type or its bytes do not decode.
pub fn open<M: Message + Name + Default>(any: &Any) -> Result<M, InvalidAny> {
    check::<M>(any)?;
    M::decode(any.value.as_slice()).map_err(|cause| InvalidAny::Undecodable { type_url: any.type_url.clone(), cause })
}

/// A message with more bytes than this is [`open_apart`]ed.
const LARGE: usize = 64 << 10;

/// [`open`], for who keeps only a little of what is in a message.
///
/// Decoded, a message takes up to a hundred times its bytes, in thousands of pieces. What is made of it meanwhile would lie
/// between them and keep their memory from being given back; a thread of its own has a heap of its own, which is empty again
/// as soon as the message is gone.
///
/// # Errors
/// As [`open`].
pub fn open_apart<M: Message + Name + Default + Send>(any: &Any) -> Result<M, InvalidAny> {
    if any.value.len() < LARGE {
        return open(any);
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("decode".to_owned()).spawn_scoped(scope, || open(any));
        // Without the thread there is only less memory to give back.
        thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| open(any))
    })
}
