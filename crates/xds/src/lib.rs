//! The ADS protocol as state machines, and client and server shells.
