//! TCP's own probes: both sides of the proxy ask dead peers of idle connections, as the configuration says.
use std::net::SocketAddr;

use crate::support::*;

/// When the kernel asks next whether a connection's peer is there, in seconds; `None` where it never does.
fn next_probe(is: impl Fn(&str, &str) -> bool) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let established: Vec<Vec<&str>> = table.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
    let found = established.iter().find(|f| f[3] == "01" && is(f[1], f[2])).expect("the connection");
    let (kind, ticks) = found[5].split_once(':').unwrap();
    // A timer of the second kind is that of keepalive; ticks are hundredths.
    (kind == "02").then(|| u64::from_str_radix(ticks, 16).unwrap() / 100)
}

/// As the kernel's table has it.
fn shown(address: SocketAddr) -> String {
    format!("0100007F:{:04X}", address.port())
}

/// Of the connections from callers, and to the upstream.
fn probes(proxy: &Proxy, upstream: &Upstream) -> (Option<u64>, Option<u64>) {
    let (own, theirs) = (shown(proxy.address), shown(upstream.address));
    (next_probe(|local, _| local == own), next_probe(|_, remote| remote == theirs))
}

#[test]
fn idle_connections_are_probed_when_it_is_said_and_how_often() {
    for (listener, cluster_says, expected) in [
        ("", "", (None, None)),
        ("keepalive_time: 300", "", (Some(300), None)),
        ("", "keepalive_time: 200, keepalive_interval: 10, keepalive_probes: 3", (None, Some(200))),
        // Nought of anything turns it off.
        ("keepalive_time: 0", "keepalive_time: 0", (None, None)),
        ("keepalive_time: 300, keepalive_probes: 0", "keepalive_time: 200, keepalive_interval: 0", (None, None)),
    ] {
        let upstream = Upstream::ok("x");
        let mut config = Config::to(&[]);
        if !listener.is_empty() {
            config.listener = format!("tcp_keepalive: {{{listener}}}");
        }
        let more = if cluster_says.is_empty() {
            String::new()
        } else {
            format!("upstream_connection_options: {{tcp_keepalive: {{{cluster_says}}}}}")
        };
        config.clusters = vec![cluster("c", &[upstream.port()], &more)];
        let proxy = config.start();
        let mut caller = proxy.connect();
        std::io::Write::write_all(&mut caller, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        assert_eq!(Answer::read(&mut caller).status, 200, "{cluster_says}");
        // Another timer runs until what was sent is acknowledged.
        let near = |said: Option<u64>, found: Option<u64>| match (said, found) {
            (Some(said), Some(found)) => (said - 10..=said).contains(&found),
            (said, found) => said == found,
        };
        eventually(|| {
            let found = probes(&proxy, &upstream);
            near(expected.0, found.0) && near(expected.1, found.1)
        });
    }
}
