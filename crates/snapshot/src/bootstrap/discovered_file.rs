//! Files of discovered resources (`path_config_source`), and where in them something stands.
use std::path::Path;

use lateen_core::bounded_file;
use lateen_core::file_stamp::FileStamp;
use lateen_proto::envoy::service::discovery::v3::{DiscoveryResponse, Resource};
use lateen_proto::json::Step;
use lateen_proto::{Any, any};

use super::{InvalidBootstrap, MOST_BYTES, message, text, yaml};
use crate::compile::parts::harmless;

/// What is in a file that holds a discovery response, YAML or JSON.
#[derive(Debug)]
pub struct DiscoveredFile {
    pub resources: Vec<Discovered>,
    text: String,
}

#[derive(Debug)]
pub struct Discovered {
    pub body: Any,
    pub version: String,
    is_wrapped: bool,
}

impl DiscoveredFile {
    /// Reads one, and tells how the file was then ([`bounded_file::read_stamped`]).
    ///
    /// # Errors
    /// When it cannot be read, a field is unknown, or a wrapped resource is empty.
    pub fn read(path: &Path) -> (FileStamp, Result<Self, InvalidBootstrap>) {
        let origin = path.display().to_string();
        let (stamp, content) = bounded_file::read_stamped(path, MOST_BYTES);
        let file = text(content, &origin).and_then(|text| Self::parse(text, &origin));
        (stamp, file)
    }

    fn parse(text: String, origin: &str) -> Result<Self, InvalidBootstrap> {
        let DiscoveryResponse { version_info, resources, canary, type_url, nonce, control_plane, resource_errors } =
            message(&text, origin)?;
        // Of a stream's protocol, or for whoever reads the file.
        harmless!(canary, type_url, nonce, control_plane, resource_errors);
        let mut file = Self { resources: Vec::with_capacity(resources.len()), text };
        for (index, body) in resources.into_iter().enumerate() {
            let place = || {
                let line = yaml::line_of(&file.text, &file.path_of(index, "")).map(|line| format!("{line}:")).unwrap_or_default();
                format!("{origin}:{line} resources[{index}]")
            };
            let (body, is_wrapped) = if any::is::<Resource>(&body) {
                let Resource { name, resource_name, aliases, version, resource, ttl, cache_control, metadata } =
                    any::open(&body).map_err(|e| InvalidBootstrap(format!("{}: {e}", place())))?;
                // The name inside counts, as with Envoy; the version is that of the whole file, which has no time to live.
                harmless!(name, resource_name, aliases, version, ttl, cache_control, metadata);
                (resource.ok_or_else(|| InvalidBootstrap(format!("{}: has no resource", place())))?, true)
            } else {
                (body, false)
            };
            file.resources.push(Discovered { body, version: version_info.clone(), is_wrapped });
        }
        Ok(file)
    }

    /// The lines of what is wrong with resources, or the nearest that are known: each reason begins with the path of a field.
    pub fn lines_of(&self, wrong: &[(usize, &str)]) -> Vec<Option<usize>> {
        let paths: Vec<_> = wrong.iter().map(|(index, reason)| self.path_of(*index, reason)).collect();
        yaml::lines_of(&self.text, &paths)
    }

    fn path_of(&self, index: usize, reason: &str) -> Vec<Step> {
        let mut path = vec![Step::Key("resources".to_owned()), Step::Item(index)];
        if self.resources.get(index).is_some_and(|resource| resource.is_wrapped) {
            path.push(Step::Key("resource".to_owned()));
        }
        let field = reason.split_once(": ").map_or("", |(field, _)| field);
        field.split('.').filter(|segment| !segment.is_empty()).for_each(|segment| steps(segment, &mut path));
        path
    }
}

/// `routes[2]` is a key and an item.
fn steps(segment: &str, path: &mut Vec<Step>) {
    let (key, items) = segment.split_once('[').unwrap_or((segment, ""));
    path.push(Step::Key(key.to_owned()));
    path.extend(items.split(['[', ']']).filter_map(|item| item.parse().ok()).map(Step::Item));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "version_info: '7'
resources:
- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: a
- '@type': type.googleapis.com/envoy.service.discovery.v3.Resource
  name: b
  version: '9'
  resource:
    '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
    cluster_name: b
    endpoints:
    - lb_endpoints:
      - load_balancing_weight: 0
";

    #[test]
    fn resources_may_be_wrapped_and_have_the_version_of_the_file() {
        let file = DiscoveredFile::parse(TWO.to_owned(), "f.yaml").unwrap();
        let shown: Vec<_> = file.resources.iter().map(|r| (any::name_of(&r.body.type_url), &*r.version)).collect();
        assert_eq!(shown, [("envoy.config.endpoint.v3.ClusterLoadAssignment", "7"); 2]);
        let json = serde_json::json!({"resources": [{"@type": "type.googleapis.com/envoy.service.discovery.v3.Resource", "name": "b"}]});
        assert_eq!(DiscoveredFile::parse(json.to_string(), "f.json").unwrap_err().to_string(), "f.json:1: resources[0]: has no resource");
    }

    #[test]
    fn what_is_wrong_with_a_resource_has_a_line() {
        let file = DiscoveredFile::parse(TWO.to_owned(), "f.yaml").unwrap();
        let wrong = [
            (1, "endpoints[0].lb_endpoints[0].load_balancing_weight: is 0"),
            (1, "endpoints[0].lb_endpoints[0].health_status: is odd"),
            (0, "cluster_name: is odd"),
            (0, "odd"),
            (1, "odd"),
            (2, "odd"),
        ];
        assert_eq!(file.lines_of(&wrong), [13, 13, 4, 3, 8, 2].map(Some));
    }

    #[test]
    fn as_many_lines_as_there_are_resources_are_found_in_no_time() {
        const COUNT: usize = 3_000;
        let one = |n| format!("- '@type': type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: c{n}\n");
        let text = format!("resources:\n{}", (0..COUNT).map(one).collect::<String>());
        let file = DiscoveredFile::parse(text, "f.yaml").unwrap();
        let wrong: Vec<_> = (0..COUNT).map(|index| (index, "cluster_name: is odd")).collect();
        let begin = std::time::Instant::now();
        assert!(file.lines_of(&wrong).into_iter().eq((0..COUNT).map(|index| Some(3 + 2 * index))));
        assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{:?}", begin.elapsed());
    }
}
