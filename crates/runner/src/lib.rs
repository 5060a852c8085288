//! Pods as processes in network namespaces: capture, names, cluster addresses, logs.
