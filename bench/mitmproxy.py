"""What mitmproxy is told in the benchmark: the header, and where the hosts of the benchmark are."""

import os


def requestheaders(flow):
    flow.request.headers["authorization"] = "Bearer " + os.environ["BENCH_TOKEN"]


def responseheaders(flow):
    flow.response.stream = True  # as the others do, and events need it


def server_connect(data):
    at = os.environ["BENCH_UPSTREAM_H2" if data.server.address[0] == "h2.bench.test" else "BENCH_UPSTREAM"]
    host, port = at.rsplit(":", 1)
    data.server.address = (host, int(port))
