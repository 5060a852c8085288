//! What crosses the border between the mesh's network and the host's: names and connections out, published ports in.
//!
//! The mesh's namespace has no route to anywhere. A small process outside ([`host`]) connects and
//! resolves on its behalf and hands the sockets in ([`link`]); [`egress`] and [`ingress`] join them to the pods.
pub mod copy;
pub mod egress;
pub mod host;
pub mod ingress;
pub mod link;
