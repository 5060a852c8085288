//! Istio and Kubernetes resources as typed values with positions: the first stage of the path of a change.
//!
//! [`load`] reads folders, [`yaml`] turns bytes into a positioned tree, [`schema`] decodes the tree into the types of
//! [`kinds`] and reports every mistake at its line, `validate` and [`analyze`] check what a type cannot say, and
//! [`set`] keeps the result indexed. Nothing here does network or async work.
//!
//! ```
//! use lateen_model::{Limits, parse};
//!
//! let text = "
//! apiVersion: networking.istio.io/v1
//! kind: VirtualService
//! metadata: {name: reviews}
//! spec:
//!   hosts: [reviews]
//!   http:
//!   - rout: [{destination: {host: reviews}}]
//!     route: [{destination: {host: reviews}}]
//! ";
//! let parsed = parse("reviews.yaml", text.as_bytes(), &Limits::default());
//! assert_eq!(
//!     parsed.diagnostics[0].to_string(),
//!     "reviews.yaml:8:5: error: VirtualService default/reviews: spec.http[0].rout: unknown field; did you mean \"route\"?"
//! );
//! assert!(parsed.resources.is_empty());
//! ```
#[macro_use]
pub mod schema;
pub mod analyze;
pub mod coverage;
pub mod diagnostic;
pub mod kinds;
pub mod load;
pub mod mesh_config;
pub mod names;
pub mod parse;
pub mod protocol;
pub mod resource;
pub mod set;
pub mod validate;
pub mod yaml;

pub use analyze::analyze;
pub use diagnostic::{Diagnostic, ResourceId, Severity};
pub use kinds::Kind;
pub use load::{Loaded, load_paths};
pub use mesh_config::MeshConfig;
pub use names::{ExportTo, GatewayRef, Host};
pub use parse::{Parsed, parse, parse_in};
pub use protocol::Protocol;
pub use resource::{AnyResource, ObjectMeta, Origin, Resource};
pub use set::{ResourceKey, ResourceSet};
pub use yaml::Limits;
