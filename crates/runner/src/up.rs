//! `lateen up`: the process outside. Claims the mesh's name and ports, starts the process inside, serves it until it ends.
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Uid;

use crate::api;
use crate::config::{Publish, UpConfig};
use crate::inside::{self, Handover};
use crate::namespaces::birth::{self, NoNamespaces};
use crate::relay::{host, link};

/// The word on the command line that makes this program the process inside.
const INSIDE: &str = "__inside";

/// Why a mesh could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    #[error("a mesh named `{0}` is up already: end it with `lateen down --name {0}`, or give this one another name with --name")]
    NameTaken(String),
    #[error("cannot listen on 127.0.0.1:{port}: {cause}; choose another port (0 for any free one)")]
    Port { port: u16, cause: io::Error },
    #[error(transparent)]
    Namespaces(#[from] NoNamespaces),
    #[error(transparent)]
    Other(#[from] io::Error),
}

/// To be called first in `main`: when this process is to be the mesh's inside, it becomes that and does not return.
pub fn become_inside_if_told() {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() != Some(INSIDE) {
        return;
    }
    let result = match words.next().and_then(|w| w.parse().ok()) {
        Some(descriptor) => inside::run(descriptor),
        None => Err(io::Error::other("this command is not for people")),
    };
    std::process::exit(match result {
        Ok(()) => 0,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}");
            1
        }
    });
}

/// A mesh whose process inside has been started.
#[derive(Debug)]
pub struct Outer {
    line: Arc<OwnedFd>,
    inside: nix::unistd::Pid,
    /// The published ports with the numbers they really have.
    pub published: Vec<Publish>,
}

/// Starts the mesh. To be called while the process has one thread.
///
/// # Errors
/// [`UpError`]; nothing is left running then.
pub fn start(mut config: UpConfig) -> Result<Outer, UpError> {
    // Blocked before any thread begins, so that only the one that waits for them gets them.
    stop_signals().thread_block().map_err(io::Error::from)?;
    let address = api::address(Uid::current().as_raw(), &config.name)?;
    let api = UnixListener::bind_addr(&address).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => UpError::NameTaken(config.name.clone()),
        _ => UpError::Other(e),
    })?;
    let mut listeners = Vec::new();
    for publish in &mut config.publish {
        let listener =
            TcpListener::bind(("127.0.0.1", publish.host_port)).map_err(|cause| UpError::Port { port: publish.host_port, cause })?;
        publish.host_port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    let (ours, theirs) = link::pair()?;
    let published: Vec<Publish> = config.publish.clone();
    let handover = Handover {
        line: theirs.as_raw_fd(),
        api: api.as_raw_fd(),
        published: listeners.iter().map(AsRawFd::as_raw_fd).zip(published.iter().cloned()).collect(),
        config,
    };
    let memory = memfd_create("lateen-handover", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?;
    let mut file = std::fs::File::from(memory.try_clone()?);
    serde_json::to_writer(&mut file, &handover).map_err(io::Error::from)?;
    drop(file);
    let mut inherited = vec![theirs.as_fd(), api.as_fd(), memory.as_fd()];
    inherited.extend(listeners.iter().map(AsFd::as_fd));
    let arguments = ["lateen".to_owned(), INSIDE.to_owned(), memory.as_raw_fd().to_string()];
    let inside = birth::start_inside(&arguments, &inherited)?;
    Ok(Outer { line: Arc::new(ours), inside, published })
}

fn stop_signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    set
}

impl Outer {
    /// Serves the mesh until it has ended, by a signal to us, by `down`, or by itself; its exit code.
    ///
    /// # Errors
    /// When the line to it breaks.
    pub fn serve(self) -> io::Result<i32> {
        lateen_core::memory::settle_after(inside::SETTLED);
        let line = self.line.clone();
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            while stop_signals().wait().is_ok() {
                if link::send(line.as_fd(), &link::Tell::Stop, None).is_err() {
                    return;
                }
            }
        })?;
        host::serve(self.line.as_fd().try_clone_to_owned()?)?;
        loop {
            match waitpid(self.inside, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                Err(nix::Error::EINTR) | Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
