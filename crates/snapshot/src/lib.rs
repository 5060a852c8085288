//! Envoy resources compiled into what a request reads: chain and route matching, explain. No sockets.
