//! The data plane over loopback sockets: configuration as Envoy YAML, scripted upstreams, raw callers.
mod support;

mod aggregate;
mod bodies;
mod endings;
mod extensions;
mod faults;
mod health;
mod hostile_connections;
mod hostile_http1;
mod hostile_http2;
mod http1;
mod http2;
mod internal_redirects;
mod jwt;
mod metadata;
mod names;
mod on_demand;
mod rate_limits;
mod retries;
mod routing;
mod sessions;
mod swap;
mod tcp;
mod tls;
mod tracing;
mod upstream;
