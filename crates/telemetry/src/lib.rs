//! Sharded counters and histograms, Istio standard metrics, access logs.
