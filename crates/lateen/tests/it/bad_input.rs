//! Broken YAML on a running mesh: one clear message with its place, and nothing else is disturbed.
use std::time::Duration;

use crate::exercises::exercises;
use crate::mesh::{Mesh, settles};
use crate::process::Output;
use crate::report::Report;
use crate::world::{RECOMMENDATION, document, routes, to};

exercises!("bad_input": each_gives_one_message_and_disturbs_nothing, a_bad_document_does_not_hold_up_its_neighbours, a_bad_change_keeps_the_good_rule,
    delegates_in_a_circle_are_told);

/// What is wrong, the file's text, and what the one message must contain, with its place.
fn broken() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let vs = |spec: &str| {
        format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: broken\nspec:\n{spec}").into_bytes()
    };
    let big = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big}}\ndata:\n  a: {}\n", "x".repeat(10 << 20));
    let deep = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: deep}}\ndata:\n  a: {}{}\n", "[".repeat(5000), "]".repeat(5000));
    let twice = "apiVersion: v1\nkind: Service\nmetadata: {name: twice}\nspec: {ports: [{port: 80}]}\n";
    vec![
        ("bad-indentation.yaml", vs("  hosts: [broken]\n   http: []\n"), "bad-indentation.yaml:7:"),
        ("tabs.yaml", vs("\thosts: [broken]\n"), "tabs.yaml:6:1: error: a tab"),
        (
            "wrong-type.yaml",
            vs("  hosts: broken\n  http: [{directResponse: {status: 200}}]\n"),
            "wrong-type.yaml:6:10: error: VirtualService default/broken: spec.hosts: wants a list",
        ),
        (
            "bad-duration.yaml",
            vs("  hosts: [broken]\n  http:\n  - timeout: fast\n    directResponse: {status: 200}\n"),
            "bad-duration.yaml:8:14: error: VirtualService default/broken: spec.http[0].timeout: wants a duration",
        ),
        (
            "unknown-field.yaml",
            vs("  hosts: [broken]\n  http:\n  - rout: []\n    directResponse: {status: 200}\n"),
            "did you mean \"route\"?",
        ),
        (
            "unknown-kind.yaml",
            b"apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: broken}\n".to_vec(),
            "unknown-kind.yaml:2:7: error: VirtualServise default/broken: unknown kind",
        ),
        ("no-resource.yaml", b"just some words\n".to_vec(), "no-resource.yaml:1:1: error: wants a resource"),
        (
            "duplicate-name.yaml",
            format!("{twice}---\n{twice}").into_bytes(),
            "duplicate-name.yaml:6:1: error: Service default/twice: is defined already",
        ),
        ("not-utf8.yaml", b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x\xff}\n".to_vec(), "not-utf8.yaml:3:"),
        ("ten-megabytes.yaml", big.into_bytes(), "ten-megabytes.yaml: error: the file has 10485"),
        ("deep.yaml", deep.into_bytes(), "deep.yaml:5:"),
    ]
}

/// What was said of mistakes, line by line.
fn errors(output: &Output) -> Vec<&str> {
    output.err.lines().filter(|l| l.contains("error")).collect()
}

fn each_gives_one_message_and_disturbs_nothing(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{{}}}", to("v1"))));
    settles("v1 answers", || mesh.from("customer").load(RECOMMENDATION, 20)?.share("recommendation", "v1").ensure_all());
    let load = mesh.from("customer").start_load(RECOMMENDATION, &["--rps", "100", "--duration", "300s"]);
    let mut wrong = Vec::new();
    for (file, bytes, expected) in broken() {
        let output = mesh.apply_bytes(file, &bytes);
        let said = errors(&output);
        if output.code != 1 || said.len() != 1 || !said[0].contains(expected) || said[0].len() > 1000 {
            wrong.push(format!("{file}: code {}, wanted one line with `{expected}`, got {said:#?}\n{}", output.code, output.out));
        }
        if output.took > Duration::from_secs(3) {
            wrong.push(format!("{file}: took {:?}", output.took));
        }
        let still = mesh.lateen(&["get", "vs", "broken"]);
        if still.code == 0 {
            wrong.push(format!("{file}: was taken: {}", still.out));
        }
    }
    mesh.all_ready().unwrap();
    let report = Report::read(&load.stop()).unwrap();
    report.ensure_clean().unwrap().share("recommendation", "v1").ensure_all().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn a_bad_document_does_not_hold_up_its_neighbours(mesh: &Mesh) {
    let bad = document("VirtualService", "bad", "hosts: [bad], http: [{rout: []}]");
    let output = mesh.apply_as("mixed.yaml", &(bad + &routes(&format!("{{{}}}", to("v2")))));
    assert_eq!((output.code, errors(&output).len()), (1, 1), "{output:?}");
    assert!(output.err.contains("mixed.yaml:4:"), "{output:?}");
    settles("the neighbour takes effect", || mesh.from("customer").load(RECOMMENDATION, 20)?.share("recommendation", "v2").ensure_all());
}

fn a_bad_change_keeps_the_good_rule(mesh: &Mesh) {
    mesh.apply(&routes(&format!("{{{}}}", to("v2"))));
    settles("v2 answers", || mesh.from("customer").load(RECOMMENDATION, 20)?.share("recommendation", "v2").ensure_all());
    let output = mesh.apply_as("worse.yaml", &routes("{timeout: soon, route: [{destination: {host: recommendation, subset: v1}}]}"));
    assert_eq!(output.code, 1, "{output:?}");
    // The control plane would have acted on it by the time another change is through: of a host without a service, on port 80.
    mesh.apply(&document("VirtualService", "later", "hosts: [later.example], http: [{directResponse: {status: 204}}]"));
    settles("a later change is through", || {
        mesh.from("customer").ask("http://istio-ingressgateway.istio-system/", &["-H", "host: later.example"]).ensure_status(204).map(drop)
    });
    mesh.from("customer").load(RECOMMENDATION, 50).unwrap().ensure_clean().unwrap().share("recommendation", "v2").ensure_all().unwrap();
}

fn delegates_in_a_circle_are_told(mesh: &Mesh) {
    let one = document("VirtualService", "first", "hosts: [circle.example], http: [{delegate: {name: second}}]");
    let two = document("VirtualService", "second", "http: [{delegate: {name: first}}]");
    let output = mesh.apply_as("circle.yaml", &(one + &two));
    assert!(output.err.contains("circle.yaml:") && output.err.contains("delegate"), "{output:?}");
    mesh.from("customer").load(RECOMMENDATION, 20).unwrap().ensure_clean().unwrap();
}
