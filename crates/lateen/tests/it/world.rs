//! The mesh of the tests: customer calls preference calls recommendation, which has two versions; and one who has no sidecar.

pub(crate) const RECOMMENDATION: &str = "http://recommendation:8080/";
pub(crate) const PREFERENCE: &str = "http://preference:8080/";

/// Deployments and services. Each recommendation pod also talks gRPC (9090), TCP (9000), and TCP where the server speaks
/// first (9025 declared as TCP); preference does the last on a port whose protocol nobody declares.
pub(crate) fn sample() -> String {
    let account = |name: &str| format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n---\n");
    let mut text: String = ["customer", "preference", "recommendation", "stranger"].map(account).concat();
    text.push_str(&service("customer", "customer", "{name: http, port: 8080}"));
    text.push_str(&service("preference", "preference", "{name: http, port: 8080}, {name: smtp, port: 9025}"));
    let ports = "{name: http, port: 8080}, {name: grpc, port: 9090}, {name: tcp-echo, port: 9000}, {name: tcp-mail, port: 9025}";
    text.push_str(&service("recommendation", "recommendation", ports));
    text.push_str(HEADLESS);
    let chain = |next: &str| format!("--call, 'http://{next}:8080/', --forward, user-agent, --forward, x-user, ");
    text.push_str(&deployment("customer", "customer", "v1", &[(8080, &chain("preference"))], ""));
    let preference = chain("recommendation") + "--tcp-port, '9025', --server-first, ";
    text.push_str(&deployment("preference", "preference", "v1", &[(8080, &preference)], ""));
    for version in ["v1", "v2"] {
        let ports = [(8080, "--tcp-port, '9000', "), (9090, "--tcp-port, '9025', --server-first, ")];
        text.push_str(&deployment(&format!("recommendation-{version}"), "recommendation", version, &ports, ""));
    }
    text.push_str(&deployment("stranger", "stranger", "v1", &[(8080, "")], "sidecar.istio.io/inject: 'false', "));
    text
}

const HEADLESS: &str = "apiVersion: v1
kind: Service
metadata: {name: recommendation-pods}
spec: {clusterIP: None, selector: {app: recommendation}, ports: [{name: http, port: 8080}]}
---
";

fn service(name: &str, app: &str, ports: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {app}}}, ports: [{ports}]}}\n---\n")
}

fn deployment(name: &str, app: &str, version: &str, containers: &[(u16, &str)], labels: &str) -> String {
    let container = |(at, (port, args)): (usize, &(u16, &str))| {
        format!(
            "      - name: {app}{at}
        image: lateen/app
        args: [--name, {app}, --version, {version}, --port, '{port}', {args}--drain, 500ms]
        ports: [{{containerPort: {port}}}]
"
        )
    };
    let containers: String = containers.iter().enumerate().map(container).collect();
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {app}, version: {version}}}}}
  template:
    metadata: {{labels: {{{labels}app: {app}, version: {version}}}}}
    spec:
      serviceAccountName: {app}
      terminationGracePeriodSeconds: 3
      containers:
{containers}---
"
    )
}

/// A document of networking.istio.io; its spec in flow style.
pub(crate) fn document(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
}

/// A DestinationRule for recommendation with the subsets v1 and v2, and a traffic policy.
pub(crate) fn subsets_with(policy: &str) -> String {
    let subsets = "subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]";
    document("DestinationRule", "recommendation", &format!("host: recommendation, {subsets}{policy}"))
}

pub(crate) fn subsets() -> String {
    subsets_with("")
}

/// A VirtualService for recommendation with these routes, beside its subsets.
pub(crate) fn routes(http: &str) -> String {
    subsets() + &rules("recommendation", http)
}

/// A VirtualService for a host.
pub(crate) fn rules(host: &str, http: &str) -> String {
    document("VirtualService", host, &format!("hosts: [{host}], http: [{http}]"))
}

/// The route list entry that leads to a version.
pub(crate) fn to(version: &str) -> String {
    format!("route: [{{destination: {{host: recommendation, subset: {version}}}}}]")
}

/// So much of a hundred to v1, the rest to v2.
pub(crate) fn split(v1: u32, v2: u32) -> String {
    routes(&format!(
        "{{route: [{{destination: {{host: recommendation, subset: v1}}, weight: {v1}}}, {{destination: {{host: recommendation, subset: v2}}, weight: {v2}}}]}}"
    ))
}

/// PeerAuthentication for the namespace.
pub(crate) fn peer_authentication(mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default}}\nspec: {{mtls: {{mode: {mode}}}}}\n---\n"
    )
}

/// Mesh-wide settings.
pub(crate) fn mesh_config(settings: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {settings}\n---\n")
}
