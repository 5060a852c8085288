//! Pods as processes in network namespaces: capture, names, cluster addresses, logs.
//!
//! [`up`] is the process in the host's network, [`inside`] the first process of the mesh's own
//! namespaces; [`store`] holds what is wanted and makes the [`pod`]s follow it; [`client`] is how the
//! command line asks. Below them: [`namespaces`], [`netlink`], [`nft`], [`dns`], [`relay`].
pub mod api;
pub mod client;
pub mod config;
pub mod dns;
pub mod inside;
pub mod namespaces;
pub mod netlink;
pub mod nft;
pub mod pod;
pub mod relay;
pub mod store;
pub mod up;
