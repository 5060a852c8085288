"""What the contestants are given: certificates, and configuration files of the same meaning for each."""
import json
import subprocess

SERVICE, ENTRY, MIDDLE, ADMIN = 28080, 28000, 28001, 28100
REVIEWS = "reviews.default.svc.cluster.local"
HOSTS = 1000
# Of many-routes.
ROUTES = 10_000
TYPE = "type.googleapis.com/envoy."
ACCESS_LOG = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% '
    '%CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% '
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" '
    '"%UPSTREAM_HOST%" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% '
    '%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n')


def make_certificates(folder):
    """A certificate authority and two workload certificates with SPIFFE ids, as the control plane would issue them."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*argv):
        done = subprocess.run(["openssl", *argv], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"openssl {argv[0]}: {done.stderr}")

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/O=cluster.local",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for name in ("client", "server"):
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=critical,URI:spiffe://cluster.local/ns/default/sa/{name}\n"
                              "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n")
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", extensions.name, "-out", f"{name}.crt")
        (folder / f"{name}.pem").write_text((folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text())


# -------------------------------------------------------------------------- Envoy's API, which Lateen takes as well

def typed(name, kind, **fields):
    return {"name": name, "typed_config": {"@type": TYPE + kind, **fields}}


def address(port, ip="127.0.0.1"):
    return {"socket_address": {"address": ip, "port_value": port}}


def cluster(name, endpoints, http2=False, tls=None):
    unlimited = {"max_connections": 4294967295, "max_pending_requests": 4294967295, "max_requests": 4294967295, "max_retries": 4294967295}
    protocol = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    kind = "extensions.upstreams.http.v3.HttpProtocolOptions"
    made = {
        "name": name, "type": "STATIC", "connect_timeout": "10s", "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [unlimited]},
        "typed_extension_protocol_options": {"envoy." + kind: {"@type": TYPE + kind, "explicit_http_config": protocol}},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": a}} for a in endpoints]}]},
    }
    return {**made, "transport_socket": tls} if tls else made


def tls(certs, own, peer, alpn, server):
    """A transport socket that presents `own` and accepts only `peer`."""
    context = {
        "alpn_protocols": [alpn],
        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": {"filename": f"{certs}/{own}.crt"}, "private_key": {"filename": f"{certs}/{own}.key"}}],
        "validation_context": {"trusted_ca": {"filename": f"{certs}/ca.crt"},
                               "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": f"spiffe://cluster.local/ns/default/sa/{peer}"}}]},
    }
    kind = "extensions.transport_sockets.tls.v3."
    if server:
        return typed("envoy.transport_sockets.tls", kind + "DownstreamTlsContext", require_client_certificate=True, common_tls_context=context)
    return typed("envoy.transport_sockets.tls", kind + "UpstreamTlsContext", sni=f"outbound_.8080_._.{REVIEWS}", common_tls_context=context)


def route(match, **action):
    previous = typed("envoy.retry_host_predicates.previous_hosts", "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
    retry = {"retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2,
             "retry_host_predicate": [previous], "host_selection_retry_max_attempts": "5"}
    return {"match": match, "route": {**action, "timeout": "0s", "retry_policy": retry}}


def manager(virtual_hosts, codec, rbac=False):
    """An HTTP connection manager with the filters and the access log of a sidecar."""
    filters = []
    if rbac:
        who = {"authenticated": {"principal_name": {"exact": "spiffe://cluster.local/ns/default/sa/client"}}}
        policy = {"permissions": [{"any": True}], "principals": [who]}
        filters.append(typed("envoy.filters.http.rbac", "extensions.filters.http.rbac.v3.RBAC",
                             rules={"action": "ALLOW", "policies": {"ns[default]-policy[callers]-rule[0]": policy}}))
    filters += [
        typed("envoy.filters.http.grpc_stats", "extensions.filters.http.grpc_stats.v3.FilterConfig", emit_filter_state=True),
        typed("envoy.filters.http.fault", "extensions.filters.http.fault.v3.HTTPFault"),
        typed("envoy.filters.http.cors", "extensions.filters.http.cors.v3.Cors"),
        typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]
    log = typed("envoy.access_loggers.file", "extensions.access_loggers.file.v3.FileAccessLog", path="/dev/null",
                log_format={"text_format_source": {"inline_string": ACCESS_LOG}})
    return typed("envoy.filters.network.http_connection_manager",
                 "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                 stat_prefix="in", codec_type=codec, generate_request_id=True, stream_idle_timeout="0s", access_log=[log],
                 route_config={"name": "8080", "validate_clusters": False, "virtual_hosts": virtual_hosts}, http_filters=filters)


def bootstrap(port, admin, network_filter, clusters, transport=None):
    chain = {"filters": [network_filter]}
    if transport:
        chain["transport_socket"] = transport
    return {"admin": {"address": address(admin)},
            "static_resources": {"listeners": [{"name": "in", "address": address(port), "filter_chains": [chain]}], "clusters": clusters}}


def everything_to(name):
    return [{"name": f"{REVIEWS}:8080", "domains": ["*"], "routes": [route({"prefix": "/"}, cluster=name)]}]


def envoy(shape, role, certs):
    """The bootstrap of one role in one shape: http1, h2c, routing, large, many-routes, tcp, pair-h1 or pair-h2 (roles server and client)."""
    outbound, inbound = f"outbound|8080||{REVIEWS}", "inbound|8080||"
    service = [address(SERVICE)]
    if shape == "tcp":
        proxy = typed("envoy.filters.network.tcp_proxy", "extensions.filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="in", cluster=outbound)
        return bootstrap(ENTRY, ADMIN, proxy, [cluster(outbound, service)])
    if shape.startswith("pair"):
        http2 = shape == "pair-h2"
        alpn = "h2" if http2 else "http/1.1"
        if role == "server":
            transport = tls(certs, "server", "client", alpn, server=True)
            return bootstrap(MIDDLE, ADMIN + 1, manager(everything_to(inbound), "AUTO", rbac=True), [cluster(inbound, service)], transport)
        link = cluster(outbound, [address(MIDDLE)], http2, tls(certs, "client", "server", alpn, server=False))
        return bootstrap(ENTRY, ADMIN, manager(everything_to(outbound), "HTTP1"), [link])
    hosts, clusters = everything_to(outbound), [cluster(outbound, service, http2=shape == "h2c")]
    if shape == "routing":
        clusters += [cluster(f"outbound|8080|v{subset}|{n}", service) for n in range(10) for subset in (1, 2)]
        hosts = [routed_host(n) for n in range(HOSTS)]
    if shape in ("large", "many-routes"):
        names = [f"outbound|8080||{host_name(n)}" for n in range(HOSTS)]
        clusters += [cluster(name, [address(8080, f"127.{1 + n // 250}.{n % 250}.{i}") for i in range(1, 11)]) for n, name in enumerate(names)]
        for n in range(HOSTS if shape == "large" else ROUTES):
            hosts.append({"name": f"{host_name(n)}:8080", "domains": [host_name(n), f"{host_name(n)}:8080"],
                          "routes": [route({"prefix": "/"}, cluster=names[n % HOSTS])]})
    return bootstrap(ENTRY, ADMIN, manager(hosts, "HTTP2" if shape == "h2c" else "HTTP1"), clusters)


def host_name(n):
    """The names that wrk.lua calls."""
    return f"svc{n}.ns{n % 20}.svc.cluster.local"


def routed_host(n):
    """Three routes: by a header, a split of 90 to 10, the rest."""
    name, one, two = host_name(n), f"outbound|8080|v1|{n % 10}", f"outbound|8080|v2|{n % 10}"
    canary = {"prefix": "/", "headers": [{"name": "x-canary", "string_match": {"exact": "true"}}]}
    split = {"clusters": [{"name": one, "weight": 90}, {"name": two, "weight": 10}]}
    short = name.removesuffix(".cluster.local")
    return {"name": f"{name}:8080", "domains": [d for host in (name, short) for d in (host, f"{host}:8080")],
            "routes": [route(canary, cluster=two), route({"prefix": "/bytes/"}, weighted_clusters=split), route({"prefix": "/"}, cluster=one)]}


def envoy_file(shape, role, folder):
    """JSON, which Envoy and Lateen read faster than YAML."""
    path = folder / f"{shape}-{role}.json"
    path.write_text(json.dumps(envoy(shape, role, folder / "certs")))
    return path


# -------------------------------------------------------------------------- HAProxy's nearest equivalent

HAPROXY = """global
    nbthread 1
    maxconn 6000
defaults
    mode {mode}
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    {reuse}
frontend in
    bind 127.0.0.1:{port} {bind}
    default_backend reviews
backend reviews
    server one 127.0.0.1:{to} {server}
"""


def haproxy_file(shape, role, folder):
    """Checks the peer's certificate authority only, and has no filters; `None` where there is nothing like it."""
    certs = folder / "certs"
    bind = server = ""
    port, to = (MIDDLE, SERVICE) if role == "server" else (ENTRY, SERVICE)
    if shape in ("routing", "large", "many-routes"):
        return None
    if shape == "h2c":
        bind = server = "proto h2"
    if shape.startswith("pair"):
        alpn = "h2" if shape == "pair-h2" else "http/1.1"
        if role == "server":
            bind = f"ssl crt {certs}/server.pem ca-file {certs}/ca.crt verify required alpn {alpn}"
        else:
            to, server = MIDDLE, f"ssl verify required ca-file {certs}/ca.crt crt {certs}/client.pem alpn {alpn}"
    tcp = shape == "tcp"
    path = folder / f"{shape}-{role}.cfg"
    path.write_text(HAPROXY.format(mode="tcp" if tcp else "http", reuse="" if tcp else "option http-keep-alive\n    http-reuse always",
                                   port=port, bind=bind, to=to, server=server))
    return path
