//! Listeners wait for their certificates and take rotated ones.
use std::collections::HashSet;

use lateen_identity::{WorkloadSecrets, pem};

use super::*;
use crate::compile::secret::SecretKey;
use crate::compile::source::{ApiSource, SecretSource};
use crate::compile::tls::Waiting;

pub(super) fn identity(name: &str) -> WorkloadSecrets {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    WorkloadSecrets::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes(), ca_cert.pem().as_bytes()).unwrap()
}

pub(super) fn sds_grpc() -> SecretSource {
    SecretSource::Api(ApiSource { cluster: "sds-grpc".into(), delta: false, authority: "sds-grpc".into(), metadata: Vec::new() })
}

pub(super) const MTLS: &str = "transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, common_tls_context: {
    tls_certificate_sds_secret_configs: [{name: default, sds_config: {api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}],
    combined_validation_context: {default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: 'spiffe://td/'}}]},
      validation_context_sds_secret_config: {name: ROOTCA, sds_config: {api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}}}}}";

#[test]
fn a_listener_waits_for_its_certificates_and_takes_rotated_ones() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{MTLS}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    assert_eq!(compiler.snapshot().listeners.len(), 0);
    let source = sds_grpc();
    let wanted: Vec<_> = compiler.wanted().secrets.iter().map(|k| (k.source.clone(), k.name.to_string())).collect();
    assert_eq!(wanted, [(source.clone(), "ROOTCA".to_owned()), (source.clone(), "default".to_owned())]);
    compiler.set_identity(&source, &identity("a"), now).unwrap();
    let snapshot = compiler.snapshot();
    let tls = snapshot.listeners[0].chains[0].tls.clone().unwrap();
    let first = tls.config.get().unwrap();
    compiler.set_identity(&source, &identity("b"), now).unwrap();
    assert!(!Arc::ptr_eq(&first, &tls.config.get().unwrap()));
    assert!(Arc::ptr_eq(&snapshot, &compiler.snapshot()), "a rotation changes no listener");
}

#[test]
fn a_certificate_without_an_identity_takes_that_of_the_one_before_away() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let context = "{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         common_tls_context: {tls_certificate_sds_secret_configs: [{name: own, sds_config: {ads: {}}}]}}";
    let text = format!("{{name: c, type: STATIC, transport_socket: {{name: tls, typed_config: {context}}}}}");
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
    let mut uri = |names: Vec<rcgen::SanType>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = names;
        let pem = |text: String| serde_json::Value::from(text);
        let (chain, key) = (pem(params.self_signed(&key).unwrap().pem()), pem(key.serialize_pem()));
        let content = format!("{{certificate_chain: {{inline_string: {chain}}}, private_key: {{inline_string: {key}}}}}");
        accepted(compiler.apply(SECRET, vec![update::<SecretProto>(&format!("{{name: own, tls_certificate: {content}}}"))], &[], now));
        let snapshot = compiler.snapshot();
        let transport = &snapshot.cluster_named("c").unwrap().1.config.transports[0];
        transport.tls.as_ref().unwrap().uri.get().map(|uri| uri.to_string())
    };
    assert_eq!(uri(vec![rcgen::SanType::URI("spiffe://td/a".try_into().unwrap())]).as_deref(), Some("spiffe://td/a"));
    assert_eq!(uri(Vec::new()), None);
}

#[test]
fn a_rotated_certificate_has_nothing_else_looked_through() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let context = "{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         common_tls_context: {tls_certificate_sds_secret_configs: [{name: own, sds_config: {ads: {}}}]}}";
    let text = format!("{{name: c, type: STATIC, transport_socket: {{name: tls, typed_config: {context}}}}}");
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&text)], &[], now));
    let secret = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
        let (chain, key) = (serde_json::Value::from(made.cert.pem()), serde_json::Value::from(made.signing_key.serialize_pem()));
        let content = format!("{{certificate_chain: {{inline_string: {chain}}}, private_key: {{inline_string: {key}}}}}");
        vec![update::<SecretProto>(&format!("{{name: {name}, tls_certificate: {content}}}"))]
    };
    accepted(compiler.apply(SECRET, secret("own"), &[], now));
    let snapshot = compiler.snapshot();
    let tls = snapshot.cluster_named("c").unwrap().1.config.transports[0].tls.clone().unwrap();
    let first = tls.config.get().unwrap();
    // Settling makes these anew.
    compiler.users.insert("mark".into(), Vec::new());
    accepted(compiler.apply(SECRET, secret("own"), &[], now));
    assert!(!Arc::ptr_eq(&first, &tls.config.get().unwrap()));
    assert!(compiler.users.contains_key("mark"));
    // One that nobody wants is not kept.
    accepted(compiler.apply(SECRET, secret("other"), &[], now));
    assert!(!compiler.users.contains_key("mark") && compiler.secrets().all(|(key, _)| &*key.name == "own"));
}

#[test]
fn the_workloads_own_certificate_is_there_for_who_comes_when_nobody_used_it() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{MTLS}, filters: [{}]}}]}}", tcp("c"));
    let listener = || vec![update::<ListenerProto>(&text)];
    accepted(compiler.apply(LISTENER, listener(), &[], now));
    let source = compiler.wanted().secrets.iter().next().unwrap().source.clone();
    compiler.set_identity(&source, &identity("a"), now).unwrap();
    accepted(compiler.apply(LISTENER, Vec::new(), &["l".to_owned()], now));
    assert!(compiler.wanted().secrets.is_empty());
    accepted(compiler.apply(LISTENER, listener(), &[], now));
    assert!(compiler.is_settled() && compiler.snapshot().listeners[0].chains[0].tls.as_ref().unwrap().config.get().is_some());
}

#[test]
fn the_clients_order_of_cipher_suites_counts_where_it_is_preferred() {
    let of_server = |switch: &str| {
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        let socket = MTLS.replace("require_client_certificate: true", switch);
        let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{socket}, filters: [{}]}}]}}", tcp("c"));
        accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
        compiler.set_identity(&sds_grpc(), &identity("a"), now).unwrap();
        let tls = compiler.snapshot().listeners[0].chains[0].tls.clone().unwrap();
        tls.config.get().unwrap().ignore_client_order
    };
    assert!(of_server("prefer_client_ciphers: false") && !of_server("prefer_client_ciphers: true"));
}

#[test]
fn certificates_in_files_are_read_again_when_they_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let write = |identity: &WorkloadSecrets| {
        std::fs::write(path("crt"), identity.chain_pem()).unwrap();
        std::fs::write(path("key"), identity.key().to_pem()).unwrap();
    };
    write(&identity("a"));
    let socket = format!(
        "transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: '{}'}}, private_key: {{filename: '{}'}}}}]}}}}}}",
        path("crt").display(),
        path("key").display()
    );
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{socket}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    assert_eq!(compiler.files().len(), 2);
    let tls = compiler.snapshot().listeners[0].chains[0].tls.clone().unwrap();
    let first = tls.config.get().unwrap();
    std::fs::write(path("crt"), "rubbish").unwrap();
    assert_eq!(compiler.reload_files(|_| true, now).len(), 1);
    assert!(Arc::ptr_eq(&first, &tls.config.get().unwrap()));
    write(&identity("b"));
    accepted(compiler.reload_files(|p| p == path("crt"), now));
    assert!(!Arc::ptr_eq(&first, &tls.config.get().unwrap()));
}

#[test]
fn services_that_are_asked_in_other_ways_are_others() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let asked = MTLS.replacen("GRPC,", "DELTA_GRPC,", 1).replacen(
        "{envoy_grpc: {cluster_name: sds-grpc}}",
        "{envoy_grpc: {cluster_name: sds-grpc, authority: sds.test}, initial_metadata: [{key: x-key, value: v}]}",
        1,
    );
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{asked}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    let metadata = vec![("x-key".to_owned(), http::HeaderValue::from_static("v"))];
    let other = SecretSource::Api(ApiSource { cluster: "sds-grpc".into(), delta: true, authority: "sds.test".into(), metadata });
    let mut wanted: Vec<_> = compiler.wanted().secrets.iter().map(|k| (k.name.to_string(), k.source.clone())).collect();
    wanted.sort();
    assert_eq!(wanted, [("ROOTCA".to_owned(), sds_grpc()), ("default".to_owned(), other)]);
}

#[test]
fn a_cluster_has_one_certificate_at_most() {
    let cluster = |certificates: &str| {
        refusals::refused_cluster(&format!(
            "{{name: c, type: STATIC, transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
             common_tls_context: {{tls_certificate_sds_secret_configs: [{certificates}]}}}}}}}}"
        ))
    };
    assert_eq!(cluster("{name: a, sds_config: {ads: {}}}"), "");
    assert_eq!(
        cluster("{name: a, sds_config: {ads: {}}}, {name: b, sds_config: {ads: {}}}"),
        "transport_socket.common_tls_context: has several certificates; towards an upstream there is one at most"
    );
}

#[test]
fn contexts_that_read_the_same_file_stay_apart_when_others_come_and_go() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem::encode_certificates(identity("a").roots())).unwrap();
    let cluster = |name: &str| {
        update::<ClusterProto>(&format!(
            "{{name: {name}, type: STATIC, transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
             common_tls_context: {{validation_context: {{trusted_ca: {{filename: '{}'}}, match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: {name}}}}}]}}}}}}}}}}",
            file.path().display()
        ))
    };
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![cluster("a"), cluster("b")], &[], now));
    accepted(compiler.apply(CLUSTER, Vec::new(), &["a".to_owned()], now));
    accepted(compiler.apply(CLUSTER, vec![cluster("c")], &[], now));
    assert_eq!(compiler.secrets().count(), 2);
    let keys: HashSet<_> = compiler.all_tls().flat_map(Waiting::secrets).cloned().collect();
    assert_eq!(keys.len(), 2, "{keys:?}");
}

#[test]
fn a_secret_that_nothing_can_be_made_with_leaves_the_one_before() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{MTLS}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    let quoted = |pem: String| serde_json::Value::from(pem);
    let certificate = |identity: &WorkloadSecrets| {
        let (chain, key) = (quoted(identity.chain_pem()), quoted(identity.key().to_pem()));
        let content = format!("{{certificate_chain: {{inline_string: {chain}}}, private_key: {{inline_string: {key}}}}}");
        update::<SecretProto>(&format!("{{name: default, tls_certificate: {content}}}"))
    };
    let roots = format!("{{name: ROOTCA, validation_context: {{trusted_ca: {{inline_string: {}}}}}}}", quoted(identity("a").roots_pem()));
    let mut apply = |update: Update| compiler.apply_from(&sds_grpc(), SECRET, vec![update], &[], now);
    accepted(apply(certificate(&identity("a"))));
    accepted(apply(update::<SecretProto>(&roots)));
    // Names without roots prove nothing.
    let rejected = apply(update::<SecretProto>("{name: ROOTCA, validation_context: {}}"));
    assert_eq!(rejected.len(), 1);
    accepted(apply(certificate(&identity("b"))));
    // Nor is one that is something else than what is wanted by that name.
    let rejected = apply(update::<SecretProto>(&roots.replace("ROOTCA", "default")));
    assert_eq!(rejected[0].reason, "validation_context: is of no use: the secret is wanted as tls_certificate");
    let key = |name: &str| SecretKey { source: sds_grpc(), name: name.into() };
    assert!(compiler.secrets.certificate(&key("default")).is_some());
    assert_eq!(compiler.secrets.validation(&key("ROOTCA")).unwrap().trusted().len(), 1);
}

#[test]
fn a_secret_that_comes_again_unchanged_ends_no_sessions() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let text = format!("{{name: l, address: {ANY_80}, filter_chains: [{{{MTLS}, filters: [{}]}}]}}", tcp("c"));
    accepted(compiler.apply(LISTENER, vec![update::<ListenerProto>(&text)], &[], now));
    let [first, second] = [(); 2].map(|()| {
        let pem = serde_json::Value::from(identity("a").roots_pem());
        format!("{{name: ROOTCA, validation_context: {{trusted_ca: {{inline_string: {pem}}}}}}}")
    });
    let matcher = ", match_typed_subject_alt_names: [{san_type: DNS, matcher: {safe_regex: {regex: 'a.*'}}}]";
    compiler.set_identity(&sds_grpc(), &identity("a"), now).unwrap();
    let tls = compiler.snapshot().listeners[0].chains[0].tls.clone().unwrap();
    let mut apply = |secret: &str, version: &str| {
        let update = Update { version: version.to_owned(), ..update::<SecretProto>(secret) };
        let rejected = compiler.apply_from(&sds_grpc(), SECRET, vec![update], &[], now);
        let key = SecretKey { source: sds_grpc(), name: "ROOTCA".into() };
        let known = compiler.secrets().find(|(k, _)| **k == key).unwrap().1;
        (rejected.len(), known.version.to_string(), tls.config.get().unwrap())
    };
    let (_, _, before) = apply(&first, "1");
    let (rejected, version, again) = apply(&first, "2");
    assert_eq!((rejected, &*version), (0, "2"));
    assert!(Arc::ptr_eq(&before, &again));
    // Whatever is another trust makes another configuration, which knows no sessions.
    let mut last = again;
    for other in [second.clone(), second.replace("}}}", &format!("}}{matcher}}}}}")), second] {
        let (rejected, _, now) = apply(&other, "3");
        assert_eq!(rejected, 0, "{other}");
        assert!(!Arc::ptr_eq(&last, &now), "{other}");
        last = now;
    }
    // What is refused is so each time.
    let nothing = "{name: ROOTCA, validation_context: {}}";
    assert_eq!([apply(nothing, "4").0, apply(nothing, "4").0], [1, 1]);
    assert!(Arc::ptr_eq(&last, &tls.config.get().unwrap()));
}

#[test]
fn what_is_in_a_file_is_put_to_use_again_only_where_it_changed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |name: &str| std::fs::write(file.path(), pem::encode_certificates(identity(name).roots())).unwrap();
    let cluster = |name: &str| {
        let tls = format!(
            "{{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
             common_tls_context: {{validation_context: {{trusted_ca: {{filename: '{}'}}}}}}}}",
            file.path().display()
        );
        update::<ClusterProto>(&format!("{{name: {name}, type: STATIC, transport_socket: {{name: tls, typed_config: {tls}}}}}"))
    };
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    write("a");
    accepted(compiler.apply(CLUSTER, vec![cluster("first")], &[], now));
    let config = |compiler: &mut Compiler| {
        let transport = compiler.snapshot().cluster_named("first").unwrap().1.config.transports[0].clone();
        transport.tls.as_ref().unwrap().config.get().unwrap()
    };
    let before = config(&mut compiler);
    accepted(compiler.reload_files(|_| true, now));
    assert!(Arc::ptr_eq(&before, &config(&mut compiler)), "it is what it was");
    accepted(compiler.apply(CLUSTER, vec![cluster("second")], &[], now));
    accepted(compiler.reload_files(|_| true, now));
    assert!(Arc::ptr_eq(&before, &config(&mut compiler)), "also to one that was made of it later");
    // One that is made of it before it was read for the others.
    write("b");
    accepted(compiler.apply(CLUSTER, vec![cluster("third")], &[], now));
    accepted(compiler.reload_files(|_| true, now));
    assert!(!Arc::ptr_eq(&before, &config(&mut compiler)));
}
