//! Namespace: cluster-scoped, with labels that switch injection on.

message! {
    pub struct Namespace "NamespaceSpec" tolerant {
    }
}
