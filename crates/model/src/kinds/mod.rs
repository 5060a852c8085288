//! The kinds Lateen reads, one file each, and the kinds it knows by name.
pub mod common;
pub mod config_map;
pub mod destination_rule;
pub mod gateway;
pub mod kind;
pub mod namespace;
pub mod peer_authentication;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod service_entry;
pub mod virtual_service;
pub mod workload;

pub use config_map::ConfigMap;
pub use destination_rule::DestinationRule;
pub use gateway::Gateway;
pub use kind::{Kind, Support, known_kind};
pub use namespace::Namespace;
pub use peer_authentication::PeerAuthentication;
pub use secret::Secret;
pub use service::Service;
pub use service_account::ServiceAccount;
pub use service_entry::ServiceEntry;
pub use virtual_service::VirtualService;
pub use workload::{Deployment, Pod, PodSpec};
