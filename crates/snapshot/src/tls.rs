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
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(value);
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
    pub config: Slot<rustls::ClientConfig>,
    /// Fixed SNI; `None` with `auto_sni` takes the request's host.
    pub sni: Option<Arc<str>>,
    pub auto_sni: bool,
    /// ALPN of the context; a filter may override it per connection with [`ClientTls::with_alpn`].
    pub alpn: Vec<Vec<u8>>,
}

impl ClientTls {
    /// The current configuration, offering `alpn` instead of its own protocols when given.
    /// Called once per upstream connection. `None` while secrets are missing.
    pub fn with_alpn(&self, alpn: Option<&[Vec<u8>]>) -> Option<Arc<rustls::ClientConfig>> {
        let config = self.config.get()?;
        match alpn {
            Some(alpn) if config.alpn_protocols != alpn => {
                let mut other = (*config).clone();
                other.alpn_protocols = alpn.to_vec();
                Some(Arc::new(other))
            }
            _ => Some(config),
        }
    }
}
