-- Prints what wrk measured as one JSON line, and sends headers like those of a real mesh request.
wrk.headers["Host"] = "reviews.default.svc.cluster.local"
wrk.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/144.0"
wrk.headers["Accept"] = "application/json"
wrk.headers["X-Request-Id"] = "1b0ad1e2-4a3f-4c75-9f6e-6f0d7a1c9f10"
wrk.headers["Traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
wrk.headers["End-User"] = "jason"
wrk.headers["Cookie"] = "session=4f0c1b1e9d8a47b3; region=eu"

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\nRESULT {"requests":%d,"seconds":%f,"bad":%d}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout + e.status))
end
