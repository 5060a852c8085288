//! What a mesh may leave behind: nothing. Looked at before it starts and after it has ended.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use crate::process::eventually;

/// What can be seen of meshes from outside.
#[derive(Debug)]
pub(crate) struct Surroundings {
    interfaces: BTreeSet<String>,
    named_namespaces: BTreeSet<String>,
    files: BTreeSet<String>,
    rules: Option<String>,
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| format!("{folder}/{}", e.file_name().to_string_lossy())).collect()
}

impl Surroundings {
    /// Others use the folders for temporary files too: there only what carries the mesh's name counts.
    pub(crate) fn look(mesh: &str) -> Self {
        let named = |n: &String| n.contains(mesh);
        let ours = |n: &String| n.contains("lateen") || n.contains(mesh);
        let temporary = ["/tmp", "/var/tmp"].iter().flat_map(|f| names(f)).filter(named);
        let files = temporary.chain(["/run", "/dev/shm"].iter().flat_map(|f| names(f)).filter(ours)).collect();
        let nft = std::process::Command::new("nft").args(["list", "tables"]).output().ok().filter(|o| o.status.success());
        Self {
            interfaces: names("/sys/class/net"),
            named_namespaces: names("/run/netns"),
            files,
            rules: nft.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()),
        }
    }

    /// Nothing is there that was not there before.
    pub(crate) fn ensure_unchanged(&self, mesh: &str) -> anyhow::Result<()> {
        let now = Self::look(mesh);
        let new = |before: &BTreeSet<String>, after: &BTreeSet<String>| after.difference(before).cloned().collect::<Vec<_>>();
        let interfaces = new(&self.interfaces, &now.interfaces);
        ensure!(interfaces.is_empty(), "network interfaces are left: {interfaces:?}");
        let named = new(&self.named_namespaces, &now.named_namespaces);
        ensure!(named.is_empty(), "named network namespaces are left: {named:?}");
        let files = new(&self.files, &now.files);
        ensure!(files.is_empty(), "files are left: {files:?}");
        ensure!(self.rules == now.rules, "nftables of the host have changed: {:?} to {:?}", self.rules, now.rules);
        Ok(())
    }
}

/// A process as `/proc` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) command: String,
}

/// Identity of a process namespace; every process of a mesh is in the mesh's own.
pub(crate) fn pid_namespace(pid: i32) -> Option<String> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok().map(|l| l.display().to_string())
}

/// Every process of a namespace, by its number outside.
pub(crate) fn processes_in(namespace: &str) -> Vec<Process> {
    let command = |pid: i32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| pid_namespace(*pid).as_deref() == Some(namespace)).map(|pid| Process { pid, command: command(pid) }).collect()
}

/// The process that `parent` has started and that lives in another process namespace.
pub(crate) fn inside_of(parent: u32) -> Option<i32> {
    let own = pid_namespace(parent as i32)?;
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse::<u32>().ok()) == Some(parent)
    };
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(is_child).find(|pid| pid_namespace(*pid).is_some_and(|n| n != own))
}

/// Waits until a mesh that has ended has left nothing.
#[track_caller]
pub(crate) fn nothing_left(before: &Surroundings, namespace: &str, temporary: &Path, mesh: &str) {
    eventually("the mesh leaves nothing", Duration::from_secs(5), || {
        let left = processes_in(namespace);
        ensure!(left.is_empty(), "processes are left: {left:?}");
        let files: Vec<_> = fs::read_dir(temporary)?.flatten().map(|e| e.path()).collect();
        ensure!(files.is_empty(), "temporary files are left: {files:?}");
        let sockets = fs::read_to_string("/proc/net/unix")?;
        ensure!(!sockets.contains(mesh), "a socket of {mesh} is left");
        before.ensure_unchanged(mesh)
    });
}
