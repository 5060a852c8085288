//! Pages of the admin server whose content is put together when somebody asks.
use std::io::Write;

use serde_json::Value;

use crate::endings::whole;
use crate::support::{Upstream, admin, eventually, free_port};

#[test]
fn what_the_bootstrap_gave_is_dumped_and_what_its_clusters_are_like_is_counted() {
    let port = free_port();
    let upstream = Upstream::ok("x");
    let text = format!("admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}\n");
    let (_runtime, process, _) = whole(&text, &upstream);
    eventually(|| admin(port, "GET", "/ready").0 == 200);

    let (_, dump) = admin(port, "GET", "/config_dump");
    let dump: Value = serde_json::from_str(&dump).unwrap();
    let bootstrap = &dump["configs"][0]["bootstrap"];
    assert_eq!(bootstrap["admin"]["address"]["socket_address"]["port_value"], port);
    let names = |field: &str| bootstrap["static_resources"][field].as_array().into_iter().flatten().map(|r| r["name"].clone()).collect();
    let (listeners, clusters): (Vec<Value>, Vec<Value>) = (names("listeners"), names("clusters"));
    assert_eq!((listeners.len(), clusters.len()), (1, 1), "{bootstrap:#}");
    assert_eq!(dump["configs"][1]["static_clusters"][0]["cluster"]["name"], clusters[0]);
    assert_eq!(
        dump["configs"][1]["static_clusters"][0]["cluster"]["load_assignment"],
        bootstrap["static_resources"]["clusters"][0]["load_assignment"]
    );

    let name = clusters[0].as_str().unwrap();
    eventually(|| admin(port, "GET", "/stats?filter=membership").1.contains(&format!("cluster.{name}.membership_total: 1\n")));
    let (_, stats) = admin(port, "GET", "/stats?filter=cluster");
    for figure in ["membership_healthy: 1", "membership_change: 1", "circuit_breakers.default.rq_open: 0"] {
        assert!(stats.contains(&format!("cluster.{name}.{figure}\n")), "no {figure} in\n{stats}");
    }
    let (_, metrics) = admin(port, "GET", "/stats/prometheus");
    assert!(metrics.contains(&format!("envoy_cluster_membership_total{{envoy_cluster_name=\"{name}\"}} 1\n")), "{metrics}");
    drop(process);
}

#[test]
fn who_asks_for_nothing_or_reads_nothing_keeps_nobody_else_from_an_answer() {
    let port = free_port();
    let upstream = Upstream::ok("x");
    let text = format!("admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}\n");
    let (_runtime, process, _) = whole(&text, &upstream);
    eventually(|| admin(port, "GET", "/ready").0 == 200);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let open = |ask: &str| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // Soon full of what is not read.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&address.into()).unwrap();
        let mut stream = std::net::TcpStream::from(socket);
        stream.write_all(ask.as_bytes()).unwrap();
        stream
    };
    let silent: Vec<_> = (0..70).map(|_| open("")).collect();
    assert_eq!(admin(port, "GET", "/ready").0, 200);
    // Page after page that nobody reads.
    let ask = "GET /help HTTP/1.1\r\nhost: a\r\n\r\n".repeat(60);
    let greedy: Vec<_> = (0..66).map(|_| open(&ask)).collect();
    let started = std::time::Instant::now();
    assert_eq!(admin(port, "GET", "/ready").0, 200);
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
    drop((silent, greedy, process));
}
