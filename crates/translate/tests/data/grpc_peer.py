"""Asks a gRPC library to call `xds:///TARGET` on resources that a file holds, and prints who answered.

Usage: grpc_peer.py RESOURCES.json TARGET PORT CALLS [HEADER=VALUE]
The file maps type URL to resource name to the resource's bytes in hexadecimal. Two servers, on 127.0.0.1 and
127.0.0.2, answer with their names. A refused resource ends the run with its reason.
"""
import collections
import json
import os
import sys
import tempfile
from concurrent import futures

import grpc

path, target, port, calls = sys.argv[1:5]
headers = tuple(tuple(pair.split("=", 1)) for pair in sys.argv[5:])
resources = {url: {name: bytes.fromhex(body) for name, body in named.items()} for url, named in json.load(open(path)).items()}
refused = []


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, body):
    return varint(number << 3 | 2) + varint(len(body)) + body


def fields(message):
    """The length-delimited fields of a message, by number; the few others of a request are skipped."""
    at, out = 0, collections.defaultdict(list)

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == 2:
            length = number()
            out[tag >> 3].append(message[at:at + length])
            at += length
        else:
            number()
    return out


def discovery(requests, _context):
    asked, version = {}, 0
    for raw in requests:
        request = fields(raw)
        url = request[4][0].decode()
        names = sorted(name.decode() for name in request[3])
        if request[6]:
            refused.append(fields(request[6][0])[2][0].decode())
            continue
        if asked.get(url) == names:
            continue
        asked[url] = names
        version += 1
        known = [resources.get(url, {}).get(name) for name in names]
        bodies = b"".join(field(2, field(1, url.encode()) + field(2, body)) for body in known if body is not None)
        yield field(1, str(version).encode()) + bodies + field(4, url.encode()) + field(5, str(version).encode())


class Handler(grpc.GenericRpcHandler):
    def __init__(self, handler):
        self.handler = handler

    def service(self, details):
        return self.handler(details.method)


def serve(address, handler):
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Handler(handler),))
    bound = server.add_insecure_port(address)
    server.start()
    return server, bound


streams = lambda method: grpc.stream_stream_rpc_method_handler(discovery) if method.endswith("StreamAggregatedResources") else None
answer = lambda name: lambda _method: grpc.unary_unary_rpc_method_handler(lambda _request, _context: name)
control, control_port = serve("127.0.0.1:0", streams)
servers = [serve(f"{address}:{port}", answer(name)) for address, name in (("127.0.0.1", b"v1"), ("127.0.0.2", b"v2"))]
with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as bootstrap:
    json.dump({"xds_servers": [{"server_uri": f"127.0.0.1:{control_port}", "channel_creds": [{"type": "insecure"}],
                                "server_features": ["xds_v3"]}],
               "node": {"id": "sidecar~127.0.0.1~client.books~books.svc.cluster.local"}}, bootstrap)
os.environ["GRPC_XDS_BOOTSTRAP"] = bootstrap.name
try:
    call = grpc.insecure_channel(f"xds:///{target}").unary_unary("/a.Service/Method")
    counts = collections.Counter(call(b"", timeout=20, metadata=headers).decode() for _ in range(int(calls)))
    print(json.dumps({"counts": counts, "refused": refused}), flush=True)
except grpc.RpcError as error:
    print(json.dumps({"error": error.details(), "refused": refused}), flush=True)
finally:
    os.unlink(bootstrap.name)
    os._exit(0)
