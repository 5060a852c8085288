//! Services and pods turned into what the network needs: names, cluster addresses with endpoints. Pure.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use lateen_core::Labels;
use lateen_model::ResourceSet;
use lateen_model::kinds::service::{ServiceType, TransportProtocol};
use lateen_model::schema::IntOrString;

use super::addresses::ServiceAddresses;
use crate::dns::zone::Zone;
use crate::nft::services::{ServicePort, Transport};

/// What services see of a pod.
#[derive(Clone, Debug)]
pub struct PodView {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    pub hostname: Option<String>,
    pub subdomain: Option<String>,
    /// Named ports of its containers.
    pub ports: Vec<(Option<String>, u16)>,
}

impl PodView {
    fn port(&self, target: &IntOrString) -> Option<u16> {
        match target {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => self.ports.iter().find(|(n, _)| n.as_deref() == Some(name)).map(|(_, p)| *p),
        }
    }
}

/// What the network is told.
#[derive(Clone, Debug)]
pub struct Network {
    pub zone: Zone,
    pub ports: Vec<ServicePort>,
    /// By (namespace, service, service port): the ready endpoints, IPv4 only, for published ports and `get endpoints`.
    pub endpoints: BTreeMap<(String, String, u16), Vec<SocketAddr>>,
    /// By (namespace, service).
    pub cluster_addresses: BTreeMap<(String, String), Vec<IpAddr>>,
}

/// Computes it all.
pub fn network(resources: &ResourceSet, pods: &[PodView], addresses: &mut ServiceAddresses, domain: &str, dual_stack: bool) -> Network {
    let mut network =
        Network { zone: Zone::new(domain), ports: Vec::new(), endpoints: BTreeMap::new(), cluster_addresses: BTreeMap::new() };
    for service in resources.services() {
        let (namespace, name, spec) = (service.namespace(), service.name(), &service.spec);
        let full = format!("{name}.{namespace}.svc.{domain}");
        if spec.r#type == ServiceType::ExternalName {
            if let Some(target) = &spec.external_name {
                network.zone.alias(&full, target);
            }
            continue;
        }
        let selected: Vec<&PodView> = pods
            .iter()
            .filter(|p| p.namespace == namespace && !spec.selector.is_empty() && lateen_core::selects(&spec.selector, &p.labels))
            .filter(|p| p.ready || spec.publish_not_ready_addresses)
            .collect();
        let cluster = if spec.is_headless() {
            network.zone.add(&full, selected.iter().flat_map(|p| p.addresses.iter().copied()));
            for pod in &selected {
                let host = pod.hostname.as_ref().filter(|_| pod.subdomain.as_deref() == Some(name)).unwrap_or(&pod.name);
                network.zone.add(&format!("{host}.{full}"), pod.addresses.iter().copied());
            }
            Vec::new()
        } else {
            let wanted = spec.cluster_ip.as_deref().and_then(|t| t.parse::<Ipv4Addr>().ok());
            let cluster: Vec<IpAddr> = addresses.of(namespace, name, wanted).into_iter().filter(|a| dual_stack || a.is_ipv4()).collect();
            network.zone.add(&full, cluster.iter().copied());
            network.cluster_addresses.insert((namespace.to_owned(), name.to_owned()), cluster.clone());
            cluster
        };
        for port in &spec.ports {
            let target = port.target_port.clone().unwrap_or(IntOrString::Int(port.port.into()));
            let at = |v4: bool| -> Vec<SocketAddr> {
                let of = |p: &&PodView| Some(SocketAddr::new(p.addresses.iter().copied().find(|a| a.is_ipv4() == v4)?, p.port(&target)?));
                selected.iter().filter_map(of).collect()
            };
            network.endpoints.insert((namespace.to_owned(), name.to_owned(), port.port), at(true));
            let transport = match port.protocol {
                TransportProtocol::Tcp => Transport::Tcp,
                TransportProtocol::Udp => Transport::Udp,
                TransportProtocol::Sctp => continue,
            };
            for address in &cluster {
                let endpoints = at(address.is_ipv4());
                // Without endpoints no rule: the refusal of the whole range answers.
                if !endpoints.is_empty() {
                    network.ports.push(ServicePort { address: SocketAddr::new(*address, port.port), transport, endpoints });
                }
            }
        }
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::Answer;
    use crate::store::read;

    fn pod(name: &str, app: &str, last: u8, ready: bool) -> PodView {
        PodView {
            namespace: "default".into(),
            name: name.into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            addresses: vec![IpAddr::from([10, 244, 0, last])],
            ready,
            hostname: None,
            subdomain: None,
            ports: vec![(Some("http".into()), 8080)],
        }
    }

    #[test]
    fn ready_pods_stand_behind_cluster_addresses_and_headless_names() {
        let yaml = "
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: h}
spec: {clusterIP: None, selector: {app: a}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: example.com}
";
        let (resources, diagnostics) = read::documents("t.yaml", yaml, "default");
        assert!(diagnostics.iter().all(|d| !d.is_error()), "{diagnostics:?}");
        let set: ResourceSet = resources.into_iter().collect();
        let pods = [pod("a-1", "a", 20, true), pod("a-2", "a", 21, false), pod("b-1", "b", 22, true)];
        let network = network(&set, &pods, &mut ServiceAddresses::default(), "cluster.local", true);
        assert_eq!(network.ports.len(), 1);
        assert_eq!(network.ports[0].endpoints, ["10.244.0.20:8080".parse().unwrap()]);
        assert_eq!(network.zone.lookup("h.default.svc.cluster.local"), Answer::Found(vec!["10.244.0.20".parse().unwrap()]));
        assert_eq!(network.zone.lookup("a-1.h.default.svc.cluster.local"), Answer::Found(vec!["10.244.0.20".parse().unwrap()]));
        assert_eq!(network.zone.lookup("out.default.svc.cluster.local"), Answer::Alias("example.com".into()));
        assert!(matches!(network.zone.lookup("a.default.svc.cluster.local"), Answer::Found(v) if v.len() == 2));
    }
}
