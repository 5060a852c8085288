//! Routes and endpoints that are in files.
use super::*;
use crate::compile::{SecretSource, in_file};

/// The connection managers of two listeners, both with the routes `r`: of this source, and of the aggregated stream.
fn two(source: &str) -> Vec<Update> {
    let listener = |name: &str, port: u16, source: &str| {
        let address = format!("{{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}");
        let manager = manager(&format!("rds: {{route_config_name: r, config_source: {source}}}"));
        update::<ListenerProto>(&format!("{{name: {name}, address: {address}, filter_chains: [{{filters: [{manager}]}}]}}"))
    };
    vec![listener("file", 80, source), listener("ads", 81, "{ads: {}}")]
}

fn names(compiler: &mut Compiler) -> Vec<String> {
    compiler.snapshot().listeners.iter().map(|l| l.name.to_string()).collect()
}

#[test]
fn what_a_file_has_is_apart_from_what_has_its_name_elsewhere() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    for field in ["{path: 'PATH'}", "{path_config_source: {path: 'PATH'}}"] {
        accepted(compiler.apply(LISTENER, two(&field.replace("PATH", path)), &[], now));
        let wanted: Vec<String> = compiler.wanted().routes.iter().map(ToString::to_string).collect();
        assert_eq!(wanted, [in_file(path, "r"), "r".to_owned()]);
    }
    accepted(compiler.apply(ROUTE, vec![routes("c")], &[], now));
    assert_eq!(names(&mut compiler), ["ads"]);
    assert_eq!(compiler.waiting(), ["listener file"]);
    let in_file_now = Update { name: in_file(path, "r"), ..routes("other") };
    accepted(compiler.apply_from(&SecretSource::Path(path.to_owned()), ROUTE, vec![in_file_now.clone()], &[], now));
    assert_eq!(names(&mut compiler), ["file", "ads"]);
    // A discovery server cannot send it.
    let sent = compiler.apply(ROUTE, vec![in_file_now], &[], now);
    assert!(sent[0].reason.starts_with("name: holds a zero byte") && sent[0].name == "r", "{sent:?}");
}

#[test]
fn endpoints_of_a_file_come_and_when_they_cannot_the_cluster_goes_on() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let source = SecretSource::Path(path.to_owned());
    let eds = EDS.replace("{ads: {}}", &format!("{{path: '{path}'}}"));
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&eds)], &[], now));
    assert!(compiler.snapshot().cluster_named("c").is_none());
    compiler.refuse(&source, ENDPOINT, &[in_file(path, "s")], now);
    assert!(hosts(&mut compiler, "c").is_empty());
    let sent = Update { name: in_file(path, "s"), ..endpoints(&["10.0.0.1"]) };
    accepted(compiler.apply_from(&source, ENDPOINT, vec![sent], &[], now));
    assert_eq!(hosts(&mut compiler, "c").len(), 1);
}

#[test]
fn what_is_refused_again_and_again_is_settled_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let source = SecretSource::Path(path.to_owned());
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let eds = EDS.replace("{ads: {}}", &format!("{{path: '{path}'}}"));
    let listener = two(&format!("{{path: '{path}'}}")).remove(0);
    accepted(compiler.apply(CLUSTER, vec![update::<ClusterProto>(&eds)], &[], now));
    accepted(compiler.apply(LISTENER, vec![listener], &[], now));
    let mut settles = |type_url: &str, name: &str| {
        // Only settling finds that nothing waits any more.
        compiler.settled = false;
        compiler.refuse(&source, type_url, &[in_file(path, name)], now);
        compiler.settled
    };
    assert!(!settles(ENDPOINT, "s") && settles(ROUTE, "r"), "each is waited for");
    assert!(!settles(ENDPOINT, "s") && !settles(ROUTE, "r"), "nobody waits for them any more");
    assert!(settles(ENDPOINT, "other"));
}

#[test]
fn a_file_that_is_not_there_and_hosts_to_be_discovered_are_refused() {
    let (mut compiler, now) = (Compiler::new(), Instant::now());
    let missing = compiler.apply(LISTENER, two("{path_config_source: {path: /no/such.yaml}}"), &[], now).remove(0).reason;
    let expected = "rds.config_source.path_config_source.path: `/no/such.yaml` does not exist";
    assert!(missing.ends_with(expected), "{missing}");
    let eds = EDS.replace("{ads: {}}", "{path: /no/such.yaml}");
    let missing = compiler.apply(CLUSTER, vec![update::<ClusterProto>(&eds)], &[], now).remove(0).reason;
    assert_eq!(missing, "eds_cluster_config.eds_config.path: `/no/such.yaml` does not exist");
    let sent = update::<RouteProto>("{name: r, vhds: {config_source: {ads: {}}}}");
    let sent = Update { name: in_file("/f", "r"), ..sent };
    let refused = compiler.apply_from(&SecretSource::Path("/f".to_owned()), ROUTE, vec![sent], &[], now).remove(0).reason;
    assert!(refused.starts_with("vhds: "), "{refused}");
}
