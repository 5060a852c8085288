//! The name in a connection's SNI is resolved before the connection goes on (Envoy SNI dynamic forward proxy).
use std::time::Duration;

use lateen_snapshot::dns::cache::{HostKey, Load};

use super::Passed;
use crate::listener::Conn;

/// How long to wait where only the resolver has a limit.
const LONGEST: Duration = Duration::from_secs(60);

/// Whether the connection goes on. It does also when the name cannot be resolved: then its cluster has no host for it.
pub(crate) async fn resolve(conn: &Conn, passed: &Passed) -> bool {
    let (Some(cache), Some(name)) = (&passed.resolve, conn.server_name.as_deref()) else { return true };
    let Some(key) = HostKey::of(name, passed.port.unwrap_or(443)) else { return true };
    match cache.load(key) {
        Load::Known(_) => true,
        Load::Wait(waiting) => {
            let limit = cache.config.query_timeout.unwrap_or(LONGEST) + Duration::from_secs(1);
            let _ = tokio::time::timeout(limit, waiting).await;
            true
        }
        Load::Overflow | Load::Full => false,
    }
}
