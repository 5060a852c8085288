//! PeerAuthentication: whether a server accepts plaintext (`istio.io/api/security/v1beta1/peer_authentication.proto`).
use std::collections::BTreeMap;

use super::common::WorkloadSelector;

message! {
    pub struct PeerAuthentication "PeerAuthentication" {
        /// Absent: the whole namespace, or the whole mesh when it stands in the root namespace.
        selector: Option<WorkloadSelector> = honoured,
        mtls: Option<MutualTls> = honoured,
        /// By port of the workload; needs a selector.
        port_level_mtls: BTreeMap<u16, MutualTls> = honoured,
    }
}

message! {
    pub struct MutualTls "MutualTLS" {
        mode: MutualTlsMode = honoured,
    }
}

enumeration! {
    pub enum MutualTlsMode {
        /// Inherits: workload from namespace, namespace from mesh, mesh is PERMISSIVE.
        Unset = "UNSET",
        Disable = "DISABLE",
        Permissive = "PERMISSIVE",
        Strict = "STRICT",
    }
}
