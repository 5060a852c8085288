//! Istio and Kubernetes resources as typed values with positions.
