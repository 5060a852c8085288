//! Pods as processes in network namespaces: capture, names, cluster addresses, logs.
pub mod dns;
pub mod namespaces;
pub mod netlink;
pub mod nft;
pub mod relay;
