//! Secrets whose names say files: what uses them waits until they can be used, and keeps the last that could.
use std::path::Path;
use std::time::Duration;

use lateen_core::file_stamp::FileStamp;

use super::certificates::{MTLS, identity, sds_grpc};
use super::*;

const AGENT: &str =
    "sds_config: {initial_fetch_timeout: 0s, api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}";

/// As Istio makes it of a DestinationRule with `caCertificates`.
fn originating(name: &str) -> Update {
    update::<ClusterProto>(&format!(
        "{{name: c, type: STATIC, transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, \
         common_tls_context: {{combined_validation_context: {{default_validation_context: {{}}, validation_context_sds_secret_config: {{name: '{name}', {AGENT}}}}}}}}}}}}}"
    ))
}

/// As Istio makes it of a Gateway with `serverCertificate` and `privateKey`.
fn serving(name: &str) -> Update {
    update::<ListenerProto>(&format!(
        "{{name: l, address: {ANY_80}, filter_chains: [{{transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{tls_certificate_sds_secret_configs: [{{name: '{name}', {AGENT}}}]}}}}}}, filters: [{}]}}]}}",
        tcp("c")
    ))
}

/// Reads what is wanted newly, as the proxy does.
fn read(compiler: &mut Compiler, now: Instant) -> Vec<Rejected> {
    let names: Vec<Arc<str>> = compiler.wanted().secrets.iter().map(|key| key.name.clone()).collect();
    compiler.read_files(&sds_grpc(), &names, now)
}

/// What the admin page tells about the only resource of a kind.
fn told(compiler: &Compiler, kind: Kind) -> Option<String> {
    compiler.list(kind).remove(0).unusable_files.map(|failure| failure.reason)
}

/// Reads again what is not as it was when it was read, as the proxy does.
fn look_again(compiler: &mut Compiler, now: Instant) -> Vec<Rejected> {
    let changed: Vec<_> = compiler.files().into_iter().filter(|(path, then)| then.is_outdated_by(&FileStamp::of(path))).collect();
    compiler.reload_files(|path: &Path| changed.iter().any(|(other, _)| other == path), now)
}

#[test]
fn a_cluster_waits_for_roots_in_a_file_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![originating(&format!("file-root:{}", path.display()))], &[], now));
    let rejected = read(&mut compiler, now);
    assert!(rejected[0].reason.starts_with(&format!("{}: cannot be read: No such file", path.display())), "{rejected:?}");
    // Envoy would wait for it without end, too.
    compiler.settle(now + Duration::from_secs(3600));
    assert_eq!(compiler.waiting(), [format!("cluster c ({})", rejected[0].reason)]);
    assert_eq!(told(&compiler, Kind::Cluster).as_ref(), Some(&rejected[0].reason));
    assert_eq!(look_again(&mut compiler, now), [], "it is not read until something changes");
    std::fs::write(&path, identity("a").roots_pem()).unwrap();
    accepted(look_again(&mut compiler, now));
    assert!(compiler.is_settled() && told(&compiler, Kind::Cluster).is_none());
    assert!(compiler.snapshot().cluster_named("c").is_some());
}

#[test]
fn a_file_that_could_not_be_read_is_tried_again_and_told_once() {
    // It is there, and its beginning cannot be read.
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![originating("file-root:/proc/self/mem")], &[], now));
    let rejected = read(&mut compiler, now);
    assert!(rejected[0].reason.starts_with("/proc/self/mem: cannot be read: "), "{rejected:?}");
    let is_tried = |compiler: &Compiler| compiler.files().iter().all(|(path, then)| then.is_outdated_by(&FileStamp::of(path)));
    for _ in 0..2 {
        // Only settling would find that the cluster waits.
        compiler.settled = true;
        assert!(is_tried(&compiler) && look_again(&mut compiler, now).is_empty() && compiler.settled);
        assert_eq!(told(&compiler, Kind::Cluster).as_ref(), Some(&rejected[0].reason));
    }
}

#[test]
fn a_listener_keeps_the_last_certificate_that_could_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str, text: String| std::fs::write(path(name), text).unwrap();
    let (first, second) = (identity("a"), identity("b"));
    write("crt", first.chain_pem());
    write("key", first.key().to_pem());
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let name = format!("file-cert:{}~{}", path("crt").display(), path("key").display());
    accepted(compiler.apply(LISTENER, vec![serving(&name)], &[], now));
    accepted(read(&mut compiler, now));
    let tls = compiler.snapshot().listeners[0].chains[0].tls.clone().unwrap();
    let served = tls.config.get().unwrap();
    // One of the two is replaced first: until the other is, they do not belong together.
    write("crt", second.chain_pem());
    assert_eq!(look_again(&mut compiler, now).len(), 1);
    assert!(told(&compiler, Kind::Listener).unwrap().contains("the private key does not belong to the leaf certificate"));
    assert!(Arc::ptr_eq(&served, &tls.config.get().unwrap()));
    write("key", second.key().to_pem());
    accepted(look_again(&mut compiler, now));
    assert!(!Arc::ptr_eq(&served, &tls.config.get().unwrap()) && told(&compiler, Kind::Listener).is_none());
}

#[test]
fn another_version_of_a_file_that_is_of_no_use_either_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let written = std::cell::Cell::new(1);
    let write = |name: &str, text: String| {
        std::fs::write(path(name), text).unwrap();
        // The clock of files stands still for some milliseconds.
        let file = std::fs::File::options().write(true).open(path(name)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(written.replace(written.get() + 1))).unwrap();
    };
    write("key", identity("a").key().to_pem());
    write("crt", identity("b").chain_pem());
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let name = format!("file-cert:{}~{}", path("crt").display(), path("key").display());
    accepted(compiler.apply(LISTENER, vec![serving(&name)], &[], now));
    let first = read(&mut compiler, now);
    assert!(first[0].reason.contains("the private key does not belong to the leaf certificate"), "{first:?}");
    let since = |compiler: &Compiler| compiler.list(Kind::Listener).remove(0).unusable_files.unwrap().at;
    let mut last = since(&compiler);
    for _ in 0..2 {
        write("crt", identity("c").chain_pem());
        assert_eq!(look_again(&mut compiler, now), first, "for the same reason");
        assert!(since(&compiler) > last);
        last = since(&compiler);
        assert_eq!((look_again(&mut compiler, now), since(&compiler)), (vec![], last), "nothing changed");
    }
}

#[test]
fn names_that_no_files_can_have_are_told() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![originating("file-root:/a~b")], &[], now));
    let rejected = read(&mut compiler, now);
    assert!(rejected[0].reason.starts_with("`file-root:/a~b` names no files"), "{rejected:?}");
    assert!(told(&compiler, Kind::Cluster).is_some());
}

#[test]
fn files_that_nothing_uses_any_more_are_forgotten_and_the_identity_is_not() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), identity("a").roots_pem()).unwrap();
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    compiler.set_identity(&sds_grpc(), &identity("a"), now).unwrap();
    let mutual = update::<ListenerProto>(&format!("{{name: l, address: {ANY_80}, filter_chains: [{{{MTLS}, filters: [{}]}}]}}", tcp("c")));
    accepted(compiler.apply(LISTENER, vec![mutual], &[], now));
    accepted(compiler.apply(CLUSTER, vec![originating(&format!("file-root:{}", file.path().display()))], &[], now));
    accepted(read(&mut compiler, now));
    assert!(compiler.is_settled());
    assert_eq!((compiler.files().len(), compiler.secrets().count()), (1, 3));
    accepted(compiler.apply(CLUSTER, Vec::new(), &["c".to_owned()], now));
    accepted(compiler.apply(LISTENER, Vec::new(), &["l".to_owned()], now));
    let mut left: Vec<String> = compiler.secrets().map(|(key, _)| key.name.to_string()).collect();
    left.sort();
    assert_eq!((compiler.files().len(), left), (0, vec!["ROOTCA".to_owned(), "default".to_owned()]));
}
