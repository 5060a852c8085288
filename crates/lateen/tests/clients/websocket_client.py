"""A WebSocket client of the standard library (RFC 6455): `PORT COUNT [CA CERTIFICATE KEY]`."""
import base64
import hashlib
import os
import socket
import ssl
import struct
import sys

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    def __init__(self, port, files):
        plain = socket.create_connection(("localhost", int(port)), timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain
        if files:
            context = ssl.create_default_context(cafile=files[0])
            context.load_cert_chain(files[1], files[2])
            self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.input = b""
        key = base64.b64encode(os.urandom(16))
        self.socket.sendall(
            b"GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
        )
        while b"\r\n\r\n" not in self.input:
            self.more()
        head, self.input = self.input.split(b"\r\n\r\n", 1)
        lines = head.decode().lower().split("\r\n")
        accept = base64.b64encode(hashlib.sha1(key + MAGIC).digest()).decode().lower()
        assert lines[0].startswith("http/1.1 101"), head
        for line in ["upgrade: websocket", "connection: upgrade", f"sec-websocket-accept: {accept}"]:
            assert line in lines, head

    def more(self):
        piece = self.socket.recv(65536)
        assert piece, "the connection ended"
        self.input += piece

    def exactly(self, size):
        while len(self.input) < size:
            self.more()
        piece, self.input = self.input[:size], self.input[size:]
        return piece

    def send(self, kind, payload, last=True):
        size = len(payload)
        if size < 126:
            head = bytes([0x80 | size])
        elif size < 65536:
            head = bytes([0x80 | 126]) + struct.pack(">H", size)
        else:
            head = bytes([0x80 | 127]) + struct.pack(">Q", size)
        mask = os.urandom(4)
        repeated = (mask * (size // 4 + 1))[:size]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
        self.socket.sendall(bytes([(0x80 if last else 0) | kind]) + head + mask + masked)

    def receive(self):
        first, second = self.exactly(2)
        assert not second & 0x80, "a server does not mask"
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self.exactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.exactly(8))
        return first & 0x0F, bool(first & 0x80), self.exactly(size)

    def echoes(self, kind, payload):
        self.send(kind, payload)
        seen = self.receive()
        assert seen == (kind, True, payload), (seen[0], seen[1], len(seen[2]), len(payload))

    def close(self):
        self.send(CLOSE, struct.pack(">H", 1000) + b"bye")
        kind, _, payload = self.receive()
        assert kind == CLOSE and payload[:2] == struct.pack(">H", 1000), payload
        # The server closes first.
        assert self.socket.recv(1) == b""
        self.socket.close()


def main(port, count, *files):
    for _ in range(20):
        one = WebSocket(port, files)
        one.echoes(TEXT, b"hello")
        one.close()
    one = WebSocket(port, files)
    for size in [0, 1, 125, 126, 127, 65535, 65536, 300_000]:
        one.echoes(BINARY, os.urandom(size))
    one.send(PING, b"there?")
    assert one.receive() == (PONG, True, b"there?")
    one.send(TEXT, b"in ", last=False)
    one.send(0, b"pieces")
    assert [one.receive(), one.receive()] == [(TEXT, False, b"in "), (0, True, b"pieces")]
    window = 32
    sent = received = 0
    while received < int(count):
        while sent < int(count) and sent - received < window:
            one.send(TEXT, str(sent).encode())
            sent += 1
        assert one.receive() == (TEXT, True, str(received).encode())
        received += 1
    one.close()
    print(f"0 errors in {count} messages, 21 connections")


if __name__ == "__main__":
    main(*sys.argv[1:])
