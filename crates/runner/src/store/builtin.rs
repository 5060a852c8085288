//! What every mesh has before the user's YAML: namespaces, the control plane, the ingress gateway.
use super::addresses::CONTROL;
use crate::config::UpConfig;

/// Folders below the mesh's private `/run`.
pub const STATE: &str = "/run/lateen/state";
/// One file per resource, watched by the control plane: a [`lateen_core::generation`] folder.
pub const CONFIG: &str = "/run/lateen/state/config";
/// CA and token keys.
pub const SECRETS: &str = "/run/lateen/state/secrets";
pub const LOGS: &str = "/run/lateen/logs";
pub const PODS: &str = "/run/lateen/pods";

/// The YAML.
pub fn resources(config: &UpConfig) -> String {
    let injection = if config.inject_default && config.control_plane { "{istio-injection: enabled}" } else { "{}" };
    let mut text = format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: default, labels: {injection}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: istio-system}}
"
    );
    if config.control_plane {
        text.push_str(&control(&config.trust_domain));
    }
    if config.control_plane && config.ingress_gateway {
        text.push_str(GATEWAY);
    }
    text
}

fn control(trust_domain: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: istiod, namespace: istio-system}}
---
apiVersion: v1
kind: Service
metadata: {{name: istiod, namespace: istio-system, labels: {{app: istiod, istio: pilot}}}}
spec:
  clusterIP: {CONTROL}
  selector: {{app: istiod}}
  ports:
  - {{name: grpc-xds, port: 15010}}
  - {{name: https-dns, port: 15012}}
  - {{name: http-monitoring, port: 15014}}
  - {{name: http-debug, port: 8080}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: istiod, namespace: istio-system, labels: {{app: istiod, istio: pilot}}}}
spec:
  selector: {{matchLabels: {{app: istiod}}}}
  template:
    metadata:
      labels: {{app: istiod, istio: pilot}}
      annotations: {{sidecar.istio.io/inject: \"false\"}}
    spec:
      serviceAccountName: istiod
      containers:
      - name: discovery
        image: lateen/lateen
        command: [lateen, control, --folder, {CONFIG}, --ca-folder, {SECRETS}/ca, --token-jwks, {SECRETS}/jwks.json, --trust-domain, {trust_domain}]
        ports: [{{containerPort: 15010}}, {{containerPort: 15012}}, {{containerPort: 15014}}, {{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /ready, port: 15014}}, periodSeconds: 3}}
        volumeMounts: [{{name: state, mountPath: {STATE}}}]
      volumes: [{{name: state, hostPath: {{path: {STATE}}}}}]
"
    )
}

const GATEWAY: &str = "---
apiVersion: v1
kind: ServiceAccount
metadata: {name: istio-ingressgateway-service-account, namespace: istio-system}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-system, labels: {app: istio-ingressgateway, istio: ingressgateway}}
spec:
  type: LoadBalancer
  selector: {app: istio-ingressgateway, istio: ingressgateway}
  ports:
  - {name: status-port, port: 15021}
  - {name: http2, port: 80, targetPort: 8080}
  - {name: https, port: 443, targetPort: 8443}
  - {name: tcp, port: 31400}
  - {name: tls, port: 15443}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: istio-ingressgateway, namespace: istio-system, labels: {app: istio-ingressgateway, istio: ingressgateway}}
spec:
  selector: {matchLabels: {app: istio-ingressgateway, istio: ingressgateway}}
  template:
    metadata:
      labels: {app: istio-ingressgateway, istio: ingressgateway, sidecar.istio.io/inject: \"true\"}
      annotations: {inject.istio.io/templates: gateway}
    spec:
      serviceAccountName: istio-ingressgateway-service-account
      containers:
      - name: istio-proxy
        image: auto
        ports: [{containerPort: 15021}, {containerPort: 8080}, {containerPort: 8443}]
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_yaml_has_no_mistakes() {
        let (resources, diagnostics) = super::super::read::documents("builtin", &resources(&UpConfig::default()), "default");
        assert!(!diagnostics.iter().any(|d| d.severity > lateen_model::Severity::Info), "{diagnostics:?}");
        assert_eq!(resources.len(), 8);
    }
}
