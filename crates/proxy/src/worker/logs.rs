//! Log files: opened once per process, written through one buffer per worker.
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lateen_telemetry::access_log::{LogWriter, Sink};

/// The log files of a process, by path.
#[derive(Default)]
pub struct LogFiles(Mutex<HashMap<Arc<str>, Sink>>);

impl LogFiles {
    pub(crate) fn writer(&self, path: &Arc<str>) -> Option<LogWriter> {
        let mut sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = sinks.get(path) {
            return Some(sink.writer());
        }
        match Sink::open(Path::new(&**path)) {
            Ok(sink) => {
                let writer = sink.writer();
                sinks.insert(Arc::clone(path), sink);
                Some(writer)
            }
            Err(e) => {
                tracing::error!("log {path} cannot be opened: {e}; its lines are lost until the configuration changes");
                None
            }
        }
    }

    /// Reopens every file, after rotation.
    pub fn reopen(&self) {
        for sink in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            sink.reopen();
        }
    }

    /// Waits until what the workers handed over is written, at most `timeout` for all of it.
    pub fn flush(&self, timeout: Duration) {
        let sinks: Vec<Sink> = self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let deadline = Instant::now() + timeout;
        for sink in sinks {
            sink.flush(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

/// One worker's buffers.
pub(crate) struct LogWriters {
    files: Arc<LogFiles>,
    open: RefCell<HashMap<Arc<str>, Rc<RefCell<LogWriter>>>>,
}

impl LogWriters {
    pub(super) fn new(files: Arc<LogFiles>) -> Self {
        Self { files, open: RefCell::default() }
    }

    /// The buffer for a path; called when a listener is built.
    pub(crate) fn writer(&self, path: &Arc<str>) -> Option<Rc<RefCell<LogWriter>>> {
        if let Some(writer) = self.open.borrow().get(path) {
            return Some(Rc::clone(writer));
        }
        let writer = Rc::new(RefCell::new(self.files.writer(path)?));
        self.open.borrow_mut().insert(Arc::clone(path), Rc::clone(&writer));
        Some(writer)
    }

    pub(super) fn tick(&self) {
        for writer in self.open.borrow().values() {
            writer.borrow_mut().tick();
        }
    }

    pub(super) fn flush(&self) {
        for writer in self.open.borrow().values() {
            writer.borrow_mut().flush();
        }
    }
}
