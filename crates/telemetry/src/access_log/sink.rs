//! Where log lines go: a thread that owns the file and takes whole buffers from the workers.
//!
//! A worker never waits for a disk. If the writer falls behind, buffers are dropped and their lines counted.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// A worker hands its buffer over at this size (Envoy's `file_flush_min_size_kb` default).
const FLUSH_BYTES: usize = 64 * 1024;
/// And at the latest after this long, if it calls [`LogWriter::tick`].
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// Buffers waiting for the writer; with 64 KiB each this bounds a sink's memory at some 4 MiB.
const QUEUE: usize = 64;

/// How often [`Sink::flush`] looks whether the queue has room.
const ROOM_AGAIN: Duration = Duration::from_millis(2);

enum Message {
    Lines(Vec<u8>),
    /// Nothing to write: look at [`Sink::reopens`].
    Wake,
    Flushed(SyncSender<()>),
}

/// A log file, or standard output, and the thread that writes it. Clones share both; the thread ends, after
/// writing what it has, when the last clone and the last [`LogWriter`] are gone.
#[derive(Clone)]
pub struct Sink {
    queue: SyncSender<Message>,
    /// The file is to be opened anew before anything else is written. No message, since a full queue takes none, and a
    /// rotation that is missed writes on into the old file.
    reopens: Arc<AtomicBool>,
    dropped: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl Sink {
    /// Opens a file for appending. `/dev/stdout` and `/dev/stderr` mean this process' own, as the device
    /// cannot be opened where it is a socket.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn open(path: &Path) -> io::Result<Self> {
        let out = Output::open(path)?;
        let (queue, messages) = sync_channel(QUEUE);
        let sink = Self { queue, reopens: Arc::default(), dropped: Arc::default(), failed: Arc::default() };
        let (reopens, failed) = (sink.reopens.clone(), sink.failed.clone());
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || write_all(out, &messages, &reopens, &failed))?;
        Ok(sink)
    }

    /// A worker's buffer in front of this sink.
    pub fn writer(&self) -> LogWriter {
        LogWriter { sink: self.clone(), buffer: Vec::new(), lines: 0, since: Instant::now() }
    }

    /// Opens the path anew, after the old file has been moved away (`SIGUSR1`, `POST /reopen_logs`).
    pub fn reopen(&self) {
        self.reopens.store(true, Relaxed);
        // A queue that is full wakes the writer as well.
        let _ = self.queue.try_send(Message::Wake);
    }

    /// Waits until everything handed over so far has been written, at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let (done, wait) = sync_channel(1);
        let mut message = Message::Flushed(done);
        // Where the writer hangs, as on a pipe that nobody reads, the queue may stay full.
        while let Err(TrySendError::Full(back)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(ROOM_AGAIN);
            message = back;
        }
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    /// Lines dropped because the writer fell behind.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Buffers that could not be written, or reopenings that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }
}

/// One worker's buffer. Dropping it hands over what it holds.
pub struct LogWriter {
    sink: Sink,
    buffer: Vec<u8>,
    lines: u64,
    since: Instant,
}

impl LogWriter {
    /// Appends one line, written by `write` into the buffer.
    pub fn line(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(4096);
        }
        write(&mut self.buffer);
        self.lines += 1;
        if self.buffer.len() >= FLUSH_BYTES {
            self.flush();
        }
    }

    /// Hands the buffer over if it is a second old: call this about once a second, or a quiet worker's last
    /// lines would wait for the next request.
    pub fn tick(&mut self) {
        if self.since.elapsed() >= FLUSH_AFTER {
            self.flush();
        }
    }

    /// Hands the buffer over now.
    pub fn flush(&mut self) {
        self.since = Instant::now();
        if self.buffer.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        let buffer = std::mem::take(&mut self.buffer);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.sink.queue.try_send(Message::Lines(buffer)) {
            self.sink.dropped.fetch_add(lines, Relaxed);
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.flush();
    }
}

enum Output {
    File(File, PathBuf),
    Stdout,
    Stderr,
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        match path.to_str() {
            Some("/dev/stdout") => Ok(Self::Stdout),
            Some("/dev/stderr") => Ok(Self::Stderr),
            _ => Ok(Self::File(append(path)?, path.to_owned())),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.write_all(bytes),
            Self::Stdout => io::stdout().lock().write_all(bytes).and_then(|()| io::stdout().lock().flush()),
            Self::Stderr => io::stderr().lock().write_all(bytes),
        }
    }

    /// Keeps the old file when the new cannot be opened: late lines beat lost lines.
    fn reopen(&mut self) -> io::Result<()> {
        if let Self::File(file, path) = self {
            *file = append(path)?;
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn write_all(mut out: Output, messages: &Receiver<Message>, reopens: &AtomicBool, failed: &AtomicU64) {
    for message in messages {
        let reopened = if reopens.swap(false, Relaxed) { out.reopen() } else { Ok(()) };
        let result = match message {
            Message::Lines(bytes) => out.write(&bytes),
            Message::Wake => Ok(()),
            Message::Flushed(done) => {
                let _ = done.send(());
                Ok(())
            }
        };
        for failure in [reopened.is_err(), result.is_err()] {
            failed.fetch_add(u64::from(failure), Relaxed);
        }
    }
}
