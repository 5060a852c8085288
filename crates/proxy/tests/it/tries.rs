//! What belongs to a try: interim responses, limits of its own, and what its time and its end count in.
use std::io::Write;
use std::time::Duration;

use crate::retries::{HEDGED, slow, with_policy};
use crate::support::*;

#[test]
fn nothing_is_tried_again_once_the_caller_was_told_something() {
    let upstream = Upstream::start(|_, request, stream| {
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").unwrap();
        // A connection that ends here is no reason either, though the request could be repeated.
        !request.starts_with("GET /cut") && write_status(stream, 503)
    });
    let proxy = with_policy(&[upstream.port()], "{retry_on: 5xx, num_retries: 2}");
    for (nth, path) in ["/", "/cut"].into_iter().enumerate() {
        let mut stream = proxy.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut stream).status, 103);
        assert_eq!(Answer::read(&mut stream).status, 503);
        assert_eq!(upstream.seen().len(), nth + 1);
    }
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 0);
    // What began and broke off was no response of the cluster's.
    assert_eq!(["1xx", "5xx"].map(|class| proxy.stat(&format!("cluster.c.upstream_rq_{class}"))), [2, 1]);
}

#[test]
fn a_try_that_tells_the_caller_something_leaves_no_slower_one_behind() {
    let upstream = Upstream::start(|n, _, stream| {
        if n == 2 {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").unwrap();
        }
        std::thread::sleep(Duration::from_millis(900));
        write_ok(stream, if n == 1 { "slow" } else { "told" })
    });
    let proxy = Config::to(&[upstream.port()]).routes(HEDGED).start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 103);
    assert_eq!(Answer::read(&mut stream).body, "told");
}
