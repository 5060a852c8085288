//! Memory of work that is done, for the work to come: each thread has its own, and keeps a bounded amount.
pub mod buffers;
pub mod maps;
