//! The command line's side of the control socket: asks, prints what comes, returns the exit code.
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use base64::Engine;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Uid;

use crate::api::{self, Further, Reply, Request};
use crate::config::SourceText;

/// A connection to a running mesh.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to this user's mesh of that name.
    ///
    /// # Errors
    /// When none is up.
    pub fn connect(name: &str) -> io::Result<Self> {
        let address = api::address(Uid::current().as_raw(), name)?;
        let stream = UnixStream::connect_addr(&address).map_err(|e| match e.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                io::Error::new(e.kind(), format!("no mesh named `{name}` is up; start one with `lateen up FILE...`"))
            }
            _ => e,
        })?;
        Ok(Self { stream })
    }

    /// Asks and prints until the end; the exit code.
    ///
    /// # Errors
    /// When the mesh goes away.
    pub fn run(self, request: &Request) -> io::Result<i32> {
        self.ask(request, &[], &mut io::stdout(), &mut io::stderr())
    }

    /// Asks, prints until the end, and shows what is waited for; the exit code.
    ///
    /// # Errors
    /// When the mesh goes away.
    pub fn watch(self, request: &Request, waiting: &mut dyn FnMut(&[String])) -> io::Result<i32> {
        self.ask_with(request, &[], &mut io::stdout(), &mut io::stderr(), waiting)
    }

    /// Asks and writes what comes, as it comes; the exit code.
    ///
    /// # Errors
    /// When the mesh goes away or a writer fails.
    pub fn stream(self, request: &Request, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<i32> {
        self.ask(request, &[], out, err)
    }

    /// Asks and collects: exit code, output, errors.
    ///
    /// # Errors
    /// When the mesh goes away.
    pub fn collect(self, request: &Request) -> io::Result<(i32, String, String)> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = self.ask(request, &[], &mut out, &mut err)?;
        Ok((code, String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned()))
    }

    /// Runs a command in a pod with our own input and output; signals to us go to it.
    ///
    /// # Errors
    /// When the mesh goes away.
    pub fn exec(self, request: &Request) -> io::Result<i32> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            set.add(signal);
        }
        set.thread_block()?;
        let mut writer = self.stream.try_clone()?;
        std::thread::spawn(move || {
            while let Ok(signal) = set.wait() {
                let Ok(mut line) = serde_json::to_vec(&Further::Signal(signal as i32)) else { return };
                line.push(b'\n');
                if writer.write_all(&line).is_err() {
                    return;
                }
            }
        });
        self.ask(request, &[0, 1, 2], &mut io::stdout(), &mut io::stderr())
    }

    fn ask(self, request: &Request, descriptors: &[RawFd], out: &mut dyn Write, err: &mut dyn Write) -> io::Result<i32> {
        self.ask_with(request, descriptors, out, err, &mut |_| {})
    }

    fn ask_with(
        mut self,
        request: &Request,
        descriptors: &[RawFd],
        out: &mut dyn Write,
        err: &mut dyn Write,
        waiting: &mut dyn FnMut(&[String]),
    ) -> io::Result<i32> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let mut rest = &line[..];
        if !descriptors.is_empty() {
            let rights = [ControlMessage::ScmRights(descriptors)];
            let sent = sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(rest)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
            rest = &rest[sent..];
        }
        self.stream.write_all(rest)?;
        let mut lines = BufReader::new(self.stream);
        let mut line = String::new();
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the mesh went away"));
            }
            match serde_json::from_str::<Reply>(&line)? {
                Reply::Out(text) => out.write_all(text.as_bytes()).and_then(|()| out.flush())?,
                Reply::Raw(text) => {
                    let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(io::Error::other)?;
                    out.write_all(&bytes).and_then(|()| out.flush())?;
                }
                Reply::Err(text) => err.write_all(text.as_bytes())?,
                Reply::Waiting(lines) => waiting(&lines),
                Reply::Exit(code) => return Ok(code),
            }
        }
    }
}

/// Asks the mesh to end, and waits until it has.
///
/// # Errors
/// When none is up, or it does not end within ten seconds.
pub fn down(name: &str) -> io::Result<()> {
    Client::connect(name)?.collect(&Request::Down)?;
    for _ in 0..400 {
        match Client::connect(name) {
            Err(_) => return Ok(()),
            Ok(_) => std::thread::sleep(std::time::Duration::from_millis(25)),
        }
    }
    Err(io::Error::other(format!("mesh `{name}` is still there after ten seconds")))
}

/// Reads what `-f` names: `-` for standard input, a file, or a folder with its YAML and JSON files, in order, and below.
///
/// # Errors
/// With the name of what cannot be read.
pub fn read_sources(paths: &[String]) -> io::Result<Vec<SourceText>> {
    let mut found = Vec::new();
    for path in paths {
        if path == "-" {
            found.push(SourceText { file: "-".into(), text: io::read_to_string(io::stdin())? });
        } else if path.starts_with("http://") || path.starts_with("https://") {
            return Err(io::Error::other(format!("cannot read {path}: only files, folders and - are read; fetch it first")));
        } else {
            read_path(Path::new(path), true, 0, &mut found)?;
        }
    }
    Ok(found)
}

fn read_path(path: &Path, named: bool, depth: usize, found: &mut Vec<SourceText>) -> io::Result<()> {
    let explain = |e: io::Error| io::Error::new(e.kind(), format!("cannot read {}: {e}", path.display()));
    if path.is_dir() {
        if depth > 16 {
            return Ok(());
        }
        let mut entries = std::fs::read_dir(path).map_err(explain)?.collect::<io::Result<Vec<_>>>().map_err(explain)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            read_path(&entry.path(), false, depth + 1, found)?;
        }
        return Ok(());
    }
    let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if named || matches!(kind, "yaml" | "yml" | "json") {
        let bytes = std::fs::read(path).map_err(explain)?;
        found.push(SourceText { file: path.display().to_string(), text: String::from_utf8_lossy(&bytes).into_owned() });
    }
    Ok(())
}
