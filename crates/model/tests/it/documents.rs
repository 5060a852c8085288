//! Files in all the forms that people have them: several documents, lists, JSON, CRLF, byte order marks, folders.
use std::fs;

use lateen_model::{Kind, Limits, Severity, load_paths, parse};

use crate::{messages, set};

const RULE: &str = "apiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\nmetadata:\n  name: NAME\nspec:\n  host: reviews\n";

fn names(text: &str) -> Vec<String> {
    set(text).iter().map(|resource| resource.meta().name.clone()).collect()
}

#[test]
fn documents_are_separate() {
    let text = format!("# heading\n---\n{}---\n# nothing\n---\n{}...\n", RULE.replace("NAME", "a"), RULE.replace("NAME", "b"));
    assert_eq!(names(&text), ["a", "b"]);
    let broken = format!("{}---\na: [\n---\n{}", RULE.replace("NAME", "a"), RULE.replace("NAME", "b"));
    let parsed = parse("f.yaml", broken.as_bytes(), &Limits::default());
    assert_eq!(parsed.resources.len(), 2);
    assert_eq!(parsed.diagnostics.len(), 1, "{:?}", parsed.diagnostics);
    assert_eq!(parsed.resources[1].origin().line(), 10);
}

#[test]
fn directives_belong_to_the_document_behind_them() {
    assert_eq!(names(&format!("%YAML 1.2\n---\n{}", RULE.replace("NAME", "a"))), ["a"]);
}

#[test]
fn lists_are_taken_apart_with_the_lines_of_their_items() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec: {ports: [{port: 80}]}\n- apiVersion: v1\n  kind: ServiceAccount\n  metadata: {name: b}\n";
    let resources = set(text);
    assert_eq!(resources.service("default", "a").unwrap().origin.line(), 4);
    assert_eq!(resources.service_account("default", "b").unwrap().origin.line(), 8);
}

#[test]
fn json_windows_lines_and_byte_order_marks() {
    let json = "{\n\t\"apiVersion\": \"networking.istio.io/v1\",\n\t\"kind\": \"DestinationRule\",\n\t\"metadata\": {\"name\": \"a\"},\n\t\"spec\": {\"host\": \"r\\u00e9views\"}\n}\n";
    assert_eq!(
        messages(json),
        [
            "f.yaml:5:11: error: DestinationRule default/a: spec.host: \"réviews\" is no host name: the part \"réviews\" is neither a name nor a wildcard"
        ]
    );
    let windows = format!("\u{feff}{}", RULE.replace("NAME", "a").replace('\n', "\r\n"));
    assert_eq!(names(&windows), ["a"]);
    assert_eq!(set(&windows).destination_rule("default", "a").unwrap().spec.host, "reviews");
}

#[test]
fn anchors_and_merges() {
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec:\n  host: reviews\n  trafficPolicy:\n    outlierDetection: &base\n      interval: 1s\n      baseEjectionTime: 2s\n  subsets:\n  - name: v1\n    labels: {version: v1}\n    trafficPolicy:\n      outlierDetection:\n        <<: *base\n        interval: 5s\n";
    let resources = set(text);
    let rule = &resources.destination_rule("default", "a").unwrap().spec;
    let outlier = rule.subsets[0].traffic_policy.as_ref().unwrap().outlier_detection.as_ref().unwrap();
    assert_eq!(outlier.interval.unwrap().as_secs(), 5);
    assert_eq!(outlier.base_ejection_time.unwrap().as_secs(), 2);
}

#[test]
fn folders_are_read_recursively_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("b/.git")).unwrap();
    for (file, name) in [("b/two.yml", "two"), ("a.yaml", "one"), ("b/three.json", "three"), ("b/.git/x.yaml", "x"), ("notes.txt", "y")] {
        fs::write(folder.path().join(file), RULE.replace("NAME", name)).unwrap();
    }
    std::os::unix::fs::symlink(folder.path(), folder.path().join("b/loop")).unwrap();
    let loaded = load_paths(&[folder.path()], "books", &Limits::default());
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    let names: Vec<&str> = loaded.resources.of_kind(Kind::DestinationRule).map(|rule| rule.meta().name.as_str()).collect();
    assert_eq!(names, ["one", "three", "two"]);
    assert!(loaded.resources.iter().all(|resource| resource.meta().namespace == "books"));
    assert_eq!(loaded.files.len(), 3);
}

#[test]
fn the_raw_document_starts_with_its_header() {
    let text = "spec: {host: reviews, subsets: []}\nmetadata: {labels: {b: c}, name: a}\nkind: DestinationRule\napiVersion: networking.istio.io/v1beta1\n";
    let raw = set(text).iter().next().unwrap().raw();
    assert_eq!(
        raw.to_string(),
        r#"{"apiVersion":"networking.istio.io/v1beta1","kind":"DestinationRule","metadata":{"name":"a","namespace":"default","labels":{"b":"c"}},"spec":{"host":"reviews","subsets":[]}}"#
    );
}

#[test]
fn fields_of_no_use_are_summed_up_once_a_kind() {
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, ownerReferences: []}}\nspec: {{priority: 1, containers: [{{name: c, resources: {{}}}}]}}\n"
        )
    };
    let parsed = parse("f.yaml", format!("{}---\n{}", pod("a"), pod("b")).as_bytes(), &Limits::default());
    assert_eq!(parsed.resources.len(), 2);
    let said: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["f.yaml: info: Pod: fields that Lateen does not use: spec.containers.resources, spec.priority"]);
    assert_eq!(parsed.diagnostics[0].severity, Severity::Info);
    let slip = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, imag: x}]}\n";
    assert_eq!(
        messages(slip),
        ["f.yaml:4:31: warning: Pod default/a: spec.containers[0].imag: not used by Lateen; did you mean \"image\"?"]
    );
}

#[test]
fn known_kinds_without_support_are_warnings() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {anything: goes}\n";
    assert_eq!(
        messages(text),
        [
            "f.yaml:2:7: warning: AuthorizationPolicy default/a: kind AuthorizationPolicy (security.istio.io/v1) is not supported yet and is left out; it protects nothing until it is"
        ]
    );
}

#[test]
fn json_escapes_beyond_the_first_plane() {
    let json = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "\u003c\ud83d\ude00\/\n"}}"#;
    assert_eq!(set(json).config_map("default", "a").unwrap().spec.data["a"], "<\u{1F600}/\n");
}
