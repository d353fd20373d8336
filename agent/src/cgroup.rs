//! Control groups: which one a process is in, what the kernel counts for it, and which container and pod it stands for. Version
//! 1, version 2, and both side by side.

pub mod pods;

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::{MountInfo, Process};
use serde::Serialize;

use crate::counters::counters;

/// A container by the name of its control group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Container {
    /// What the runtime calls it: 64 hexadecimal digits.
    #[serde(rename = "container_id", skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Which runtime made it, where the name says so: `containerd`, `crio`, `docker`, `podman`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<&'static str>,
    /// Its pod's uid, with dashes; of a static pod the hash of its configuration, without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
}

/// The groups of one process, as folders that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Where its memory is counted; absent in the root group, which is the whole node.
    memory: Option<Folder>,
    /// Where its CPU time is limited.
    cpu: Option<Folder>,
    /// Whose it is.
    pub container: Container,
}

/// One group in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Folder {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Memory of a group, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupMemory {
    /// What cannot be dropped at once: usage less inactive file pages, as the kubelet has it.
    pub working_set_bytes: u64,
    /// Of its sockets' buffers; version 1 counts these only where they are limited, and apart from the rest.
    pub sockets_bytes: Option<u64>,
}

/// How often and how long a group was kept from running by its limit. Counters that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Throttling {
    /// Periods in which it ran.
    pub periods: u64,
    /// Those in which it came to its limit.
    pub throttled_periods: u64,
    /// Time that its threads were kept waiting, ns.
    pub throttled_ns: u64,
}

/// A mounted hierarchy.
#[derive(Clone, Debug)]
struct Mount {
    /// Which group its folder shows.
    root: String,
    point: PathBuf,
    /// Nothing for version 2, which has all of those that version 1 has not.
    controllers: Option<Vec<String>>,
}

/// How runtimes begin the names of their groups.
const RUNTIMES: [(&str, &str); 4] =
    [("cri-containerd-", "containerd"), ("crio-", "crio"), ("docker-", "docker"), ("libpod-", "podman")];

impl Cgroup {
    /// The groups of a process; what cannot be found is absent.
    pub fn of(pid: u32) -> Self {
        let Ok(process) = i32::try_from(pid).map_err(drop).and_then(|pid| Process::new(pid).map_err(drop))
        else {
            return Self::default();
        };
        let mounts = mounts();
        let groups: Vec<_> = process.cgroups().into_iter().flatten().collect();
        let groups: Vec<_> =
            groups.iter().map(|group| (group.controllers.as_slice(), group.pathname.as_str())).collect();
        Self {
            memory: folder(&mounts, &groups, "memory"),
            cpu: folder(&mounts, &groups, "cpu"),
            container: groups
                .iter()
                .map(|(_, path)| Container::of(path))
                .find(|container| container.id.is_some() || container.pod_uid.is_some())
                .unwrap_or_default(),
        }
    }

    /// What it uses now.
    pub fn memory(&self) -> Option<GroupMemory> {
        self.memory.as_ref()?.memory()
    }

    /// What its limit has cost so far; `None` where there is no limit to be counted.
    pub fn throttling(&self) -> Option<Throttling> {
        let Folder { path, version } = self.cpu.as_ref()?;
        let stat = fs::read_to_string(path.join("cpu.stat")).ok()?;
        let throttled_ns = match version {
            Version::One => value(&stat, "throttled_time")?,
            Version::Two => value(&stat, "throttled_usec")? * 1_000,
        };
        let throttled_periods = value(&stat, "nr_throttled")?;
        // Counted only where there is a limit.
        let periods = value(&stat, "nr_periods")?;
        (periods > 0).then_some(Throttling { periods, throttled_periods, throttled_ns })
    }
}

impl Folder {
    fn memory(&self) -> Option<GroupMemory> {
        let Self { path, version } = self;
        let (usage, inactive) = match version {
            Version::One => ("memory.usage_in_bytes", "total_inactive_file"),
            Version::Two => ("memory.current", "inactive_file"),
        };
        let stat = fs::read_to_string(path.join("memory.stat")).ok()?;
        let usage_bytes = number(&path.join(usage))?;
        Some(GroupMemory {
            working_set_bytes: usage_bytes.saturating_sub(value(&stat, inactive).unwrap_or(0)),
            sockets_bytes: value(&stat, "sock"),
        })
    }

    /// CPU time of all that was ever in it, ns. Version 2 counts it with or without its controller.
    fn cpu_ns(&self) -> Option<u64> {
        let Self { path, version } = self;
        match version {
            Version::One => number(&path.join("cpuacct.usage")),
            Version::Two => {
                let stat = fs::read_to_string(path.join("cpu.stat")).ok()?;
                value(&stat, "usage_usec").map(|us| us * 1_000)
            }
        }
    }
}

counters!(Throttling { periods, throttled_periods, throttled_ns });

impl Container {
    /// By the path of a group, in the forms that runtimes and the kubelet give it: `cgroupfs` and `systemd` drivers of docker,
    /// containerd and cri-o, docker and podman by themselves.
    pub fn of(path: &str) -> Self {
        let mut found = Self::default();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            // `kubepods-besteffort-podUID.slice:cri-containerd:ID`: a driver that was told the other's form.
            for name in part.split(':') {
                found.take(name);
            }
        }
        found
    }

    fn take(&mut self, part: &str) {
        let name = part.strip_suffix(".slice").or_else(|| part.strip_suffix(".scope")).unwrap_or(part);
        if let Some(uid) = name.rsplit_once("-pod").map(|(_, uid)| uid).or_else(|| name.strip_prefix("pod"))
            && let uid = uid.replace('_', "-")
            && is_pod_uid(&uid)
        {
            self.pod_uid = Some(uid);
            return;
        }
        let prefixed =
            RUNTIMES.iter().find_map(|&(prefix, runtime)| Some((name.strip_prefix(prefix)?, runtime)));
        match (prefixed, name) {
            (Some((id, runtime)), _) if is_id(id) => {
                self.id = Some(id.to_owned());
                self.runtime = Some(runtime);
            }
            (None, id) if is_id(id) => self.id = Some(id.to_owned()),
            (None, "docker") => self.runtime = Some("docker"),
            (None, "cri-containerd") => self.runtime = Some("containerd"),
            _ => {}
        }
    }
}

/// 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// 8-4-4-4-12 hexadecimal digits, or, of a static pod, the 32 of its configuration's hash.
fn is_pod_uid(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let lengths: Vec<_> = text.split('-').map(str::len).collect();
    text.split('-').all(digits) && matches!(lengths[..], [8, 4, 4, 4, 12] | [32])
}

fn mounts() -> Vec<Mount> {
    let Ok(infos) = Process::myself().and_then(|process| process.mountinfo()) else { return Vec::new() };
    infos.into_iter().filter_map(|info| Mount::of(&info)).collect()
}

impl Mount {
    fn of(info: &MountInfo) -> Option<Self> {
        let controllers = match info.fs_type.as_str() {
            "cgroup2" => None,
            "cgroup" => Some(info.super_options.keys().cloned().collect()),
            _ => return None,
        };
        Some(Self { root: info.root.clone(), point: info.mount_point.clone(), controllers })
    }

    /// Where it shows the group of this path; `None` if that lies outside.
    fn place(&self, path: &str) -> Option<PathBuf> {
        let below = if self.root == "/" { path } else { path.strip_prefix(&self.root)? };
        let below = below.trim_start_matches('/');
        // A path that leads out of what this process may see.
        (!below.split('/').any(|part| part == "..")).then(|| self.point.join(below))
    }
}

/// Where the group of a process is that a controller counts. Version 1 first: a controller is in one hierarchy only.
fn folder(mounts: &[Mount], groups: &[(&[String], &str)], controller: &str) -> Option<Folder> {
    let has = |controllers: &[String]| controllers.iter().any(|name| name == controller);
    let by = |version: Version| {
        let (_, path) = groups.iter().find(|(controllers, _)| match version {
            Version::One => has(controllers),
            Version::Two => controllers.iter().all(String::is_empty),
        })?;
        let mount = mounts.iter().find(|mount| match (&mount.controllers, version) {
            (Some(controllers), Version::One) => has(controllers),
            (None, Version::Two) => true,
            _ => false,
        })?;
        (*path != "/").then(|| mount.place(path)).flatten().map(|path| Folder { path, version })
    };
    by(Version::One).or_else(|| by(Version::Two))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind a name, of lines of both.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "2f1a6c3e-7f0e-4c58-9a30-5d2f0a4b8c11";
    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015";

    /// (path, runtime, has an id, pod's uid)
    fn forms() -> Vec<(String, Option<&'static str>, bool, Option<&'static str>)> {
        let under = UID.replace('-', "_");
        vec![
            // Kubernetes with the `cgroupfs` driver.
            (format!("/kubepods/burstable/pod{UID}/{ID}"), None, true, Some(UID)),
            (format!("/kubepods/pod{UID}/{ID}"), None, true, Some(UID)),
            (format!("/kubepods/besteffort/pod{HASH}/{ID}"), None, true, Some(HASH)),
            // With the `systemd` driver.
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                Some("containerd"),
                true,
                Some(UID),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope/container"),
                Some("crio"),
                true,
                Some(UID),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{HASH}.slice/docker-{ID}.scope"
                ),
                Some("docker"),
                true,
                Some(HASH),
            ),
            // The `systemd` form given to a runtime with the `cgroupfs` driver.
            (
                format!(
                    "/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{ID}"
                ),
                Some("containerd"),
                true,
                Some(UID),
            ),
            // In a kubelet that is itself in a container (kind).
            (
                format!(
                    "/docker/{ID}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                Some("containerd"),
                true,
                Some(UID),
            ),
            // Without Kubernetes.
            (format!("/docker/{ID}"), Some("docker"), true, None),
            (format!("/system.slice/docker-{ID}.scope"), Some("docker"), true, None),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Some("podman"), true, None),
            // No container.
            ("/system.slice/nginx.service".to_owned(), None, false, None),
            ("/user.slice/user-1000.slice/session-2.scope".to_owned(), None, false, None),
            // What watches over one is not in it.
            (format!("/machine.slice/crio-conmon-{ID}.scope"), None, false, None),
            ("/".to_owned(), None, false, None),
        ]
    }

    #[test]
    fn every_form_of_a_containers_path() {
        for (path, runtime, has_id, pod_uid) in forms() {
            let want =
                Container { id: has_id.then(|| ID.to_owned()), runtime, pod_uid: pod_uid.map(str::to_owned) };
            assert_eq!(Container::of(&path), want, "{path}");
        }
    }

    fn mount(root: &str, point: &str, controllers: Option<&[&str]>) -> Mount {
        let controllers = controllers.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        Mount { root: root.into(), point: point.into(), controllers }
    }

    fn found(mounts: &[Mount], groups: &[(&[&str], &str)], controller: &str) -> Option<(String, Version)> {
        let owned: Vec<(Vec<String>, &str)> = groups
            .iter()
            .map(|(names, path)| (names.iter().map(|&name| name.to_owned()).collect(), *path))
            .collect();
        let groups: Vec<_> = owned.iter().map(|(names, path)| (names.as_slice(), *path)).collect();
        folder(mounts, &groups, controller)
            .map(|Folder { path, version }| (path.to_string_lossy().into_owned(), version))
    }

    #[test]
    fn a_controller_is_found_in_whichever_hierarchy_has_it() {
        let one = mount("/", "/sys/fs/cgroup/memory", Some(&["rw", "memory"]));
        let two = mount("/", "/sys/fs/cgroup/unified", None);
        let groups: &[(&[&str], &str)] = &[(&["memory"], "/a"), (&[""], "/b")];
        // Hybrid: memory is version 1's, cpu is left to version 2.
        let hybrid = [two.clone(), one.clone()];
        assert_eq!(found(&hybrid, groups, "memory"), Some(("/sys/fs/cgroup/memory/a".into(), Version::One)));
        assert_eq!(found(&hybrid, groups, "cpu"), Some(("/sys/fs/cgroup/unified/b".into(), Version::Two)));
        assert_eq!(
            found(&[two], &[(&[], "/b")], "memory"),
            Some(("/sys/fs/cgroup/unified/b".into(), Version::Two))
        );
        assert_eq!(found(&[one], &[(&["memory"], "/")], "memory"), None, "the root group is the node");
    }

    #[test]
    fn a_mount_that_shows_a_part_shows_only_that() {
        let part = mount("/kubepods", "/host/cgroup", None);
        assert_eq!(part.place("/kubepods/pod1"), Some("/host/cgroup/pod1".into()));
        assert_eq!(part.place("/system.slice"), None);
        assert_eq!(mount("/", "/sys/fs/cgroup", None).place("/../x"), None);
    }

    #[test]
    fn both_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let group = |version| {
            let folder = Some(Folder { path: dir.path().into(), version });
            Cgroup { memory: folder.clone(), cpu: folder, container: Container::default() }
        };
        write("memory.current", "1000\n");
        write("memory.stat", "anon 5\ninactive_file 300\nsock 40\n");
        write("cpu.stat", "usage_usec 9\nnr_periods 7\nnr_throttled 2\nthrottled_usec 5\n");
        let two = group(Version::Two);
        assert_eq!(two.memory(), Some(GroupMemory { working_set_bytes: 700, sockets_bytes: Some(40) }));
        let throttling = Throttling { periods: 7, throttled_periods: 2, throttled_ns: 5_000 };
        assert_eq!(two.throttling(), Some(throttling));
        write("memory.usage_in_bytes", "2000\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 500\n");
        write("cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 5000\n");
        let one = group(Version::One);
        assert_eq!(one.memory(), Some(GroupMemory { working_set_bytes: 1500, sockets_bytes: None }));
        assert_eq!(one.throttling(), Some(throttling));
    }
}
