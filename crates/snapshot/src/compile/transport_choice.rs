//! Which of a cluster's transport sockets an endpoint has: the first whose metadata it has, or the one that a tree of matchers
//! names. It is settled when the cluster or its endpoints change, never for a request.
use std::borrow::Cow;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, locality_lb_endpoints::LbConfig};
use lateen_proto::envoy::extensions::matching::common_inputs::transport_socket::v3 as inputs;
use lateen_proto::xds::r#type::matcher::v3::Matcher;
use lateen_proto::{Any, any};

use super::common::open;
use super::endpoint::Assignment;
use super::invalid::{Invalid, Result, Within};
use super::matcher_tree::{self, unknown};
use crate::cluster::Transport;
use crate::matcher_tree::MatchTree;
use crate::metadata;

/// How the endpoints of a cluster choose; sockets are indices, and the last is the default.
#[derive(Debug)]
pub(crate) enum TransportChoice {
    /// The first socket for which the endpoint, or else its locality, has all of this metadata.
    ByMetadata(Vec<prost_types::Struct>),
    ByTree {
        tree: MatchTree<u32, MetadataInput>,
        default: u32,
    },
}

/// A value of an endpoint's or its locality's metadata.
#[derive(Debug)]
pub(crate) struct MetadataInput {
    of: Of,
    namespace: String,
    path: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Endpoint,
    Locality,
}

impl TransportChoice {
    /// `matches` are of the sockets before the last, which is the default.
    pub(crate) fn new(matches: Vec<prost_types::Struct>, tree: Option<Matcher>, transports: &[Transport]) -> Result<Self> {
        let Some(tree) = tree else { return Ok(Self::ByMetadata(matches)) };
        let named = transports.get(..matches.len()).unwrap_or_default();
        for (at, transport) in named.iter().enumerate() {
            if transport.name.is_empty() || named.iter().take(at).any(|other| other.name == transport.name) {
                let reason = format!("`{}` must be a name of its own, by which transport_socket_matcher finds the socket", transport.name);
                return Err(Invalid::field("name", reason)).within_item("transport_socket_matches", at);
            }
        }
        let default = index(named.len());
        let action = |name: &str, config: &Any| {
            if !any::is::<inputs::TransportSocketNameAction>(config) {
                return Err(unknown(name, config, "the name of a transport socket"));
            }
            let inputs::TransportSocketNameAction { name } = open(config)?;
            if name.is_empty() {
                return Err(Invalid::field("typed_config.name", "is empty"));
            }
            // As with Envoy, a name that no socket has means the default.
            Ok(named.iter().position(|t| *t.name == *name).map_or(default, index))
        };
        let tree = matcher_tree::tree_of(tree, &input, &action).within("transport_socket_matcher")?;
        Ok(Self::ByTree { tree, default })
    }

    /// The sockets of an assignment's endpoints, in their order. `sent` is the assignment as it came: a tree may look at any of
    /// its metadata, which nothing else keeps.
    pub(crate) fn of_endpoints(&self, assignment: &Assignment, sent: impl FnOnce() -> Option<ClusterLoadAssignment>) -> Vec<u32> {
        match self {
            Self::ByMetadata(matches) => {
                let localities = assignment.localities.iter();
                let endpoints =
                    localities.flat_map(|l| l.endpoints.iter().map(|e| (e.transport_match.as_ref(), l.transport_match.as_ref())));
                endpoints.map(|(endpoint, locality)| by_metadata(matches, endpoint, locality)).collect()
            }
            Self::ByTree { tree, default } => {
                let sent = sent().unwrap_or_default();
                let mut sent =
                    sent.endpoints.iter().flat_map(|l| endpoints_of(l).iter().map(|e| (e.metadata.as_ref(), l.metadata.as_ref())));
                let mut next = || sent.next().and_then(|(endpoint, locality)| by_tree(tree, endpoint, locality)).unwrap_or(*default);
                assignment.localities.iter().flat_map(|l| &l.endpoints).map(|_| next()).collect()
            }
        }
    }

    /// The socket for health checks that say themselves which metadata counts.
    pub(crate) fn of_criteria(&self, criteria: &prost_types::Struct) -> Result<u32> {
        match self {
            Self::ByMetadata(matches) => Ok(by_metadata(matches, Some(criteria), None)),
            Self::ByTree { .. } => Err(Invalid::new("is not supported beside transport_socket_matcher")),
        }
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The endpoint's own metadata comes first; what a locality says counts where that fits nowhere.
fn by_metadata(matches: &[prost_types::Struct], endpoint: Option<&prost_types::Struct>, locality: Option<&prost_types::Struct>) -> u32 {
    let first = |metadata: Option<&prost_types::Struct>| {
        let has = |(key, value)| metadata.and_then(|m| m.fields.get(key)) == Some(value);
        matches.iter().position(|wanted| wanted.fields.iter().all(has))
    };
    index(first(endpoint).or_else(|| first(locality)).unwrap_or(matches.len()))
}

fn by_tree(tree: &MatchTree<u32, MetadataInput>, endpoint: Option<&core::Metadata>, locality: Option<&core::Metadata>) -> Option<u32> {
    let value = |input: &MetadataInput| match input.of {
        Of::Endpoint => input.value(endpoint?),
        Of::Locality => input.value(locality?),
    };
    tree.find_by(&value).copied()
}

/// Those that [`super::endpoint::assignment`] takes.
fn endpoints_of(locality: &LocalityLbEndpoints) -> &[LbEndpoint] {
    match &locality.lb_config {
        Some(LbConfig::LoadBalancerEndpoints(list)) => &list.lb_endpoints,
        _ => &locality.lb_endpoints,
    }
}

fn input(name: &str, config: &Any) -> Result<MetadataInput> {
    let (of, namespace, path) = if any::is::<inputs::EndpointMetadataInput>(config) {
        let inputs::EndpointMetadataInput { filter, path } = open(config)?;
        let segment = |inputs::endpoint_metadata_input::PathSegment { segment }| match segment {
            Some(inputs::endpoint_metadata_input::path_segment::Segment::Key(key)) => key,
            None => String::new(),
        };
        (Of::Endpoint, filter, path.into_iter().map(segment).collect::<Vec<_>>())
    } else if any::is::<inputs::LocalityMetadataInput>(config) {
        let inputs::LocalityMetadataInput { filter, path } = open(config)?;
        let segment = |inputs::locality_metadata_input::PathSegment { segment }| match segment {
            Some(inputs::locality_metadata_input::path_segment::Segment::Key(key)) => key,
            None => String::new(),
        };
        (Of::Locality, filter, path.into_iter().map(segment).collect())
    } else {
        return Err(unknown(name, config, "the metadata of an endpoint or of its locality"));
    };
    if path.is_empty() || path.iter().any(String::is_empty) {
        return Err(Invalid::field("typed_config.path", "needs keys"));
    }
    let namespace = if namespace.is_empty() { crate::subset::NAMESPACE.to_owned() } else { namespace };
    Ok(MetadataInput { of, namespace, path })
}

impl MetadataInput {
    /// Text as it is, anything else as JSON, and what is missing among the metadata like a null, as Envoy has it.
    fn value<'a>(&self, metadata: &'a core::Metadata) -> Option<Cow<'a, str>> {
        let mut fields = metadata.filter_metadata.get(&self.namespace).map(|s| &s.fields);
        let mut found: Option<&prost_types::Value> = None;
        for key in &self.path {
            found = fields.and_then(|f| f.get(key));
            fields = match found.and_then(|v| v.kind.as_ref()) {
                Some(prost_types::value::Kind::StructValue(inner)) => Some(&inner.fields),
                _ => None,
            };
        }
        match found.and_then(|v| v.kind.as_ref()) {
            Some(prost_types::value::Kind::StringValue(text)) if text.is_empty() => None,
            Some(prost_types::value::Kind::StringValue(text)) => Some(Cow::Borrowed(text)),
            _ => Some(Cow::Owned(found.map_or(serde_json::Value::Null, metadata::from_proto).to_string())),
        }
    }
}
