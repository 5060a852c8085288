//! Broken files: each gives one clear message, and its neighbours in the folder load.
use std::fs;
use std::path::Path;

use lateen_model::{Limits, Severity, load_paths};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad");

/// Loads a bad file beside a good one and returns what is said, without the folder's name.
fn load_beside_a_good_file(name: &str, bytes: &[u8]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), bytes).unwrap();
    fs::copy(Path::new(FOLDER).join("good-neighbour.yaml"), folder.path().join("good-neighbour.yaml")).unwrap();
    let loaded = load_paths(&[folder.path()], "default", &Limits::default());
    assert!(loaded.resources.virtual_service("default", "neighbour").is_some(), "{name} took its neighbour down");
    assert!(loaded.resources.service("default", "reviews").is_some(), "{name} took its neighbour down");
    assert!(loaded.resources.virtual_service("default", "broken").is_none(), "{name} has a resource that must be left out");
    let prefix = format!("{}/", folder.path().display());
    loaded.diagnostics.iter().filter(|d| d.severity > Severity::Info).map(|d| d.to_string().replace(&prefix, "")).collect()
}

#[track_caller]
fn says(name: &str, expected: &[&str]) {
    let bytes = fs::read(Path::new(FOLDER).join(name)).unwrap();
    assert_eq!(load_beside_a_good_file(name, &bytes), expected);
}

#[test]
fn broken_syntax() {
    says(
        "bad-indentation.yaml",
        &[
            "bad-indentation.yaml:12:6: error: this is not YAML: while parsing a block mapping, did not find expected key; check the indentation and quotes here and above",
        ],
    );
    says("tabs.yaml", &["tabs.yaml:4:1: error: a tab is used for indentation; YAML wants spaces"]);
    says("not-utf8.yaml", &["not-utf8.yaml:4:12: error: this byte is not UTF-8 text; save the file as UTF-8"]);
    says("utf16.yaml", &["utf16.yaml:1:1: error: the file is UTF-16; save it as UTF-8"]);
    says("nul.yaml", &["nul.yaml:4:10: error: a NUL byte; this is not a text file"]);
    says(
        "not-a-resource.yaml",
        &["not-a-resource.yaml:1:1: error: wants a resource (a mapping with apiVersion, kind, metadata), not a string"],
    );
}

#[test]
fn too_much() {
    says("deep-nesting.yaml", &["deep-nesting.yaml:5:70: error: nested more than 64 levels deep"]);
    says("deep-blocks.yaml", &["deep-blocks.yaml:69:65: error: nested more than 64 levels deep"]);
    says("anchor-bomb.yaml", &["anchor-bomb.yaml:9:8: error: aliases copy more than 20000 values; this is refused"]);
    let big = format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: big\ndata:\n  a: {}\n", "x".repeat(10 << 20));
    assert_eq!(
        load_beside_a_good_file("big.yaml", big.as_bytes()),
        ["big.yaml: error: cannot be read: it has 10485825 bytes and at most 4194304 are read; split it into smaller files"]
    );
    let many = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: many}}\ndata: [{}]\n", "1,".repeat(600_000));
    assert_eq!(
        load_beside_a_good_file("many.yaml", many.as_bytes()),
        ["many.yaml:4:999986: error: the file has more than 500000 values; the rest is not read; split it into smaller files"]
    );
}

#[test]
fn wrong_content() {
    says(
        "wrong-types.yaml",
        &[
            "wrong-types.yaml:6:14: error: VirtualService default/broken: metadata.labels.version: wants a string, not the number `1.10`; write \"1.10\" in quotes",
            "wrong-types.yaml:8:10: error: VirtualService default/broken: spec.hosts: wants a list, each item a string, not the string \"reviews\"",
            "wrong-types.yaml:11:9: error: VirtualService default/broken: spec.http[0].match: wants a list, each item a mapping (HTTPMatchRequest), not a mapping; put `- ` before the first key",
            "wrong-types.yaml:13:16: error: VirtualService default/broken: spec.http[0].timeout: wants a duration such as 500ms, 5s or 1h30m, not the number `5`; write 5s if seconds are meant",
            "wrong-types.yaml:15:19: error: VirtualService default/broken: spec.http[0].retries.attempts: wants a whole number, not the string \"many\"",
            "wrong-types.yaml:18:23: error: VirtualService default/broken: spec.http[0].fault.delay.percentage: wants a mapping (Percent), not the number `50`; write `value: 50` on a line of its own under it",
            "wrong-types.yaml:19:23: error: VirtualService default/broken: spec.http[0].fault.delay.fixedDelay: wants a duration such as 500ms, 5s or 1h30m, not the string \"fast\"",
            "wrong-types.yaml:23:19: error: VirtualService default/broken: spec.http[0].route[0].destination.port: wants a mapping (PortSelector), not the number `9080`",
            "wrong-types.yaml:24:19: error: VirtualService default/broken: spec.http[0].route[0].weight: wants a whole number from 0 to 4294967295, not the number `-1`",
        ],
    );
    says(
        "unknown-fields.yaml",
        &[
            "unknown-fields.yaml:9:7: error: VirtualService default/broken: spec.http[0].rout: unknown field; did you mean \"route\"?",
            "unknown-fields.yaml:13:9: error: VirtualService default/broken: spec.http[0].fault.fixedDelay: this field does not belong here (in HTTPFaultInjection); it belongs under spec.http[0].fault.delay",
            "unknown-fields.yaml:17:13: error: VirtualService default/broken: spec.http[0].route[0].destination.subnet: unknown field; did you mean \"subset\"?",
        ],
    );
    says(
        "unknown-kind.yaml",
        &[
            "unknown-kind.yaml:2:7: error: VirtualServise default/broken: unknown kind VirtualServise (networking.istio.io/v1); did you mean \"VirtualService\"?",
        ],
    );
    says(
        "no-api-version.yaml",
        &[
            "no-api-version.yaml:1:1: error: DestinationRule default/broken: apiVersion is missing; write apiVersion: networking.istio.io/v1",
        ],
    );
    says(
        "duplicate-keys.yaml",
        &[
            "duplicate-keys.yaml:8:3: error: DestinationRule default/broken: the key \"host\" is given twice; it stands already at line 6; keep one of them",
        ],
    );
    says(
        "delegate-of-delegate.yaml",
        &["delegate-of-delegate.yaml:7:7: error: VirtualService default/broken: spec.http[0].delegate: a delegate cannot delegate further"],
    );
}

/// What people get wrong most: fields one level off, lists without dashes, names in the wrong case.
#[test]
fn misplaced_fields() {
    let vs = |rest: &str| format!("misplaced.yaml:{}", rest.replace("VS", "error: VirtualService default/broken:"));
    let dr = |rest: &str| format!("misplaced.yaml:{}", rest.replace("DR", "error: DestinationRule default/broken:"));
    let expected = [
        vs("5:1: VS hosts: this field does not belong here (in the resource); it belongs under spec"),
        vs("8:12: VS spec.http[0].match: wants a list, each item a mapping (HTTPMatchRequest), not a mapping; leave it out"),
        vs("11:7: VS spec.http[0].route[0].host: this field does not belong here (in HTTPRouteDestination); it belongs under spec.http[0].route[0].destination"),
        vs("12:7: VS spec.http[0].route[0].subset: this field does not belong here (in HTTPRouteDestination); it belongs under spec.http[0].route[0].destination"),
        vs("15:7: VS spec.http[0].retries.perTryTimout: unknown field; did you mean \"perTryTimeout\"?"),
        vs("17:7: VS spec.http[0].headers.add: this field does not belong here (in Headers); it belongs under spec.http[0].headers.request"),
        vs("18:14: VS spec.http[0].timeout: wants a duration such as 500ms, 5s or 1h30m, not \"5 s\"; write 5s"),
        dr("28:3: DR spec.labels: this field does not belong here (in DestinationRule); it belongs under spec.subsets"),
        dr("32:15: DR spec.trafficPolicy.loadBalancer.simple: \"round_robin\" is none of the accepted values UNSPECIFIED, LEAST_CONN, RANDOM, PASSTHROUGH, ROUND_ROBIN, LEAST_REQUEST; did you mean ROUND_ROBIN?"),
        dr("33:7: DR spec.trafficPolicy.loadBalancer: \"simple\" and \"consistentHash\" exclude each other; give one of simple, consistentHash"),
        dr("36:7: DR spec.trafficPolicy.outlierDetection.consecutive5xxError: unknown field; did you mean \"consecutive5xxErrors\"?"),
        dr("37:7: DR spec.trafficPolicy.outlierDetection.maxConnections: this field does not belong here (in OutlierDetection); it belongs under spec.trafficPolicy.connectionPool.tcp"),
        "misplaced.yaml:51:7: error: Gateway default/broken: spec.servers[0].port.hosts: this field does not belong here (in Port); it belongs under spec.servers[0]".to_owned(),
    ];
    says("misplaced.yaml", &expected.each_ref().map(String::as_str));
}

#[test]
fn the_first_of_two_with_one_name_stays() {
    let path = Path::new(FOLDER).join("duplicate-names.yaml");
    let loaded = load_paths(&[&path], "default", &Limits::default());
    assert_eq!(loaded.resources.service("default", "twice").unwrap().spec.ports[0].port, 80);
    let said: Vec<String> = loaded.diagnostics.iter().map(ToString::to_string).collect();
    let file = path.display();
    assert_eq!(
        said,
        [format!(
            "{file}:9:1: error: Service default/twice: is defined already at {file}:1; this one is left out; rename or remove one of them"
        )]
    );
}

#[test]
fn delegates_in_a_circle_are_told() {
    let loaded = load_paths(&[Path::new(FOLDER).join("cyclic-delegate.yaml")], "default", &Limits::default());
    let said: Vec<String> = lateen_model::analyze(&loaded.resources).iter().map(|d| d.message.clone()).collect();
    assert_eq!(
        said,
        [
            "delegates in a circle: default/first -> default/second -> default/first; this route is left out",
            "delegates in a circle: default/second -> default/first -> default/second; this route is left out",
        ]
    );
}

#[test]
fn what_cannot_be_opened_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = load_paths(&[folder.path().join("missing.yaml")], "default", &Limits::default());
    assert_eq!(loaded.diagnostics.len(), 1);
    assert!(loaded.diagnostics[0].to_string().contains("missing.yaml: error: cannot be read: No such file"), "{}", loaded.diagnostics[0]);
}
