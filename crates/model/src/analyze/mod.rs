//! What is wrong between resources: references to nothing, rules that contradict each other. Codes are those of Istio's
//! analyzers (pkg/config/analysis/msg) where it has the same finding.
//!
//! Nothing here keeps a resource out of the mesh, so a finding is at most a warning: the other half of a reference may
//! come with the next file.
mod conflicts;
mod delegates;
mod destinations;
mod gateways;
mod index;
mod subsets;
mod workloads;

use index::Index;

use crate::diagnostic::Diagnostic;
use crate::mesh_config::{DEFAULT_ROOT_NAMESPACE, MeshConfig};
use crate::set::ResourceSet;

/// Analyzes a set by the mesh configuration it holds (in `istio-system`), or Istio's defaults. What is wrong with the
/// mesh configuration comes first.
pub fn analyze(resources: &ResourceSet) -> Vec<Diagnostic> {
    let (mesh, mut found) = MeshConfig::of(resources, DEFAULT_ROOT_NAMESPACE);
    found.extend(analyze_with(resources, &mesh));
    found
}

/// Analyzes a set by a mesh configuration. The findings come in the order of files and lines.
pub fn analyze_with(resources: &ResourceSet, mesh: &MeshConfig) -> Vec<Diagnostic> {
    let index = Index::new(resources, mesh);
    let mut found = Vec::new();
    destinations::check(&index, &mut found);
    gateways::check(&index, &mut found);
    delegates::check(&index, &mut found);
    conflicts::check(&index, &mut found);
    subsets::check(&index, &mut found);
    workloads::check(&index, &mut found);
    found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    found
}
