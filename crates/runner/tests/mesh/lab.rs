//! Capture between two pods made by hand: who reaches which port, by IPv4 and IPv6, with and without the sidecar's mark.
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use lateen_runner::namespaces::pod::{POD_INTERFACE, PodNamespaces, PodSetup};
use lateen_runner::namespaces::{birth, in_network, sysctl};
use lateen_runner::netlink::link::Links;
use lateen_runner::nft::capture::{Capture, SIDECAR_MARK};
use lateen_runner::store::addresses::{GATEWAY, GATEWAY6};
use socket2::{Domain, Socket, Type};

struct LabPod {
    namespaces: PodNamespaces,
    addresses: [IpAddr; 2],
}

fn pod(links: &mut Links, number: u8) -> LabPod {
    let run = PathBuf::from(format!("/run/p{number}"));
    std::fs::create_dir_all(&run).expect("a folder");
    let setup = PodSetup { hostname: format!("p{number}"), run, resolv_conf: String::new(), hosts: String::new(), mounts: vec![] };
    let namespaces = PodNamespaces::make(&setup).expect("namespaces");
    links.add_veth(&format!("pod{number}"), "mesh0", POD_INTERFACE, namespaces.net.as_fd()).expect("a veth pair");
    let addresses = [IpAddr::from([10, 244, 0, number]), format!("fd00:244::{number}").parse().expect("an address")];
    namespaces.address(&[(addresses[0], GATEWAY.into()), (addresses[1], GATEWAY6.into())]).expect("addresses");
    LabPod { namespaces, addresses }
}

/// Listeners on the ports that matter; each says its number to whoever connects.
fn listen(pod: &LabPod) {
    for port in [8080u16, 15001, 15006, 15020, 3306] {
        let listener = in_network(pod.namespaces.net.as_fd(), || TcpListener::bind(("::", port))).expect("a listener");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = std::io::Write::write_all(&mut &stream, port.to_string().as_bytes());
            }
        });
    }
}

/// The port of the listener that answers a connection from `pod` to `to`.
fn reached(pod: &LabPod, to: SocketAddr, mark: bool, source: Option<&str>) -> String {
    let connected = in_network(pod.namespaces.net.as_fd(), || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if mark {
            socket.set_mark(SIDECAR_MARK)?;
        }
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source.parse().expect("an address"), 0).into())?;
        }
        socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
        Ok(std::net::TcpStream::from(socket))
    });
    match connected.and_then(|s| s.set_read_timeout(Some(Duration::from_secs(2))).map(|()| s)).and_then(std::io::read_to_string) {
        Ok(text) => text,
        Err(e) => format!("{e:?}"),
    }
}

/// Runs in namespaces of its own.
pub(crate) fn inside() {
    birth::settle_inside().expect("own namespaces");
    let mut links = Links::open().expect("rtnetlink");
    links.up("lo").expect("lo");
    sysctl("net.ipv4.ip_forward", "1").expect("forwarding");
    let _ = sysctl("net.ipv6.conf.all.forwarding", "1");
    let _ = sysctl("net.ipv6.conf.default.accept_dad", "0");
    links.add_bridge("mesh0", [2, 0, 0, 0, 0, 1]).expect("a bridge");
    links.up("mesh0").expect("the bridge");
    links.add_address("mesh0", GATEWAY.into(), 16).expect("an address");
    let six = links.add_address("mesh0", GATEWAY6.into(), 64).is_ok();
    let (a, b) = (pod(&mut links, 20), pod(&mut links, 21));
    listen(&a);
    listen(&b);
    let capture = Capture { exclude_outbound: vec![3306], ..Capture::default() };
    for pod in [&a, &b] {
        in_network(pod.namespaces.net.as_fd(), || capture.ruleset().commit()).expect("rules");
        // Replacing the table is the same again.
        in_network(pod.namespaces.net.as_fd(), || capture.ruleset().commit()).expect("rules a second time");
    }
    for family in 0..if six { 2 } else { 1 } {
        let [at_a, at_b] = [a.addresses[family], b.addresses[family]];
        let loopback: IpAddr = if family == 0 { [127, 0, 0, 1].into() } else { "::1".parse().expect("an address") };
        let six_source = if family == 0 { "127.0.0.6" } else { "::6" };
        let check = |what: &str, found: String, expected: &str| assert_eq!(found, expected, "IPv{}: {what}", [4, 6][family]);
        let to = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
        check("an application's call is captured", reached(&a, to(at_b, 8080), false, None), "15001");
        check("a sidecar's call leaves, and enters by the other's sidecar", reached(&a, to(at_b, 8080), true, None), "15006");
        check("the sidecar's own ports are reached directly", reached(&a, to(at_b, 15020), true, None), "15020");
        check("an excluded port is not captured on the way out", reached(&a, to(at_b, 3306), false, None), "15006");
        check("an application that calls its own address is left alone", reached(&a, to(at_a, 8080), false, None), "8080");
        check("a sidecar that calls its own pod enters as inbound", reached(&a, to(at_a, 8080), true, None), "15006");
        check("loopback is left alone", reached(&a, to(loopback, 8080), false, None), "8080");
        check("loopback is left alone for the sidecar too", reached(&a, to(loopback, 8080), true, None), "8080");
        check("what the sidecar hands in is not captured again", reached(&a, to(at_a, 8080), true, Some(six_source)), "8080");
    }
    cross_check(&a, &capture);
    println!("lab done");
}

/// What `nft` reads back, where there is one.
fn cross_check(pod: &LabPod, _capture: &Capture) {
    let listed =
        in_network(pod.namespaces.net.as_fd(), || std::process::Command::new("nft").args(["list", "table", "inet", "lateen"]).output());
    let Ok(output) = listed else { return println!("no nft here: not cross-checked") };
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "type nat hook output priority -100; policy accept;",
        "meta l4proto tcp redirect to :15001",
        "tcp dport 15020 return",
        "tcp dport 3306 return",
        "meta mark 0x00000539 return",
        "meta skuid 1337 return",
        "oifname \"lo\" ip saddr 127.0.0.6 return",
    ] {
        let flat = text.replace("dstnat", "-100").replace("meta l4proto tcp oifname", "oifname").replace("meta l4proto tcp meta", "meta");
        assert!(flat.contains(line) || text.contains(line), "nft does not show `{line}` in:\n{text}");
    }
}
