"""A gRPC server and a client of it. `serve PORT`, or `call PORT COUNT [CA CERTIFICATE KEY]`."""
import sys
import threading
import time
from concurrent import futures

import grpc

THREADS = 4
TRAILER = (("x-trailer", "yes"),)


class Server(grpc.GenericRpcHandler):
    def service(self, details):
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
            "Slow": grpc.unary_unary_rpc_method_handler(self.slow),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
        }
        return handlers.get(details.method.rsplit("/", 1)[1])

    def unary(self, request, context):
        context.set_trailing_metadata(TRAILER)
        return request

    def up(self, requests, context):
        return str(sum(len(request) for request in requests)).encode()

    def down(self, request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def both(self, requests, context):
        for request in requests:
            yield request
        context.set_trailing_metadata(TRAILER)

    def slow(self, request, context):
        while context.is_active():
            time.sleep(0.02)
        return request

    def fail(self, request, context):
        context.set_trailing_metadata(TRAILER)
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: 100%")


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    server.add_generic_rpc_handlers((Server(),))
    assert server.add_insecure_port(f"127.0.0.1:{port}") == int(port)
    server.start()
    server.wait_for_termination()


class Calls:
    def __init__(self, channel):
        self.unary = channel.unary_unary("/t.Echo/Unary")
        self.up = channel.stream_unary("/t.Echo/Up")
        self.down = channel.unary_stream("/t.Echo/Down")
        self.both = channel.stream_stream("/t.Echo/Both")
        self.slow = channel.unary_unary("/t.Echo/Slow")
        self.fail = channel.unary_unary("/t.Echo/Fail")

    def kinds(self):
        """One call of each kind; what is wrong raises."""
        reply, call = self.unary.with_call(b"hello", timeout=20)
        assert reply == b"hello" and ("x-trailer", "yes") in [tuple(t) for t in call.trailing_metadata()], call
        big = b"x" * 1_000_000
        assert self.unary(big, timeout=20) == big
        assert self.up(iter([b"ab", b"", b"cde"] * 100), timeout=20) == b"500"
        assert [int(n) for n in self.down(b"300", timeout=20)] == list(range(300))
        answered = threading.Event()

        def turns():
            yield b"first"
            # Only the answer to the first lets the second go: nothing may hold messages back.
            assert answered.wait(10), "the first message was not answered"
            yield b"second"

        replies = self.both(turns(), timeout=20)
        assert next(replies) == b"first"
        answered.set()
        assert list(replies) == [b"second"]
        assert ("x-trailer", "yes") in [tuple(t) for t in replies.trailing_metadata()]
        began = time.monotonic()
        assert self.code(self.slow, timeout=0.3) == grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 5
        try:
            self.fail(b"", timeout=20)
            raise AssertionError("no error came")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND and error.details() == "no such thing: 100%", error
        running = self.slow.future(b"", timeout=20)
        time.sleep(0.05)
        assert running.cancel()

    @staticmethod
    def code(method, timeout):
        try:
            method(b"", timeout=timeout)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def call(port, count, *files):
    target = f"localhost:{port}"
    if files:
        ca, certificate, key = (open(name, "rb").read() for name in files)
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        channel = grpc.secure_channel(target, credentials)
    else:
        channel = grpc.insecure_channel(target)
    errors = []
    with channel:
        calls = Calls(channel)
        for _ in range(3):
            calls.kinds()

        def many(share):
            for number in range(share):
                try:
                    text = str(number).encode()
                    if calls.unary(text, timeout=30) != text:
                        errors.append("another's answer")
                except grpc.RpcError as error:
                    errors.append(f"{error.code()}: {error.details()}")

        threads = [threading.Thread(target=many, args=(int(count) // THREADS,)) for _ in range(THREADS)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    print("\n".join(errors[:10]))
    print(f"{len(errors)} errors in {count} calls and 3 of each kind")


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
