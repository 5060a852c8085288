//! From outside, through the ingress gateway on 127.0.0.1.
use anyhow::ensure;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{document, subsets};

exercises!("gateway": serves_its_hosts_and_no_others, steers_by_rules, the_chain_from_outside);

fn gateway() -> String {
    let server = "{port: {number: 80, name: http, protocol: HTTP}, hosts: ['shop.example', '*.shop.example']}";
    document("Gateway", "shop", &format!("selector: {{istio: ingressgateway}}, servers: [{server}]"))
}

fn bound(http: &str) -> String {
    document("VirtualService", "shop", &format!("hosts: [shop.example, www.shop.example], gateways: [shop], http: [{http}]"))
}

const SHOP: [&str; 2] = ["-H", "host: shop.example"];

fn serves_its_hosts_and_no_others(mesh: &Mesh) {
    mesh.apply(&(gateway() + &bound("{route: [{destination: {host: customer, port: {number: 8080}}}]}")));
    let ask = |host: &str| mesh.outside().ask(&mesh.gateway("/"), &["-H", &format!("host: {host}")]);
    settles("the host is served", || {
        let answer = ask("shop.example");
        check!(answer.ensure_status(200)?.saw("/service")? == "customer", "{answer:?}")
    });
    assert_eq!(ask("www.shop.example").status, 200);
    assert_eq!(ask("api.shop.example").status, 404, "a host of the Gateway without a rule");
    assert_eq!(ask("bank.example").status, 404, "a host that the Gateway does not have");
}

fn steers_by_rules(mesh: &Mesh) {
    let to = |version: &str| format!("route: [{{destination: {{host: recommendation, subset: {version}, port: {{number: 8080}}}}}}]");
    let beta = format!("{{match: [{{uri: {{prefix: /beta}}}}], rewrite: {{uri: /}}, {}}}", to("v2"));
    mesh.apply(&(subsets() + &gateway() + &bound(&format!("{beta}, {{{}}}", to("v1")))));
    settles("the gateway steers by path", || {
        let answer = mesh.outside().ask(&mesh.gateway("/beta/x"), &SHOP);
        ensure!(answer.ensure_status(200)?.version()? == "v2", "v1 answers");
        check!(answer.saw("/path")? == "/x" || answer.saw("/path")? == "//x", "{answer:?}")
    });
    let report = mesh.outside().load_with(&mesh.gateway("/"), 100, &SHOP).unwrap();
    report.ensure_clean().unwrap().share("recommendation", "v1").ensure_all().unwrap();
}

fn the_chain_from_outside(mesh: &Mesh) {
    mesh.apply(&(gateway() + &bound("{route: [{destination: {host: customer}}]}")));
    settles("customer, preference and recommendation answer", || {
        let report = mesh.outside().load_with(&mesh.gateway("/"), 100, &SHOP)?;
        report.ensure_clean()?;
        report.share("customer", "v1").ensure_all()?;
        ensure!(report.share("preference", "v1").hits == 100, "{:#}", report.0);
        report.share("recommendation", "v1").ensure_near(0.5)
    });
}
