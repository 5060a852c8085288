//! Running commands with a time limit, and in the background.
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a command left behind.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// The exit code; -1 when it was ended by a signal or by its time limit.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) took: Duration,
}

impl Output {
    /// The output of a command that must succeed.
    #[track_caller]
    pub(crate) fn succeeded(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }
}

fn drain(stream: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut stream = stream;
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for a child; kills it when the time is over.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let since = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.code().unwrap_or(-1)),
            Ok(None) if since.elapsed() < limit => thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// Runs a command to its end, at most for `limit`.
pub(crate) fn run(mut command: Command, limit: Duration) -> Output {
    let since = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let out = drain(child.stdout.take().expect("a pipe"));
    let err = drain(child.stderr.take().expect("a pipe"));
    let code = wait(&mut child, limit);
    let took = since.elapsed();
    let mut err = err.join().unwrap_or_default();
    if code.is_none() {
        err.push_str(&format!("\n(killed: not done after {limit:?}: {command:?})"));
    }
    Output { code: code.unwrap_or(-1), out: out.join().unwrap_or_default(), err, took }
}

/// A command that runs beside the test; it is ended when this is dropped.
pub(crate) struct Background {
    child: Child,
    lines: Receiver<(Instant, String)>,
    err: Option<thread::JoinHandle<String>>,
}

impl Background {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let err = Some(drain(child.stderr.take().expect("a pipe")));
        Self { child, lines, err }
    }

    /// The next line of output with the moment it came, or `None` when none comes in time.
    pub(crate) fn line(&self, limit: Duration) -> Option<(Instant, String)> {
        self.lines.recv_timeout(limit).ok()
    }

    /// Waits for its end and returns what it printed and has not been read.
    #[track_caller]
    pub(crate) fn finish(mut self, limit: Duration) -> Output {
        let since = Instant::now();
        let code = wait(&mut self.child, limit).unwrap_or(-1);
        let out: String = self.lines.iter().map(|(_, line)| line + "\n").collect();
        let err = self.err.take().map(|e| e.join().unwrap_or_default()).unwrap_or_default();
        Output { code, out, err, took: since.elapsed() }
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(self) -> Output {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT);
        self.finish(Duration::from_secs(10))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tries until it holds; the last reason is told when it never does.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut holds: impl FnMut() -> anyhow::Result<T>) -> T {
    let since = Instant::now();
    loop {
        match holds() {
            Ok(value) => return value,
            Err(why) if since.elapsed() >= limit => panic!("not within {limit:?}: {what}: {why:#}"),
            Err(_) => thread::sleep(Duration::from_millis(30)),
        }
    }
}
