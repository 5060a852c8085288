//! What is fed. Each target says what must hold beyond not panicking.
pub(crate) mod bootstrap;
pub(crate) mod first_bytes;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod resources;
