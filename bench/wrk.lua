-- Prints what wrk measured as one JSON line, and sends headers like those of a real mesh request.
-- An argument says among how many hosts the requests are spread; every tenth then asks for the canary.
wrk.headers["Host"] = "reviews.default.svc.cluster.local"
wrk.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/144.0"
wrk.headers["Accept"] = "application/json"
wrk.headers["Accept-Encoding"] = "gzip, br"
wrk.headers["Accept-Language"] = "en-GB,en;q=0.9"
wrk.headers["X-Request-Id"] = "1b0ad1e2-4a3f-4c75-9f6e-6f0d7a1c9f10"
wrk.headers["Traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
wrk.headers["End-User"] = "jason"
wrk.headers["Cookie"] = "session=4f0c1b1e9d8a47b3; region=eu"
wrk.headers["Authorization"] = "Bearer eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0"
wrk.headers["Cache-Control"] = "no-cache"

local requests, hosts, turn = {}, 0, 0

function init(arguments)
  hosts = tonumber(arguments[1]) or 0
  for n = 0, hosts - 1 do
    local number = n * 389 % hosts
    wrk.headers["Host"] = "svc" .. number .. ".ns" .. number % 20 .. ".svc.cluster.local"
    wrk.headers["X-Canary"] = n % 10 == 0 and "true" or nil
    requests[n] = wrk.format()
  end
  requests[0] = requests[0] or wrk.format()
end

function request()
  turn = (turn + 1) % math.max(hosts, 1)
  return requests[turn]
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\nRESULT {"requests":%d,"seconds":%f,"bad":%d}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout + e.status))
end
