//! Folders that change as one, memory, SPIFFE ids, labels, names others gave, the calendar: what every stage of the path shares.
pub mod access_log;
pub mod bounded_file;
pub mod file_stamp;
pub mod framing;
pub mod generation;
pub mod grpc;
pub mod memory;
pub mod recycle;
pub mod similar;
pub mod spiffe;
pub mod utc;

/// Labels of a workload, a resource or a selector, ordered so that equal sets print alike.
pub type Labels = std::collections::BTreeMap<String, String>;

/// Whether every label of `selector` stands in `labels`; an empty selector selects everything.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
