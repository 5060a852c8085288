//! A process in a pod: born in the pod's namespaces, in a session of its own, printing into a pipe.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, chdir, setsid};

use crate::namespaces::pod::PodNamespaces;

/// What a container's process may do: as a Kubernetes container's default, so it can listen on any
/// port and open raw sockets but not rewrite the rules that capture it. Numbers of capability.h:
/// chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const APP_CAPABILITIES: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
/// The sidecar also marks its sockets: net_admin.
const NET_ADMIN: u32 = 12;
const LAST_CAPABILITY: u32 = 40;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// The program and its arguments; `/proc/self/exe` is this program.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    pub cwd: Option<PathBuf>,
    /// May administer the pod's network (a sidecar).
    pub network_admin: bool,
}

/// Where a process's input and output go.
#[derive(Debug)]
pub enum Streams {
    /// No input; both outputs into this pipe.
    Log(OwnedFd),
    /// The caller's own input, output and errors.
    Given([OwnedFd; 3]),
}

/// Starts a process in the pod's namespaces; whoever reaps the children learns of its end.
///
/// # Errors
/// When the program does not exist or may not be run, in words that name it.
pub fn start(spec: &ProcessSpec, namespaces: &PodNamespaces, streams: Streams) -> io::Result<Pid> {
    let Some((program, arguments)) = spec.argv.split_first() else {
        return Err(io::Error::other("no command to run"));
    };
    let mut command = Command::new(program);
    if program == "/proc/self/exe" {
        command.arg0("lateen");
    }
    command.args(arguments).env_clear().envs(spec.env.iter().map(|(k, v)| (k, v)));
    match streams {
        Streams::Log(pipe) => {
            command.stdin(Stdio::null()).stdout(pipe.try_clone()?).stderr(pipe);
        }
        Streams::Given([input, output, errors]) => {
            command.stdin(input).stdout(output).stderr(errors);
        }
    }
    let cwd = match &spec.cwd {
        Some(path) => Some(CString::new(path.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?),
        None => None,
    };
    let entered = [
        (namespaces.mnt.as_raw_fd(), CloneFlags::CLONE_NEWNS),
        (namespaces.net.as_raw_fd(), CloneFlags::CLONE_NEWNET),
        (namespaces.uts.as_raw_fd(), CloneFlags::CLONE_NEWUTS),
    ];
    let network_admin = spec.network_admin;
    // SAFETY: between fork and exec the closure makes system calls only, on values prepared above.
    unsafe {
        command.pre_exec(move || {
            for (descriptor, kind) in entered {
                enter(descriptor, kind)?;
            }
            if let Some(cwd) = &cwd {
                chdir(cwd.as_c_str())?;
            }
            setsid()?;
            drop_capabilities(network_admin)
        });
    }
    let child = command.spawn().map_err(|e| {
        let at = spec.cwd.as_ref().map(|c| format!(" in {}", c.display())).unwrap_or_default();
        let e = if is_nowhere(program, &spec.env) { io::Error::from_raw_os_error(libc::ENOENT) } else { e };
        io::Error::new(e.kind(), format!("cannot run `{program}`{at}: {e}"))
    })?;
    Ok(Pid::from_raw(child.id() as i32))
}

/// Whether no folder of the PATH shows such a program. The system call says "permission denied" when it may not look
/// into one of them (root's own, for an ordinary user), which is no answer to whoever misspelt a name.
fn is_nowhere(program: &str, env: &[(String, String)]) -> bool {
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
    !program.contains('/') && std::env::split_paths(path).all(|folder| folder.join(program).symlink_metadata().is_err())
}

fn enter(descriptor: RawFd, kind: CloneFlags) -> io::Result<()> {
    // SAFETY: the pod's namespaces outlive the call of `start`, which waits for the exec.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
    Ok(setns(descriptor, kind)?)
}

/// Removes what is not allowed from the bounding set; the exec that follows recomputes all other sets from it.
fn drop_capabilities(network_admin: bool) -> io::Result<()> {
    for capability in 0..=LAST_CAPABILITY {
        let kept = APP_CAPABILITIES.contains(&capability) || network_admin && capability == NET_ADMIN;
        if !kept {
            // SAFETY: a plain system call. An unknown capability (older kernel) is refused and nothing lost.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        }
    }
    Ok(())
}

/// Signals the process and all of its process group.
pub fn signal(pid: Pid, signal: Signal) {
    if killpg(pid, signal).is_err() {
        let _ = kill(pid, signal);
    }
}

/// Kills every process that lives in the network namespace `net`, for those that left their process group.
pub fn sweep(net: &OwnedFd) {
    use std::os::unix::fs::MetadataExt;
    let Ok(inode) = nix::sys::stat::fstat(net).map(|s| s.st_ino) else { return };
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if pid > 1 && std::fs::metadata(entry.path().join("ns/net")).is_ok_and(|m| m.ino() == inode) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
