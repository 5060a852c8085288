//! The protocol of a port, from `appProtocol` and the port's name (Istio: pkg/config/kube/conversion.go).
use std::fmt;

use crate::kinds::service::{ServicePort, TransportProtocol};
use crate::kinds::service_entry::ServiceEntryPort;

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Http,
    Http2,
    Https,
    Grpc,
    GrpcWeb,
    Tls,
    Tcp,
    Mongo,
    Mysql,
    Redis,
    /// Never proxied.
    Udp,
    /// Not told: found out from the first bytes.
    Auto,
}

/// Ports that are TCP unless told otherwise: their servers speak first, and waiting for the client would hang.
const SERVER_FIRST_PORTS: [u16; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// Reads a protocol's name, in any case. `None` when it is none of the known.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "http2" => Self::Http2,
            "https" => Self::Https,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "mongo" => Self::Mongo,
            "mysql" => Self::Mysql,
            "redis" => Self::Redis,
            "udp" => Self::Udp,
            _ => return None,
        })
    }

    /// The protocol of a port: `appProtocol`, else the port name's `<protocol>[-suffix]`, else by its number.
    pub fn of_port(app_protocol: Option<&str>, name: Option<&str>, transport: TransportProtocol, number: u16) -> Self {
        if transport == TransportProtocol::Udp {
            return Self::Udp;
        }
        let told = match app_protocol.map(str::to_ascii_lowercase).as_deref() {
            Some("kubernetes.io/h2c") => return Self::Http2,
            Some("kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Https,
            Some(other) => other.to_owned(),
            None => name.unwrap_or_default().to_ascii_lowercase(),
        };
        let head = if told.starts_with("grpc-web") { "grpc-web" } else { told.split('-').next().unwrap_or_default() };
        match Self::from_name(head) {
            Some(protocol) => protocol,
            None if SERVER_FIRST_PORTS.contains(&number) => Self::Tcp,
            None => Self::Auto,
        }
    }

    /// Whether requests can be told apart and routed.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether it is HTTP/2 on the wire.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether it is TLS that is routed by its server name.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// Whether it is handled as a plain byte stream.
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Https | Self::Tls | Self::Mongo | Self::Mysql | Self::Redis)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Http2 => "HTTP2",
            Self::Https => "HTTPS",
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-WEB",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Mongo => "MONGO",
            Self::Mysql => "MYSQL",
            Self::Redis => "REDIS",
            Self::Udp => "UDP",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ServicePort {
    /// What the port speaks.
    pub fn protocol_of(&self) -> Protocol {
        Protocol::of_port(self.app_protocol.as_deref(), self.name.as_deref(), self.protocol, self.port)
    }
}

impl ServiceEntryPort {
    /// What the port speaks; its name does not count, as in Istio.
    pub fn protocol_of(&self) -> Protocol {
        self.protocol.as_deref().and_then(Protocol::from_name).unwrap_or(Protocol::Auto)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_app_protocols() {
        let of = |app, name, number| Protocol::of_port(app, name, TransportProtocol::Tcp, number);
        assert_eq!(of(None, Some("http-web"), 80), Protocol::Http);
        assert_eq!(of(None, Some("grpc-web-x"), 80), Protocol::GrpcWeb);
        assert_eq!(of(None, Some("grpc-x"), 80), Protocol::Grpc);
        assert_eq!(of(Some("kubernetes.io/h2c"), Some("tcp"), 80), Protocol::Http2);
        assert_eq!(of(Some("https"), Some("http"), 80), Protocol::Https);
        assert_eq!(of(None, Some("web"), 80), Protocol::Auto);
        assert_eq!(of(None, None, 3306), Protocol::Tcp);
        assert_eq!(of(None, Some("http"), 3306), Protocol::Http);
        assert_eq!(Protocol::of_port(None, Some("http"), TransportProtocol::Udp, 80), Protocol::Udp);
    }
}
