//! Access log lines compared with what Envoy 1.40 printed for the same requests.
use http::HeaderMap;
use lateen_core::access_log::{ISTIO_JSON, ISTIO_TEXT};
use lateen_telemetry::ResponseFlags;
use lateen_telemetry::access_log::*;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Default)]
struct Request {
    request: HeaderMap,
    pseudo: HashMap<&'static str, &'static str>,
    response: HeaderMap,
    trailers: HeaderMap,
    texts: Vec<(Text, &'static str)>,
    upstream: Option<&'static str>,
    code: u16,
    flags: ResponseFlags,
    took: Option<Duration>,
    peer: Vec<String>,
    trace: Option<(u128, usize)>,
    no_call: bool,
}

impl Record for Request {
    fn start_time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::new(1_795_229_663, 844_312_000)
    }
    fn header(&self, of: HeadersOf, key: &HeaderKey) -> Option<&[u8]> {
        let pseudo = |name: &str| self.pseudo.get(name).map(|v| v.as_bytes());
        match key {
            HeaderKey::Method => pseudo("method"),
            HeaderKey::Path => pseudo("path"),
            HeaderKey::Authority => pseudo("authority"),
            HeaderKey::Scheme | HeaderKey::Status | HeaderKey::ContentLength => None,
            HeaderKey::Named(name) => match of {
                HeadersOf::Request => self.request.get(name),
                HeadersOf::Response => self.response.get(name),
                HeadersOf::ResponseTrailers => self.trailers.get(name),
            }
            .map(|v| v.as_bytes()),
        }
    }
    fn text(&self, of: Text) -> Option<&str> {
        self.texts.iter().find(|(key, _)| *key == of).map(|(_, value)| *value)
    }
    fn address(&self, of: AddressOf) -> Option<Address<'_>> {
        match of {
            AddressOf::UpstreamHost => match self.upstream?.parse() {
                Ok(address) => Some(Address::Socket(address)),
                Err(_) => self.upstream.map(Address::Named),
            },
            AddressOf::DownstreamRemote => Some(Address::Socket("[2001:db8::1]:4711".parse().unwrap())),
            AddressOf::DownstreamLocal => Some(Address::Socket("10.0.0.7:80".parse().unwrap())),
            _ => None,
        }
    }
    fn span(&self, of: Span) -> Option<Duration> {
        self.took.filter(|_| of == Span::Whole)
    }
    fn bytes(&self, of: Bytes) -> u64 {
        if of == Bytes::Sent { 335 } else { 0 }
    }
    fn response_code(&self) -> u16 {
        self.code
    }
    fn flags(&self) -> ResponseFlags {
        self.flags
    }
    fn peer_uri_sans(&self) -> &[String] {
        &self.peer
    }
    fn trace_id(&self) -> Option<(u128, usize)> {
        self.trace
    }
    fn is_grpc(&self) -> bool {
        !self.no_call
    }
}

fn request() -> Request {
    let mut request = Request {
        code: 404,
        took: Some(Duration::from_micros(4_900)),
        upstream: Some("127.0.0.1:29904"),
        texts: vec![
            (Text::Protocol, "HTTP/1.1"),
            (Text::RouteName, "rx"),
            (Text::ResponseCodeDetails, "via_upstream"),
            (Text::UpstreamClusterRaw, "outbound|80||c1.default.svc.cluster.local"),
        ],
        pseudo: HashMap::from([("method", "GET"), ("path", "/x?y=1"), ("authority", "127.0.0.1:29902")]),
        ..Request::default()
    };
    request.request.insert("user-agent", "curl/7.88.1".parse().unwrap());
    request.request.insert("x-request-id", "e89e9a0a-3ca3-440d-81ec-860342bcd732".parse().unwrap());
    request.request.insert("x-esc", "a\"b\\c\td".parse().unwrap());
    request.response.insert("x-envoy-upstream-service-time", "4".parse().unwrap());
    request
}

fn text(format: &str, record: &Request) -> String {
    let mut out = Vec::new();
    TextFormat::compile(format).unwrap().write(record, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn envoys_default_format() {
    assert_eq!(
        text(ENVOY_TEXT, &request()),
        "[2026-11-21T02:54:23.844Z] \"GET /x?y=1 HTTP/1.1\" 404 - 0 335 4 4 \"-\" \"curl/7.88.1\" \
         \"e89e9a0a-3ca3-440d-81ec-860342bcd732\" \"127.0.0.1:29902\" \"127.0.0.1:29904\"\n"
    );
}

#[test]
fn istios_default_format() {
    assert_eq!(
        text(ISTIO_TEXT, &request()),
        "[2026-11-21T02:54:23.844Z] \"GET /x?y=1 HTTP/1.1\" 404 - via_upstream - \"-\" 0 335 4 4 \"-\" \"curl/7.88.1\" \
         \"e89e9a0a-3ca3-440d-81ec-860342bcd732\" \"127.0.0.1:29902\" \"127.0.0.1:29904\" \
         outbound|80||c1.default.svc.cluster.local - 10.0.0.7:80 [2001:db8::1]:4711 - rx\n"
    );
}

#[test]
fn a_failure_shows_flags_and_details() {
    let mut failed = request();
    failed.code = 503;
    failed.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
    let format = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%";
    assert_eq!(text(format, &failed), "503 UF UpstreamConnectionFailure");
}

#[test]
fn arguments_lengths_and_fallbacks() {
    let record = request();
    for (format, expected) in [
        ("%REQ(USER-AGENT):4%", "curl"),
        ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/x?y=1"),
        ("%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH):256%", "/x"),
        ("%REQ(NOPE)%%REQ(NOPE2)%x", "--x"),
        ("%START_TIME(%Y/%m/%dT%H:%M:%S%z %s)%", "2026/11/21T02:54:23+0000 1795229663"),
        ("%START_TIME(%s.%3f)%|", "1795229663.844|"),
        ("100%% of %DURATION%", "100% of 4"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "2001:db8::1"),
        ("%DOWNSTREAM_REMOTE_PORT%", "4711"),
        ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "10.0.0.7"),
        ("%UPSTREAM_REMOTE_ADDRESS%", "127.0.0.1:29904"),
        ("%REQUEST_DURATION%", "-"),
        ("%PROTOCOL()%", "HTTP/1.1"),
        ("%UPSTREAM_LOCAL_ADDRESS%", "-"),
        ("plain", "plain"),
        ("", ""),
    ] {
        assert_eq!(text(format, &record), expected, "{format}");
    }
}

#[test]
fn grpc_status_comes_from_trailers_or_headers() {
    let mut record = request();
    assert_eq!(text("%GRPC_STATUS%", &record), "-");
    record.response.insert("grpc-status", "5".parse().unwrap());
    assert_eq!(text("%GRPC_STATUS%", &record), "NotFound");
    record.trailers.insert("grpc-status", "14".parse().unwrap());
    assert_eq!(text("%GRPC_STATUS% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%", &record), "Unavailable 14 14");
    record.no_call = true;
    assert_eq!(text("%GRPC_STATUS%", &record), "-", "only calls have one");
}

#[test]
fn grpc_status_is_written_in_three_ways() {
    let mut record = request();
    let all = "%GRPC_STATUS(CAMEL_STRING)% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)%";
    for (sent, written) in [
        ("0", "OK OK 0"),
        ("1", "Canceled CANCELLED 1"),
        ("5", "NotFound NOT_FOUND 5"),
        ("42", "42 42 42"),
        ("99999999999", "99999999999 99999999999 99999999999"),
        ("-1", "-1 -1 -1"),
        ("abc", "-1 -1 -1"),
        ("", "- - -"),
    ] {
        record.trailers.insert("grpc-status", sent.parse().unwrap());
        assert_eq!(text(all, &record), written, "{sent}");
    }
}

#[test]
fn what_is_there_and_empty_is_not_missing() {
    let mut record = request();
    record.request.insert("x-empty", "".parse().unwrap());
    assert_eq!(text("[%REQ(X-EMPTY)%] [%REQ(X-EMPTY?:METHOD)%] [%REQ(X-NONE)%]", &record), "[] [] [-]");
}

#[test]
fn the_response_its_trace_and_the_callers_names_are_told() {
    let mut record = request();
    let all = "%RESP(:STATUS)% %TRAILER(:STATUS)% %TRACE_ID% %DOWNSTREAM_PEER_URI_SAN%";
    assert_eq!(text(all, &record), "404 - - -");
    record.code = 0;
    record.trace = Some((0xabc, 16));
    record.peer = vec!["spiffe://a".to_owned(), "spiffe://b".to_owned()];
    assert_eq!(text(all, &record), "- - 0000000000000abc spiffe://a,spiffe://b");
    record.trace = Some((0xabc, 32));
    assert_eq!(text("%TRACE_ID%", &record), "00000000000000000000000000000abc");
}

#[test]
fn what_cannot_be_honoured_is_named() {
    for (format, named) in [
        ("%NONSENSE%", "NONSENSE"),
        ("%CEL(request.path)%", "CEL"),
        ("%FILTER_STATE(x)%", "FILTER_STATE"),
        ("%REQ()%", "REQ"),
        ("%REQ%", "REQ"),
        ("%REQ(a b)%", "a b"),
        ("%REQ(A?B?C)%", "at most two"),
        ("%PROTOCOL(x)%", "PROTOCOL"),
        ("%GRPC_STATUS(FOO)%", "SNAKE_STRING"),
        ("%GRPC_STATUS_NUMBER(x)%", "takes no argument"),
        ("%HOSTNAME(x)%", "takes no argument"),
        ("%UPSTREAM_WIRE_BYTES_SENT%", "not supported"),
        ("%UPSTREAM_WIRE_BYTES_RECEIVED%", "not supported"),
        ("%UPSTREAM_TLS_VERSION%", "not supported"),
        ("%UPSTREAM_TLS_CIPHER%", "not supported"),
        ("%UPSTREAM_PEER_URI_SAN%", "not supported"),
        ("%UPSTREAM_LOCAL_URI_SAN%", "not supported"),
        ("%DOWNSTREAM_TRANSPORT_FAILURE_REASON%", "not supported"),
        ("%START_TIME(%Q)%", "%Q"),
        ("%UPSTREAM_LOCAL%", "UPSTREAM_LOCAL"),
        ("%ENVIRONMENT()%", "ENVIRONMENT"),
        ("50% off", "byte 2"),
        ("%REQ(X", "byte 0"),
    ] {
        let error = TextFormat::compile(format).unwrap_err().to_string();
        assert!(error.contains(named), "{format}: {error}");
    }
}

#[test]
fn json_keeps_types_sorts_keys_and_escapes() {
    let format = serde_json::json!({
        "st": "%START_TIME%", "rc": "%RESPONSE_CODE%", "n": "%ROUTE_NAME%", "s": "a %RESPONSE_CODE% b %ROUTE_NAME%", "num": 5,
        "nest": {"d": "%DURATION%", "nope": "%REQ(NOPE)%", "esc": "%REQ(X-ESC)%", "both": "%REQ(NOPE)%%REQ(NOPE2)%x"},
        "lst": ["%PROTOCOL%", 1]
    });
    let mut out = Vec::new();
    JsonFormat::compile(&format).unwrap().write(&request(), &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "{\"lst\":[\"HTTP/1.1\",1],\"n\":\"rx\",\"nest\":{\"both\":\"--x\",\"d\":4,\"esc\":\"a\\\"b\\\\c\\td\",\"nope\":null},\
         \"num\":5,\"rc\":404,\"s\":\"a 404 b rx\",\"st\":\"2026-11-21T02:54:23.844Z\"}\n"
    );
}

#[test]
fn json_can_leave_missing_values_out() {
    let format = JsonFormat::from_pairs(&[("a", "%REQ(NOPE)%"), ("b", "%RESPONSE_CODE%"), ("c", "%ROUTE_NAME%")]).unwrap().omit_missing();
    let mut out = Vec::new();
    format.write(&request(), &mut out);
    assert_eq!(out, b"{\"b\":404,\"c\":\"rx\"}\n");
}

#[test]
fn what_holds_only_missing_values_is_left_out_with_them_but_lists_stay() {
    let line = |format: serde_json::Value| {
        let mut out = Vec::new();
        JsonFormat::compile(&format).unwrap().omit_missing().write(&request(), &mut out);
        String::from_utf8(out).unwrap()
    };
    let nothing = "%REQ(NOPE)%";
    let format = serde_json::json!({"a": {"b": nothing, "c": null}, "d": [nothing, 1.0, null, nothing, {"e": nothing}, 0.5], "f": [nothing],
        "g": "<%REQ(NOPE)%>", "h": "%REQ(NOPE)%%REQ(NOPE)%", "i": null, "j": ""});
    assert_eq!(line(format), "{\"d\":[1,0.5],\"f\":[],\"g\":\"<>\",\"h\":\"\",\"j\":\"\"}\n");
    assert_eq!(line(serde_json::json!({"a": nothing, "b": {"c": nothing}})), "{}\n");
}

#[test]
fn istios_json_has_its_24_keys() {
    let mut out = Vec::new();
    JsonFormat::from_pairs(ISTIO_JSON).unwrap().write(&request(), &mut out);
    let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(line.as_object().unwrap().len(), 24);
    assert_eq!(line["upstream_service_time"], "4");
    assert_eq!(line["duration"], 4);
    assert_eq!(line["x_forwarded_for"], serde_json::Value::Null);
}

#[test]
fn hostile_bytes_stay_valid_json() {
    let mut record = request();
    record.request.insert("x-esc", http::HeaderValue::from_bytes(b"\xff\xfe\"").unwrap());
    let mut out = Vec::new();
    JsonFormat::from_pairs(&[("v", "%REQ(X-ESC):3%")]).unwrap().write(&record, &mut out);
    assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok(), "{out:?}");
}

#[test]
fn deep_json_formats_are_refused() {
    let mut format = serde_json::json!("%PROTOCOL%");
    for _ in 0..100 {
        format = serde_json::json!({ "a": format });
    }
    assert!(matches!(JsonFormat::compile(&format), Err(InvalidFormat::TooDeep(_))));
}

#[test]
fn a_sink_writes_whole_lines_from_many_workers_and_reopens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let sink = Sink::open(&path).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..3 {
            let mut writer = sink.writer();
            scope.spawn(move || {
                for line in 0..2_000 {
                    writer.line(|out| out.extend_from_slice(format!("worker {worker} line {line} {}\n", "x".repeat(40)).as_bytes()));
                }
            });
        }
    });
    sink.flush(Duration::from_secs(5));
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(sink.dropped(), 0);
    assert_eq!(written.lines().count(), 6_000);
    assert!(written.lines().all(|line| line.starts_with("worker ") && line.len() > 50));

    std::fs::rename(&path, folder.path().join("old.log")).unwrap();
    sink.reopen();
    let mut writer = sink.writer();
    writer.line(|out| out.extend_from_slice(b"after\n"));
    writer.flush();
    sink.flush(Duration::from_secs(5));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
    assert!(Sink::open(std::path::Path::new("/nonexistent/x.log")).is_err());
}

#[test]
fn a_writer_that_falls_behind_costs_lines_not_waiting() {
    // A FIFO that is never read: the writer thread blocks in its first write once the pipe is full.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let opener = std::thread::spawn({
        let path = path.clone();
        move || std::fs::File::open(path).unwrap()
    });
    let sink = Sink::open(&path).unwrap();
    let reader = opener.join().unwrap();
    let mut writer = sink.writer();
    let started = std::time::Instant::now();
    let line = [b'y'; 32 * 1024];
    for _ in 0..1_000 {
        writer.line(|out| out.extend_from_slice(&line));
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(sink.dropped() > 700, "{}", sink.dropped());
    // Nor does the process wait at its end, and a rotation of that time is not forgotten.
    let started = std::time::Instant::now();
    sink.flush(Duration::from_millis(200));
    assert!(started.elapsed() < Duration::from_secs(2));
    std::fs::rename(&path, folder.path().join("old")).unwrap();
    sink.reopen();
    let reading = std::thread::spawn(move || std::io::copy(&mut { reader }, &mut std::io::sink()));
    let started = std::time::Instant::now();
    while !path.exists() {
        assert!(started.elapsed() < Duration::from_secs(10), "the file was not opened anew");
        std::thread::sleep(Duration::from_millis(5));
    }
    sink.flush(Duration::from_secs(5));
    drop((writer, sink));
    let _ = reading.join();
}

proptest::proptest! {
    /// Formats come from users: whatever they write compiles or is refused, and what compiles can be written.
    #[test]
    fn any_format_is_survived(format in "(%[A-Z_]{0,12}(\\([^%]{0,8}\\))?(:[0-9]{1,9})?%?|[ -~ü]){0,6}") {
        if let Ok(compiled) = TextFormat::compile(&format) {
            let mut out = Vec::new();
            compiled.write(&request(), &mut out);
        }
    }

    #[test]
    fn any_time_format_is_survived(format in "(%[A-Za-z0-9*%]{1,3}|.){0,8}", secs in 0u64..20_000_000_000) {
        if let Ok(compiled) = TimeFormat::compile(&format) {
            compiled.write(UNIX_EPOCH + Duration::from_secs(secs), &mut Vec::new());
        }
    }
}
