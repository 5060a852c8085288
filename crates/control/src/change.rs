//! How far a change reaches: whether endpoints alone have to be sent, and to whom that is not enough.
use std::collections::BTreeSet;

use lateen_model::{AnyResource, Kind, ResourceSet};
use lateen_translate::world::World;
use lateen_translate::world::services::{Endpoint, Resolution, Service};

/// The reach of a change from one world to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nothing that any proxy could see.
    Nothing,
    /// Anything can have changed for anyone.
    Everything,
    /// Only which addresses stand behind services. Proxies at one of these addresses get everything:
    /// what they accept depends on which services select them.
    Endpoints { addresses: BTreeSet<String> },
}

/// One state of the configuration, as the reach is judged from it.
pub(crate) struct Before<'a> {
    pub(crate) resources: &'a ResourceSet,
    pub(crate) world: &'a World,
}

/// Compares two states. Unsure is `Everything`: resources that did not change are not sent anyway,
/// so the narrower answers only save the work of generating them.
pub(crate) fn reach(old: &Before<'_>, new: &Before<'_>) -> Reach {
    if old.world.mesh != new.world.mesh || !same_configuration(old.resources, new.resources) {
        return Reach::Everything;
    }
    let (before, after) = (old.world.services(), new.world.services());
    if before.len() != after.len() {
        return Reach::Everything;
    }
    let mut addresses = BTreeSet::new();
    for (old, new) in before.iter().zip(after) {
        if old.host != new.host || old.namespace != new.namespace || old.addresses != new.addresses {
            return Reach::Everything;
        }
        if old.endpoints == new.endpoints {
            continue;
        }
        if !only_endpoints_show(old, new) {
            return Reach::Everything;
        }
        addresses.extend(difference(old, new).chain(difference(new, old)));
    }
    if addresses.is_empty() { Reach::Nothing } else { Reach::Endpoints { addresses } }
}

/// Whether the sets differ at most in pods, which matter only through the endpoints they become.
fn same_configuration(old: &ResourceSet, new: &ResourceSet) -> bool {
    let configuration = |set: &'_ ResourceSet| set.iter().filter(|r| r.kind() != Kind::Pod).cloned().collect::<Vec<AnyResource>>();
    configuration(old) == configuration(new)
}

/// Whether a change of endpoints shows in endpoint resources alone. It shows in clusters when the
/// accounts that may serve change (certificate names), when mutual TLS comes or goes, and when the
/// addresses are part of the cluster (DNS) or of listeners (headless).
fn only_endpoints_show(old: &Service, new: &Service) -> bool {
    let accounts = |s: &Service| s.endpoints.iter().map(|e| (e.namespace.clone(), e.service_account.clone())).collect::<BTreeSet<_>>();
    let mutual = |s: &Service| s.endpoints.iter().map(|e| e.mutual_tls).collect::<BTreeSet<_>>();
    new.resolution == Resolution::Endpoints && accounts(old) == accounts(new) && mutual(old) == mutual(new)
}

/// Addresses of the endpoints of `one` that `other` does not have just so.
fn difference<'a>(one: &'a Service, other: &'a Service) -> impl Iterator<Item = String> + use<'a> {
    let known: std::collections::HashSet<&Endpoint> = other.endpoints.iter().map(|e| &**e).collect();
    one.endpoints.iter().filter(move |e| !known.contains(&***e)).flat_map(|e| e.addresses.iter().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_model::{Limits, parse};
    use lateen_translate::world::Live;

    const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: a, namespace: d}
spec: {clusterIP: 10.96.0.1, selector: {app: a}, ports: [{port: 80, name: http}]}
";

    fn pod(name: &str, ip: &str, account: &str) -> String {
        format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: d, labels: {{app: a}}}}
spec: {{serviceAccountName: {account}, containers: [{{name: app, image: app}}]}}
status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}
"
        )
    }

    fn state(yaml: &str) -> (ResourceSet, World) {
        let parsed = parse("test.yaml", yaml.as_bytes(), &Limits::default());
        assert!(!parsed.diagnostics.iter().any(lateen_model::Diagnostic::is_error), "{:?}", parsed.diagnostics);
        let resources: ResourceSet = parsed.resources.into_iter().collect();
        let world = World::build(&resources, &Live::default());
        (resources, world)
    }

    fn judge(old: &str, new: &str) -> Reach {
        let ((r1, w1), (r2, w2)) = (state(old), state(new));
        reach(&Before { resources: &r1, world: &w1 }, &Before { resources: &r2, world: &w2 })
    }

    #[test]
    fn one_more_pod_of_the_same_account_touches_endpoints_and_itself() {
        let one = format!("{SERVICE}{}", pod("a1", "10.0.0.1", "a"));
        let two = format!("{one}{}", pod("a2", "10.0.0.2", "a"));
        assert_eq!(judge(&one, &two), Reach::Endpoints { addresses: BTreeSet::from(["10.0.0.2".to_owned()]) });
        assert_eq!(judge(&two, &two), Reach::Nothing);
    }

    #[test]
    fn a_pod_of_another_account_changes_who_may_serve() {
        let one = format!("{SERVICE}{}", pod("a1", "10.0.0.1", "a"));
        let two = format!("{one}{}", pod("a2", "10.0.0.2", "other"));
        assert_eq!(judge(&one, &two), Reach::Everything);
    }

    #[test]
    fn headless_services_and_changed_configuration_touch_everything() {
        let headless = SERVICE.replace("10.96.0.1", "None");
        let one = format!("{headless}{}", pod("a1", "10.0.0.1", "a"));
        let two = format!("{one}{}", pod("a2", "10.0.0.2", "a"));
        assert_eq!(judge(&one, &two), Reach::Everything);
        assert_eq!(judge(SERVICE, &SERVICE.replace("port: 80", "port: 81")), Reach::Everything);
    }
}
