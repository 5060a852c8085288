//! The live control plane: sources, push queue, serving, debug endpoints.
