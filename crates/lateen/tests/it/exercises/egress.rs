//! To hosts outside the mesh: allowed, refused, and allowed by a ServiceEntry.
use std::net::UdpSocket;

use super::exercises;
use crate::mesh::{Mesh, settles};
use crate::process::Background;
use crate::world::{RECOMMENDATION, document, mesh_config};

exercises!("egress": any_is_the_default, registry_only_refuses_unknown_hosts, a_service_entry_opens_the_way);

/// A server on the machine, at an address that is reached from elsewhere too; `None` where there is no such address.
struct Outside {
    address: String,
    _server: Background,
}

fn outside(mesh: &Mesh) -> Option<Outside> {
    // No packet leaves: connecting a datagram socket only asks for the route.
    let probe = UdpSocket::bind("0.0.0.0:0").ok()?;
    let ip = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()).ok()?.ip();
    if ip.is_loopback() || ip.is_unspecified() {
        return None;
    }
    let port = std::net::TcpListener::bind((ip, 0)).and_then(|l| l.local_addr()).ok()?.port();
    let server = mesh.outside().start("lateen", &["app", "--name", "outside", "--address", &ip.to_string(), "--port", &port.to_string()]);
    let address = format!("{ip}:{port}");
    settles("the server outside answers", || mesh.outside().get(&format!("http://{address}/")).ensure_status(200).map(drop));
    Some(Outside { address, _server: server })
}

fn skipped() {
    eprintln!("skipped: this machine has no address but loopback, so nothing is outside the mesh");
}

fn any_is_the_default(mesh: &Mesh) {
    let Some(outside) = outside(mesh) else { return skipped() };
    settles("a host nobody knows is reached", || {
        let answer = mesh.from("customer").get(&format!("http://{}/", outside.address));
        check!(answer.ensure_status(200)?.saw("/service")? == "outside", "{answer:?}")
    });
}

fn registry_only_refuses_unknown_hosts(mesh: &Mesh) {
    mesh.apply(&mesh_config("outboundTrafficPolicy: {mode: REGISTRY_ONLY}"));
    settles("an unknown host on a port of the mesh gets 502", || {
        mesh.from("customer").ask(RECOMMENDATION, &["-H", "host: unknown.example"]).ensure_status(502).map(drop)
    });
    if let Some(outside) = outside(mesh) {
        settles("an unknown address is not connected", || {
            let answer = mesh.from("customer").get(&format!("http://{}/", outside.address));
            check!(answer.status == 0 || answer.status == 502, "{answer:?}")
        });
    }
    mesh.from("customer").load(RECOMMENDATION, 30).unwrap().ensure_clean().unwrap();
    mesh.apply(&mesh_config("outboundTrafficPolicy: {mode: ALLOW_ANY}"));
    settles("open again without a restart", || {
        mesh.from("customer").ask(RECOMMENDATION, &["-H", "host: unknown.example"]).ensure_status(200).map(drop)
    });
}

fn a_service_entry_opens_the_way(mesh: &Mesh) {
    let Some(outside) = outside(mesh) else { return skipped() };
    let (ip, port) = outside.address.rsplit_once(':').expect("an address with a port");
    mesh.apply(&mesh_config("outboundTrafficPolicy: {mode: REGISTRY_ONLY}"));
    let url = format!("http://{}/", outside.address);
    settles("closed at first", || check!(mesh.from("customer").get(&url).status != 200, "open"));
    let ports = format!("ports: [{{number: {port}, name: http, protocol: HTTP}}]");
    let spec = format!(
        "hosts: [outside.example], addresses: [{ip}], {ports}, location: MESH_EXTERNAL, resolution: STATIC, endpoints: [{{address: {ip}}}]"
    );
    mesh.apply(&document("ServiceEntry", "outside", &spec));
    settles("the entry opens it", || {
        let answer = mesh.from("customer").ask(&url, &["-H", "host: outside.example"]);
        check!(answer.ensure_status(200)?.saw("/service")? == "outside", "{answer:?}")
    });
}
