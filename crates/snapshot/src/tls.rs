//! TLS contexts whose secrets may arrive and rotate later: readers take what is current.
use std::fmt;
use std::sync::{Arc, RwLock};

/// A slot that one writer fills and many read. Read at handshakes only, never per request.
pub struct Slot<T>(RwLock<Option<Arc<T>>>);

impl<T> Slot<T> {
    pub fn empty() -> Self {
        Self(RwLock::new(None))
    }

    pub fn get(&self) -> Option<Arc<T>> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn set(&self, value: Arc<T>) {
        self.replace(Some(value));
    }

    /// Fills the slot, or makes it empty.
    pub fn replace(&self, value: Option<Arc<T>>) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = value;
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.get().is_some() { "Slot(ready)" } else { "Slot(waiting)" })
    }
}

/// A downstream TLS context.
#[derive(Debug)]
pub struct ServerTls {
    /// `None` until every secret it needs has arrived; replaced when one rotates.
    pub config: Slot<rustls::ServerConfig>,
    /// The URI SAN of the certificate that is shown: our own SPIFFE id. `None` when it has none.
    pub uri: Slot<String>,
}

/// An upstream TLS context.
#[derive(Debug)]
pub struct ClientTls {
    pub config: Slot<ClientConfigs>,
    /// The URI SAN of the certificate that hosts are shown. `None` when it has none.
    pub uri: Slot<String>,
    /// Fixed name (SNI).
    pub sni: Option<Arc<str>>,
    /// The name is that of the host which was chosen, where it has one.
    pub auto_host_sni: bool,
    /// The name that is sent is one that the certificate must have.
    pub checks_sni: bool,
    /// The name is what an HTTP request asks for (`upstream_http_protocol_options`, heeded by Envoy's router alone).
    pub auto_sni: bool,
    /// And the certificate must have it.
    pub auto_san: bool,
    /// ALPN of the context; a filter may override it per connection with [`ClientTls::with_alpn`].
    pub alpn: Vec<Vec<u8>>,
}

/// What connections of one context are made with.
#[derive(Debug)]
pub struct ClientConfigs {
    pub any_name: Arc<rustls::ClientConfig>,
    /// The certificate must have the name that is asked for, beside all else; there where some connections demand it. Sessions are
    /// not shared: one that was begun without a check is no proof of it.
    pub checked: Option<Arc<rustls::ClientConfig>>,
}

impl ClientTls {
    /// The name of a connection that no request or filter gave one to (Envoy `ClientContextImpl::newSsl`).
    pub fn own_name<'a>(&'a self, hostname: &'a str) -> Option<&'a str> {
        if self.auto_host_sni && !hostname.is_empty() { Some(hostname) } else { self.sni.as_deref() }
    }

    /// The current configuration, offering `alpn` instead of its own protocols when given.
    /// Called once per upstream connection. `None` while secrets are missing.
    pub fn with_alpn(&self, alpn: Option<&[Vec<u8>]>, check_name: bool) -> Option<Arc<rustls::ClientConfig>> {
        let configs = self.config.get()?;
        let config = if check_name { configs.checked.as_ref()? } else { &configs.any_name };
        match alpn {
            Some(alpn) if config.alpn_protocols != alpn => {
                let mut other = (**config).clone();
                other.alpn_protocols = alpn.to_vec();
                Some(Arc::new(other))
            }
            _ => Some(Arc::clone(config)),
        }
    }
}
