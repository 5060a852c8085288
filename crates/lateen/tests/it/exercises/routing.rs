//! Which version answers: subsets, weights, matches, source labels, delegates.

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{PREFERENCE, RECOMMENDATION, document, routes, rules, split, subsets, to};

exercises!("routing": without_rules_both_versions_answer, everything_to_one_version, canary_90_10, three_quarters_75_25, firefox_by_header,
    by_path_method_and_query, first_match_wins, by_source_labels, delegate, undefined_subset_names_the_cause, no_endpoints_names_the_cause);

fn without_rules_both_versions_answer(mesh: &Mesh) {
    settles("the whole chain answers, with both versions", || {
        let report = mesh.from("customer").load(PREFERENCE, 100)?;
        report.ensure_clean()?;
        report.share("preference", "v1").ensure_all()?;
        report.share("recommendation", "v2").ensure_near(0.5)
    });
}

fn everything_to_one_version(mesh: &Mesh) {
    for (version, other) in [("v1", "v2"), ("v2", "v1")] {
        mesh.apply(&routes(&format!("{{{}}}", to(version))));
        settles("one version answers", || mesh.from("preference").load(RECOMMENDATION, 20)?.share("recommendation", other).ensure_none());
        // Once it holds, it holds; and further up the chain too.
        let report = mesh.from("customer").load(PREFERENCE, 150).unwrap();
        report.ensure_clean().unwrap().share("recommendation", version).ensure_all().unwrap();
    }
}

fn splits(mesh: &Mesh, v1: u32, v2: u32) {
    mesh.apply(&split(v1, v2));
    settles("the split is as written", || {
        let report = mesh.from("customer").load(RECOMMENDATION, 400)?;
        report.ensure_clean()?.share("recommendation", "v2").ensure_near(f64::from(v2) / f64::from(v1 + v2))
    });
}

fn canary_90_10(mesh: &Mesh) {
    splits(mesh, 90, 10);
}

fn three_quarters_75_25(mesh: &Mesh) {
    splits(mesh, 75, 25);
}

fn firefox_by_header(mesh: &Mesh) {
    let firefox = format!("{{match: [{{headers: {{user-agent: {{regex: '.*Firefox.*'}}}}}}], {}}}", to("v2"));
    mesh.apply(&routes(&format!("{firefox}, {{{}}}", to("v1"))));
    // Through preference, which passes the header on: the rule stands at its sidecar.
    let firefox = ["-H", "user-agent: Mozilla/5.0 Firefox/130.0"];
    settles("Firefox sees v2", || mesh.from("customer").load_with(PREFERENCE, 30, &firefox)?.share("recommendation", "v2").ensure_all());
    let others = mesh.from("customer").load_with(PREFERENCE, 30, &["-H", "user-agent: Safari"]).unwrap();
    others.ensure_clean().unwrap().share("recommendation", "v1").ensure_all().unwrap();
}

/// Which version answers a request.
fn version(mesh: &Mesh, path: &str, options: &[&str]) -> anyhow::Result<String> {
    let answer = mesh.from("customer").ask(&format!("http://recommendation:8080{path}"), options);
    answer.ensure_status(200)?.version()
}

fn by_path_method_and_query(mesh: &Mesh) {
    let rule = |condition: &str| format!("{{match: [{{{condition}}}], {}}}", to("v2"));
    let all = [
        rule("uri: {exact: /exactly}"),
        rule("uri: {prefix: /before}"),
        rule("uri: {regex: '/v[0-9]+/items'}"),
        rule("uri: {exact: /SHOUTED}, ignoreUriCase: true"),
        rule("method: {exact: PUT}"),
        rule("queryParams: {beta: {exact: 'yes'}}"),
        rule("headers: {x-user: {exact: jason}}, withoutHeaders: {x-banned: {}}"),
        format!("{{{}}}", to("v1")),
    ];
    mesh.apply(&routes(&all.join(", ")));
    settles("the rules have arrived", || check!(version(mesh, "/exactly", &[])? == "v2", "v1 answers"));
    let cases: [(&str, &[&str], &str); 13] = [
        ("/exactly/not", &[], "v1"),
        ("/before", &[], "v2"),
        ("/before/any/thing", &[], "v2"),
        ("/not/before", &[], "v1"),
        ("/v12/items", &[], "v2"),
        ("/v12/items/more", &[], "v1"),
        ("/shouted", &[], "v2"),
        ("/", &["-X", "PUT"], "v2"),
        ("/", &["-X", "POST"], "v1"),
        ("/?beta=yes", &[], "v2"),
        ("/?beta=yesterday", &[], "v1"),
        ("/", &["-H", "x-user: jason"], "v2"),
        ("/", &["-H", "x-user: jason", "-H", "x-banned: 1"], "v1"),
    ];
    for (path, options, expected) in cases {
        assert_eq!(version(mesh, path, options).unwrap(), expected, "{path} {options:?}");
    }
}

fn first_match_wins(mesh: &Mesh) {
    let rule = |condition: &str, version: &str| format!("{{match: [{{uri: {condition}}}], {}}}", to(version));
    mesh.apply(&routes(&format!("{}, {}, {{{}}}", rule("{prefix: /a}", "v2"), rule("{exact: /a/b}", "v1"), to("v1"))));
    settles("the first rule holds though a later one is more exact", || check!(version(mesh, "/a/b", &[])? == "v2", "v1 answers"));
    assert_eq!(version(mesh, "/c", &[]).unwrap(), "v1");
}

fn by_source_labels(mesh: &Mesh) {
    let rule = format!("{{match: [{{sourceLabels: {{app: preference}}}}], {}}}", to("v2"));
    mesh.apply(&routes(&format!("{rule}, {{{}}}", to("v1"))));
    settles("preference reaches v2", || mesh.from("preference").load(RECOMMENDATION, 20)?.share("recommendation", "v2").ensure_all());
    settles("customer reaches v1", || mesh.from("customer").load(RECOMMENDATION, 20)?.share("recommendation", "v1").ensure_all());
}

fn delegate(mesh: &Mesh) {
    let root = "{match: [{uri: {prefix: /reco}}], delegate: {name: reco-routes}}";
    let reco = format!("{{match: [{{uri: {{prefix: /reco/new}}}}], {}}}, {{{}}}", to("v2"), to("v1"));
    // A delegate has no hosts of its own.
    let delegate = document("VirtualService", "reco-routes", &format!("http: [{reco}]"));
    mesh.apply(&(subsets() + &delegate + &rules("recommendation", &format!("{root}, {{directResponse: {{status: 418}}}}"))));
    settles("the delegate's rules hold", || check!(version(mesh, "/reco/new", &[])? == "v2", "v1 answers"));
    assert_eq!(version(mesh, "/reco/old", &[]).unwrap(), "v1");
    assert_eq!(mesh.from("customer").get(RECOMMENDATION).status, 418, "what the root does not delegate stays with it");
}

fn undefined_subset_names_the_cause(mesh: &Mesh) {
    let output = mesh.apply_as("undefined.yaml", &routes(&format!("{{{}}}", to("v9"))));
    // It is told when it is written, with its place, and does not hold up the rest.
    let told = output.err.lines().find(|l| l.contains("v9")).unwrap_or_else(|| panic!("nobody says that v9 is undefined: {output:?}"));
    assert!(told.contains("undefined.yaml:") && told.contains("subset"), "{told}");
    settles("callers get 503", || mesh.from("customer").get(RECOMMENDATION).ensure_status(503).map(drop));
    if !mesh.is_envoy() {
        // Envoy answers with an empty body; ours says in words what is missing.
        let answer = mesh.from("customer").get(RECOMMENDATION);
        assert!(answer.body.contains("v9"), "the answer names the subset: {answer:?}");
    }
}

fn no_endpoints_names_the_cause(mesh: &Mesh) {
    let empty = document("DestinationRule", "recommendation", "host: recommendation, subsets: [{name: none, labels: {version: v77}}]");
    mesh.apply(&(empty + &rules("recommendation", &format!("{{{}}}", to("none")))));
    settles("callers get 503 with the reason", || {
        let answer = mesh.from("customer").get(RECOMMENDATION);
        answer.ensure_status(503)?;
        check!(answer.body.contains("no healthy upstream"), "{answer:?}")
    });
}
