//! Endpoint choice: load balancers, priorities, outlier detection, circuit breakers. No sockets.
