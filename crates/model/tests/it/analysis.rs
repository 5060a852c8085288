//! References between resources: what points to nothing is told with Istio's code, and with what was probably meant.
use lateen_model::analyze;

use crate::set;

const MESH: &str = "apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}, {name: admin, port: 9081}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: other}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1}
spec:
  selector: {matchLabels: {app: reviews, version: v1}}
  template: {metadata: {labels: {app: reviews, version: v1}}, spec: {containers: [{name: c}]}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: version-1, labels: {version: v1}}, {name: version-2, labels: {version: v2}}]}
---
";

fn rule(name: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n")
}

#[track_caller]
fn says(text: &str, expected: &[&str]) {
    let found: Vec<String> = analyze(&set(text))
        .iter()
        .map(|d| {
            let suggestion = d.suggestion.as_ref().map_or(String::new(), |suggestion| format!("; {suggestion}"));
            format!("{} {} {}: {}{suggestion}", d.code.unwrap_or("-"), d.resource.as_ref().unwrap().name, d.field_path, d.message)
        })
        .collect();
    assert_eq!(found, expected);
}

const EMPTY_SUBSET: &str =
    "IST0173 reviews spec.subsets[1]: no pod of \"reviews\" has the labels version=v2; requests to this subset will get 503";

#[test]
fn hosts_ports_and_subsets() {
    let http = |destination: &str| rule("r", &format!("{{hosts: [reviews], http: [{{route: [{{destination: {{{destination}}}}}]}}]}}"));
    let says_about = |destination: &str, expected: &str| says(&format!("{MESH}{}", http(destination)), &[EMPTY_SUBSET, expected]);
    says(&format!("{MESH}{}", http("host: reviews, subset: version-1, port: {number: 9080}")), &[EMPTY_SUBSET]);
    let path = "spec.http[0].route[0].destination";
    says_about(
        "host: revews, port: {number: 9080}",
        &format!("IST0101 r {path}.host: no Service or ServiceEntry defines the host \"revews\"; did you mean \"reviews\"?"),
    );
    says_about(
        "host: ratings",
        &format!(
            "IST0101 r {path}.host: no Service or ServiceEntry defines the host \"ratings\"; a short name means namespace default; write ratings.other.svc.cluster.local"
        ),
    );
    says_about(
        "host: ratings.other",
        &format!(
            "IST0101 r {path}.host: no Service or ServiceEntry defines the host \"ratings.other\"; write ratings.other.svc.cluster.local"
        ),
    );
    says_about(
        "host: reviews, port: {number: 80}",
        &format!("IST0101 r {path}.port.number: \"reviews\" has no port 80; it has 9080, 9081"),
    );
    says_about(
        "host: reviews",
        &format!(
            "IST0112 r {path}: \"reviews\" has the ports 9080, 9081; without port the one the caller used is taken; add port with number"
        ),
    );
    says_about(
        "host: reviews, subset: version-3, port: {number: 9080}",
        &format!(
            "IST0101 r {path}.subset: the subset \"version-3\" of \"reviews\" is not defined; DestinationRule default/reviews has the subsets version-1, version-2; requests to it will get 503; did you mean \"version-1\"?"
        ),
    );
    says_about(
        "host: ratings.other.svc.cluster.local, subset: v1",
        &format!(
            "IST0101 r {path}.subset: no DestinationRule for \"ratings.other.svc.cluster.local\" defines the subset \"v1\"; requests to it will get 503"
        ),
    );
}

#[test]
fn gateways_exist_and_take_the_hosts() {
    let gateway = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: sys}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*.example.com'], tls: {mode: SIMPLE, credentialName: cert}}]}
---
";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n---\n";
    let attach = |host: &str, gateway: &str| {
        rule("r", &format!("{{hosts: [{host}], gateways: [{gateway}], http: [{{route: [{{destination: {{host: a}}}}]}}]}}"))
    };
    let no_secret = "IST0101 gw spec.servers[0].tls.credentialName: there is no Secret \"cert\" in namespace sys, where the gateway runs";
    says(&format!("{gateway}{service}{}", attach("a.example.com", "sys/gw")), &[no_secret]);
    says(
        &format!("{gateway}{service}{}", attach("a.example.com", "gw")),
        &[no_secret, "IST0101 r spec.gateways[0]: there is no Gateway default/gw; write sys/gw"],
    );
    says(
        &format!("{gateway}{service}{}", attach("example.com", "sys/gw")),
        &[
            no_secret,
            "IST0132 r spec.gateways[0]: none of the hosts example.com is taken by Gateway sys/gw, which takes the hosts *.example.com",
        ],
    );
}

#[test]
fn hosts_claimed_twice_and_missing_delegates() {
    let simple = "{hosts: [a], http: [{route: [{destination: {host: a}}]}]}";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n---\n";
    says(
        &format!("{service}{}{}", rule("first", simple), rule("second", simple)),
        &[
            "IST0109 second spec.hosts[0]: VirtualService default/first claims the host a.default.svc.cluster.local for sidecars already; for it this one is not used there; merge the two into one",
        ],
    );
    says(
        &format!("{service}{}", rule("r", "{hosts: [a], http: [{delegate: {name: gone}}]}")),
        &["IST0101 r spec.http[0].delegate: there is no VirtualService default/gone to delegate to; this route is left out"],
    );
}

#[test]
fn rules_and_policies_for_nothing() {
    says(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d}\nspec: {host: gone}\n",
        &["IST0174 d spec.host: no Service or ServiceEntry defines the host \"gone\""],
    );
    let policy =
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec: {selector: {matchLabels: {app: gone}}}\n";
    says(&format!("{MESH}{policy}"), &[EMPTY_SUBSET, "IST0127 p spec.selector: no workload of namespace default has these labels"]);
}

#[test]
fn the_mesh_configuration_is_checked_at_its_own_lines() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomain: td\n    rootNamespce: x\n";
    let resources = set(text);
    let (mesh, _) = lateen_model::MeshConfig::of(&resources, "istio-system");
    assert_eq!(mesh.trust_domain, "td");
    let said: Vec<String> = analyze(&resources).iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        ["f.yaml:7:5: error: ConfigMap istio-system/istio: data.mesh.rootNamespce: unknown field; did you mean \"rootNamespace\"?"]
    );
}
