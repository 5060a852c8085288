//! The built-in sample service.
