//! Certificates in files: TLS towards servers outside by a DestinationRule, and what a Gateway shows.
use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{PREFERENCE, document};

exercises!("files": tls_is_spoken_with_certificates_in_files, both_ends_show_certificates_in_files);

const HOST: &str = "secure.example";

/// Files of one exercise that an authority issues.
struct Files(PathBuf);

impl Files {
    fn of(mesh: &Mesh, name: &str) -> Self {
        let folder = mesh.folder().join(name);
        fs::create_dir(&folder).expect("a folder");
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Certificates of another authority, and what tells to trust it.
    fn issue(&self) -> Issued {
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Of another name than the leaf, which Envoy would take to have signed itself.
        ca.distinguished_name.push(DnType::CommonName, "an authority of the test");
        let roots = ca.self_signed(&ca_key).expect("roots").pem();
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::new(ca, ca_key);
        let chain = CertificateParams::new(vec![HOST.to_owned()]).and_then(|leaf| leaf.signed_by(&key, &issuer)).expect("a leaf").pem();
        Issued { folder: self.0.clone(), roots, chain, key: key.serialize_pem() }
    }
}

struct Issued {
    folder: PathBuf,
    roots: String,
    chain: String,
    key: String,
}

impl Issued {
    /// As Kubernetes and others do it: what is there is at no moment half a file.
    fn put(&self, name: &str, text: &str) {
        let put = |whole: &Path, part: &Path| fs::write(part, text).and_then(|()| fs::rename(part, whole));
        put(&self.folder.join(name), &self.folder.join("part")).expect("a file");
    }

    fn put_certificate(&self) {
        self.put("tls.key", &self.key);
        self.put("tls.crt", &self.chain);
    }

    fn put_roots(&self) {
        self.put("ca.crt", &self.roots);
    }
}

fn gateway_address(mesh: &Mesh) -> String {
    let list: Value = serde_json::from_str(&mesh.lateen(&["get", "pods", "-n", "istio-system", "-o", "json"]).succeeded()).expect("JSON");
    let pods = list["items"].as_array().expect("a list");
    let pod = pods.iter().find(|p| p["metadata"]["name"].as_str().is_some_and(|n| n.starts_with("istio-ingressgateway")));
    pod.and_then(|p| p["status"]["podIP"].as_str()).expect("the gateway's address").to_owned()
}

/// A Gateway that shows a certificate, and a host outside the mesh that is this Gateway, asked over TLS; a connection for each
/// request, so that each shows what is believed now.
fn rules(address: &str, server: &str, client: &str) -> String {
    let port = "port: {number: 443, name: https, protocol: HTTPS}";
    let gateway = format!("selector: {{istio: ingressgateway}}, servers: [{{{port}, hosts: [{HOST}], tls: {{{server}}}}}]");
    let route = "http: [{route: [{destination: {host: recommendation, port: {number: 8080}}}]}]";
    let entry = format!(
        "hosts: [{HOST}], location: MESH_EXTERNAL, resolution: STATIC, ports: [{{number: 8099, name: http, protocol: HTTP}}], \
         endpoints: [{{address: {address}, ports: {{http: 8443}}}}]"
    );
    let policy = format!("connectionPool: {{http: {{maxRequestsPerConnection: 1}}}}, tls: {{{client}}}");
    document("Gateway", "secure", &gateway)
        + &document("VirtualService", "secure", &format!("hosts: [{HOST}], gateways: [secure], {route}"))
        + &document("ServiceEntry", "secure", &entry)
        + &document("DestinationRule", "secure", &format!("host: {HOST}, trafficPolicy: {{{policy}}}"))
}

fn tls_is_spoken_with_certificates_in_files(mesh: &Mesh) {
    // What is to be undisturbed by the files must be there.
    settles("the mesh serves", || mesh.from("customer").get(PREFERENCE).ensure_status(200).map(drop));
    let (files, address) = (Files::of(mesh, "simple"), gateway_address(mesh));
    let server = format!("mode: SIMPLE, serverCertificate: {}, privateKey: {}", files.path("tls.crt"), files.path("tls.key"));
    mesh.apply(&rules(&address, &server, &format!("mode: SIMPLE, caCertificates: {}", files.path("ca.crt"))));
    let url = format!("http://{address}:8099/");
    let ask = || mesh.from("customer").ask(&url, &["-H", &format!("host: {HOST}")]);
    if !mesh.is_envoy() {
        settles("the proxy says what it waits for", || {
            let waiting = mesh.from("customer").get("http://127.0.0.1:15000/init_dump").body;
            check!(waiting.contains(&format!("({}: cannot be read", files.path("ca.crt"))), "{waiting}")
        });
    }
    assert_ne!(ask().status, 200);
    mesh.from("customer").get(PREFERENCE).ensure_status(200).unwrap();
    let first = files.issue();
    first.put_certificate();
    first.put_roots();
    let served = |answer: crate::report::Answer| check!(answer.ensure_status(200)?.saw("/service")? == "recommendation", "{answer:?}");
    settles("the files are taken when they come", || served(ask()));
    let second = files.issue();
    second.put_certificate();
    settles("the gateway shows the new certificate, which nobody trusts yet", || {
        let answer = ask();
        check!(answer.status == 503, "{answer:?}")
    });
    second.put("ca.crt", "rubbish");
    mesh.from("customer").get(PREFERENCE).ensure_status(200).unwrap();
    second.put_roots();
    settles("the new roots are believed", || served(ask()));
}

fn both_ends_show_certificates_in_files(mesh: &Mesh) {
    let (files, address) = (Files::of(mesh, "mutual"), gateway_address(mesh));
    let (chain, key, roots) = (files.path("tls.crt"), files.path("tls.key"), files.path("ca.crt"));
    let issued = files.issue();
    issued.put_certificate();
    issued.put_roots();
    let server = format!("mode: MUTUAL, serverCertificate: {chain}, privateKey: {key}, caCertificates: {roots}");
    let client = |mode: &str| format!("mode: {mode}, caCertificates: {roots}");
    let ask = || mesh.from("customer").ask(&format!("http://{address}:8099/"), &["-H", &format!("host: {HOST}")]);
    mesh.apply(&rules(&address, &server, &(client("MUTUAL") + &format!(", clientCertificate: {chain}, privateKey: {key}"))));
    settles("both certificates are believed", || ask().ensure_status(200).map(drop));
    mesh.apply(&rules(&address, &server, &client("SIMPLE")));
    settles("who shows none is refused", || ask().ensure_status(503).map(drop));
}
