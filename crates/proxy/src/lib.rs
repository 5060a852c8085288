//! The data plane: workers, listeners, filters, upstream connections, admin.
