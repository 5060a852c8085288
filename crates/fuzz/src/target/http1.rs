//! HTTP/1 through the real codecs: what is understood must not depend on how the bytes were cut on their way.
use lateen_proxy::fuzzing;

pub(crate) fn requests(data: &[u8]) {
    let whole = fuzzing::requests(data, data.len().max(1));
    for size in [1, 7] {
        let cut = fuzzing::requests(data, size);
        assert_eq!(whole, cut, "cut every {size} bytes: {}", data.escape_ascii());
    }
}

pub(crate) fn responses(data: &[u8]) {
    for head in [false, true] {
        let whole = fuzzing::responses(data, data.len().max(1), head);
        assert_eq!(whole, fuzzing::responses(data, 1, head), "{}", data.escape_ascii());
    }
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    [
        "GET /a?b=c#d HTTP/1.1\r\nHost: a:80\r\nAccept: */*\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nhost: b\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4;x=y\r\nwxyz\r\n0\r\nx-end: 1\r\n\r\nGET / HTTP/1.1\r\nhost: b\r\n\r\n",
        "GET http://a/b HTTP/1.1\r\nhost: a\r\nconnection: close, x-one\r\nx-one: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\nexpect: 100-continue\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\nbytes",
        "OPTIONS * HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\nhost: a\n\n",
        "POST / HTTP/1.1\r\nhost: a\r\n\r\n4;x=y\r\nwxyz\r\n0\r\nx-end: 1",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(crate) fn response_seeds() -> Vec<Vec<u8>> {
    [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nuntil the end",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nraw",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
