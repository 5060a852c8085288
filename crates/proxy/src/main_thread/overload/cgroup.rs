//! What the control group of this process uses and may use (cgroups(7)), of either version.
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where control groups are mounted, and which ones this process is in.
pub(super) struct Groups {
    root: PathBuf,
    /// `/proc/self/cgroup`: `hierarchy:controllers:path`, a line each.
    own: String,
}

/// Of a group, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) used: u64,
    pub(super) limit: Option<u64>,
}

/// Of a group.
#[derive(Debug, PartialEq)]
pub(super) struct Cpu {
    /// Time of processors, since the group was made.
    pub(super) used: Duration,
    /// How many it may keep busy.
    pub(super) cores: f64,
}

impl Memory {
    /// Nothing without a limit.
    pub(super) fn pressure(&self) -> f64 {
        self.limit.map_or(0.0, |limit| self.used as f64 / limit as f64)
    }
}

impl Groups {
    pub(super) fn of_this_process() -> Self {
        // Without the file the group that is mounted stands for this process's own.
        Self { root: "/sys/fs/cgroup".into(), own: std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default() }
    }

    /// Of this process's group and, if that has no limit, of those around it up to the first that has one: what they may not
    /// have, it cannot.
    ///
    /// # Errors
    /// When there are no figures, or none that are understood: the text names the file.
    pub(super) fn memory(&self) -> io::Result<Vec<Memory>> {
        let (controller, used, limit) = if self.is_unified() {
            ("", "memory.current", "memory.max")
        } else {
            ("memory", "memory.usage_in_bytes", "memory.limit_in_bytes")
        };
        let mut all = Vec::new();
        let folders = self.way_up(controller);
        for folder in &folders {
            // The outermost of a machine has none.
            let Some(used) = optional(&folder.join(used), number)? else { continue };
            let limit = optional(&folder.join(limit), limit_of)?.flatten();
            all.push(Memory { used, limit });
            if limit.is_some() {
                break;
            }
        }
        if all.is_empty() { Err(missing(&folders, used)) } else { Ok(all) }
    }

    /// Of the innermost group that has a quota, or of this process's own.
    ///
    /// # Errors
    /// As [`Self::memory`].
    pub(super) fn cpu(&self) -> io::Result<Cpu> {
        if self.is_unified() { self.cpu_of_unified() } else { self.cpu_of_controllers() }
    }

    fn cpu_of_unified(&self) -> io::Result<Cpu> {
        let usage = |text: &str| text.lines().find_map(|line| line.strip_prefix("usage_usec ")).and_then(number);
        let cpu = |used, cores: f64| Cpu { used: Duration::from_micros(used), cores: cores.min(allowed()) };
        for folder in self.way_up("") {
            // Where the controller is switched off there is no such file, and no limit.
            if let Some(quota) = optional(&folder.join("cpu.max"), quota)?.flatten()
                && let Some(used) = optional(&folder.join("cpu.stat"), usage)?
            {
                return Ok(cpu(used, quota));
            }
        }
        Ok(cpu(self.innermost("", "cpu.stat", usage)?, f64::MAX))
    }

    /// As in Envoy what was asked for counts here, at a thousand shares a processor, and not what is allowed.
    fn cpu_of_controllers(&self) -> io::Result<Cpu> {
        let used = self.innermost("cpuacct", "cpuacct.usage", number)?;
        let shares = self.innermost("cpu", "cpu.shares", |text| number(text).filter(|n| *n > 0))?;
        Ok(Cpu { used: Duration::from_nanos(used), cores: shares as f64 / 1000.0 })
    }

    fn innermost<T>(&self, controller: &str, file: &str, parse: impl Fn(&str) -> Option<T>) -> io::Result<T> {
        let folders = self.way_up(controller);
        for folder in &folders {
            if let Some(value) = optional(&folder.join(file), &parse)? {
                return Ok(value);
            }
        }
        Err(missing(&folders, file))
    }

    /// Whether there is one hierarchy for all controllers (version 2).
    fn is_unified(&self) -> bool {
        self.root.join("cgroup.controllers").exists()
    }

    /// The folders of this process's group and those around it, up to the one that is mounted; that one alone where the path
    /// is one of outside this container.
    fn way_up(&self, controller: &str) -> Vec<PathBuf> {
        let mounted = self.root.join(controller);
        let path = self.own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == controller).then_some(path)
        });
        let own = mounted.join(path.unwrap_or_default().trim_start_matches('/'));
        let folders: Vec<PathBuf> = own.ancestors().take_while(|f| f.starts_with(&mounted)).map(Path::to_owned).collect();
        if own.exists() { folders } else { vec![mounted] }
    }
}

/// Processors that this process may run on, by its affinity and its group's set, whatever its quota.
fn allowed() -> f64 {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count = set.map_or(0, |set| (0..nix::sched::CpuSet::count()).filter(|n| set.is_set(*n).unwrap_or(false)).count());
    count.max(1) as f64
}

fn missing(folders: &[PathBuf], file: &str) -> io::Error {
    let inner = folders.first().map(|folder| folder.join(file)).unwrap_or_default();
    io::Error::new(io::ErrorKind::NotFound, format!("there is no {}, nor one further up", inner.display()))
}

/// `None` when there is no such file.
fn optional<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> io::Result<Option<T>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
    };
    let unclear = || io::Error::other(format!("{} says {:?}, which is not understood", path.display(), text.trim()));
    parse(text.trim()).ok_or_else(unclear).map(Some)
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// `max` and -1 are none, and so is what version 1 says instead: the most bytes that its counter of pages can hold.
fn limit_of(text: &str) -> Option<Option<u64>> {
    match text {
        "max" | "-1" => Some(None),
        text => number(text).map(|n| Some(n).filter(|n| (1..1 << 62).contains(n))),
    }
}

/// `QUOTA PERIOD` of `cpu.max`, as processors; `max` is no quota.
fn quota(text: &str) -> Option<Option<f64>> {
    let (quota, period) = text.split_once(' ')?;
    if quota == "max" {
        return Some(None);
    }
    let (quota, period) = (number(quota)?, number(period)?);
    (period > 0).then(|| Some(quota as f64 / period as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(own: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Groups) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        }
        let groups = Groups { root: folder.path().into(), own: own.into() };
        (folder, groups)
    }

    const UNIFIED: (&str, &str) = ("cgroup.controllers", "cpu memory");

    #[test]
    fn a_unified_group_tells_its_own_memory_and_processors() {
        let own = |name: &str| format!("system.slice/lateen.service/{name}");
        let (current, max, stat, cpu_max) = (own("memory.current"), own("memory.max"), own("cpu.stat"), own("cpu.max"));
        let files = [
            UNIFIED,
            (&current, "4096"),
            (&max, "8192"),
            (&stat, "usage_usec 2500000\nuser_usec 2000000"),
            (&cpu_max, "90000 100000"),
            // The machine's own are none of its business.
            ("memory.current", "9000"),
            ("memory.max", "9000"),
        ];
        let (_folder, groups) = groups("0::/system.slice/lateen.service", &files);
        assert_eq!(groups.memory().unwrap(), [Memory { used: 4096, limit: Some(8192) }]);
        assert_eq!(groups.cpu().unwrap(), Cpu { used: Duration::from_millis(2500), cores: 0.9 });
        std::fs::write(groups.root.join(&cpu_max), "max 100000").unwrap();
        assert_eq!(groups.cpu().unwrap().cores, allowed());
    }

    #[test]
    fn what_limits_a_group_around_limits_the_one_inside() {
        let files = [
            UNIFIED,
            ("a.slice/b/memory.current", "10"),
            ("a.slice/b/memory.max", "max"),
            ("a.slice/memory.current", "30"),
            ("a.slice/memory.max", "40"),
            ("a.slice/b/cpu.stat", "usage_usec 7"),
            ("a.slice/cpu.stat", "usage_usec 900"),
            ("a.slice/cpu.max", "50000 100000"),
            ("cpu.stat", "usage_usec 1000000"),
        ];
        let (_folder, groups) = groups("0::/a.slice/b", &files);
        let memory = groups.memory().unwrap();
        assert_eq!(memory, [Memory { used: 10, limit: None }, Memory { used: 30, limit: Some(40) }]);
        assert_eq!(memory.iter().map(Memory::pressure).fold(0.0, f64::max), 0.75);
        assert_eq!(groups.cpu().unwrap(), Cpu { used: Duration::from_micros(900), cores: 0.5 });
    }

    #[test]
    fn in_a_container_the_mounted_group_stands_for_its_own() {
        let (_folder, groups) = groups("0::/kubepods/pod1", &[UNIFIED, ("memory.current", "5"), ("memory.max", "max")]);
        assert_eq!(groups.memory().unwrap(), [Memory { used: 5, limit: None }]);
    }

    #[test]
    fn older_groups_have_a_hierarchy_for_each_controller() {
        let files = [
            ("memory/a/memory.usage_in_bytes", "7"),
            ("memory/a/memory.limit_in_bytes", "9223372036854771712"),
            ("memory/memory.usage_in_bytes", "8"),
            ("memory/memory.limit_in_bytes", "9"),
            ("cpu/cpu.shares", "2000"),
            ("cpuacct/b/cpuacct.usage", "3000000000"),
        ];
        let (_folder, groups) = groups("4:memory:/a\n3:cpu,cpuacct:/b\n", &files);
        assert_eq!(groups.memory().unwrap(), [Memory { used: 7, limit: None }, Memory { used: 8, limit: Some(9) }]);
        assert_eq!(groups.cpu().unwrap(), Cpu { used: Duration::from_secs(3), cores: 2.0 });
    }

    #[test]
    fn what_is_not_there_or_not_understood_is_told_by_its_file() {
        let (_folder, groups) = groups("", &[UNIFIED, ("memory.current", "many"), ("cpu.stat", "usage_usec 1"), ("cpu.max", "1 0")]);
        let memory = groups.memory().unwrap_err().to_string();
        assert!(memory.contains("memory.current says \"many\""), "{memory}");
        assert!(groups.cpu().unwrap_err().to_string().contains("cpu.max"));
        for file in ["cpu.max", "cpu.stat", "memory.current"] {
            std::fs::remove_file(groups.root.join(file)).unwrap();
        }
        assert!(groups.cpu().unwrap_err().to_string().contains("cpu.stat"));
        assert!(groups.memory().unwrap_err().to_string().contains("memory.current"));
    }
}
