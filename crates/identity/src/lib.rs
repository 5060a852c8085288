//! Certificate authority, CSR service, rotation, SDS and TLS configuration.
