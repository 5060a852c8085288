//! What kind of listener serves a port's protocol.
pub use lateen_model::Protocol;

/// The kinds of listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerProtocol {
    Http,
    Tcp,
    /// HTTP or not, decided for each connection.
    Auto,
}

/// The listener that serves a protocol; nothing for UDP, which is never proxied.
pub fn listener_of(protocol: Protocol) -> Option<ListenerProtocol> {
    match protocol {
        Protocol::Udp => None,
        Protocol::Auto => Some(ListenerProtocol::Auto),
        _ if protocol.is_http() => Some(ListenerProtocol::Http),
        _ => Some(ListenerProtocol::Tcp),
    }
}

/// Whether requests may pass, declared or found out.
pub fn may_be_http(protocol: Protocol) -> bool {
    protocol.is_http() || protocol == Protocol::Auto
}
