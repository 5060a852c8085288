//! Endpoint choice: which host of a cluster gets the next request. No sockets, no clock of its own.
//!
//! On the path of a request this stands between the cluster and the connection. [`HostSet`] is the
//! shared, immutable membership with live health flags; [`Balancer`] is one worker's choice among
//! them; [`outlier`] takes hosts out and [`breaker`] says when a cluster is full.
pub mod aggregate;
pub mod balancer;
mod bounded;
pub mod breaker;
pub mod budget;
pub mod by_load;
mod chooser;
pub mod config;
mod edf;
mod hashing;
pub mod health;
pub mod host;
mod host_set;
mod murmur;
pub mod omit;
pub mod outlier;
pub mod peak_ewma;
mod plan;
pub mod slow_start;
pub mod subset;
pub mod subsets;
pub mod zone;

pub use aggregate::Aggregate;
pub use balancer::{Balancer, Choice, Context};
pub use breaker::{Breakers, Limits};
pub use budget::RetryBudget;
pub use config::{LbPolicy, OutlierSettings, Settings};
pub use host::{Address, Host, HostSet, Locality, LocalityHosts, Priority};
pub use omit::Omit;
pub use plan::Level;
pub use slow_start::SlowStart;
pub use subset::{Criteria, SubsetSettings};
pub use subsets::Subsets;
pub use zone::{LocalCluster, ZoneAware};
