//! What becomes of a request on its way: rewrite, redirect, direct response, header operations, CORS.
use anyhow::ensure;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{RECOMMENDATION, routes, to};

exercises!("requests": rewrite, redirect, direct_response, header_operations, large_bodies_pass);

fn rewrite(mesh: &Mesh) {
    let prefix = format!("{{match: [{{uri: {{prefix: /old}}}}], rewrite: {{uri: /new, authority: elsewhere.example}}, {}}}", to("v1"));
    let regex = format!(
        "{{match: [{{uri: {{prefix: /item}}}}], rewrite: {{uriRegexRewrite: {{match: '/item/([0-9]+)', rewrite: '/things?id=\\1'}}}}, {}}}",
        to("v1")
    );
    mesh.apply(&routes(&format!("{prefix}, {regex}, {{{}}}", to("v1"))));
    settles("the path is rewritten", || {
        let answer = mesh.from("customer").get("http://recommendation:8080/old/a?b=c");
        let (path, host) = (answer.saw("/path")?, answer.saw("/headers/host")?);
        ensure!(path == "/new/a?b=c" && host == "elsewhere.example", "{path} {host}");
        let path = mesh.from("customer").get("http://recommendation:8080/item/12").saw("/path")?;
        check!(path == "/things?id=12", "{path}")
    });
    assert_eq!(mesh.from("customer").get("http://recommendation:8080/other").saw("/path").unwrap(), "/other");
}

fn redirect(mesh: &Mesh) {
    let rule = "{match: [{uri: {prefix: /moved}}], redirect: {uri: /here, authority: new.example, redirectCode: 307}}";
    mesh.apply(&routes(&format!("{rule}, {{redirect: {{uri: /default}}}}")));
    settles("the redirect is answered", || {
        let answer = mesh.from("customer").get("http://recommendation:8080/moved/x");
        answer.ensure_status(307)?;
        let location = answer.header("location").unwrap_or_default();
        check!(location == "http://new.example/here", "{location}")
    });
    assert_eq!(mesh.from("customer").get(RECOMMENDATION).status, 301, "a redirect without a code is permanent");
}

fn direct_response(mesh: &Mesh) {
    let rule = "{match: [{uri: {exact: /teapot}}], directResponse: {status: 418, body: {string: 'short and stout'}}}";
    mesh.apply(&routes(&format!("{rule}, {{{}}}", to("v1"))));
    settles("the sidecar answers itself", || {
        let answer = mesh.from("customer").get("http://recommendation:8080/teapot");
        answer.ensure_status(418)?;
        check!(answer.body.trim_end() == "short and stout", "{answer:?}")
    });
    assert_eq!(mesh.from("customer").get(RECOMMENDATION).status, 200);
}

fn header_operations(mesh: &Mesh) {
    let whole = "headers: {request: {set: {x-set: whole}, add: {x-add: more}, remove: [x-gone]}, response: {set: {x-answered: by-route}}}";
    let part = "headers: {response: {add: {x-subset: part}, remove: [x-app-chain]}}";
    mesh.apply(&routes(&format!("{{{whole}, route: [{{destination: {{host: recommendation, subset: v1}}, {part}}}]}}")));
    settles("headers are changed both ways", || {
        let options = ["-H", "x-set: mine", "-H", "x-add: one", "-H", "x-gone: here"];
        let answer = mesh.from("customer").ask(RECOMMENDATION, &options);
        let json = answer.json()?;
        let headers = &json["headers"];
        ensure!(headers["x-set"] == "whole" && headers["x-gone"].is_null(), "{headers:#}");
        ensure!(headers["x-add"] == "one,more", "{headers:#}");
        ensure!(answer.header("x-answered") == Some("by-route") && answer.header("x-subset") == Some("part"), "{answer:?}");
        check!(answer.header("x-app-chain").is_none(), "{answer:?}")
    });
}

fn large_bodies_pass(mesh: &Mesh) {
    // Larger than any buffer on the way, down and up.
    let down = mesh.from("customer").get("http://recommendation:8080/bytes/5000000");
    assert_eq!((down.status, down.body.trim_end().len()), (200, 5_000_000), "{}", down.error);
    let body = "y".repeat(100_000);
    let up = mesh.from("customer").ask("http://recommendation:8080/echo", &["-X", "POST", "--data", &body]);
    assert_eq!((up.status, up.body.trim_end() == body), (200, true), "{} bytes {}", up.body.len(), up.error);
}
