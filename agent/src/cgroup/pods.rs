//! What the node's pods have used, by the kernel's accounting of their own control groups.
//!
//! A pod's group has everything that was in it since it was made, containers that have ended too; so one group for each pod is
//! read, not one for each container.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use tracing::debug;

use super::{Container, Folder, Mount, Version, mounts};

/// How many pods are told apart: more than kubelets run (110 unless told, some clusters 500).
pub const MAX_PODS: usize = 1_000;
/// How many groups are looked at for pods, and how deep: a kubelet may itself be in a container.
const MAX_GROUPS: usize = 20_000;
const MAX_DEPTH: usize = 12;

/// Of one pod. What the kernel does not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodUse {
    /// CPU time, ns: a counter.
    pub cpu_ns: Option<u64>,
    /// What cannot be dropped at once, as the kubelet has it, at the end, bytes.
    pub working_set_bytes: Option<u64>,
}

/// What a group used in a window, as results have it: control groups, one or several together, or processes of one name. What is
/// unknown is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GroupCost {
    /// CPU time, ns; of a pod that began in the window, from its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<u64>,
    /// The same as a number of CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<f64>,
    /// What cannot be dropped at once, as the kubelet has it, at the end, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set_bytes: Option<u64>,
}

/// The pods' counters at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodGroups {
    /// By the uid in the group's name, which of a static pod is the hash of its configuration.
    pods: BTreeMap<String, PodUse>,
    /// Groups of pods beyond [`MAX_PODS`].
    not_listed: u32,
    /// CPU time of the group that all pods are in, ns, those that have ended too. Absent where some pod is elsewhere.
    all_cpu_ns: Option<u64>,
}

/// What the pods used in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodsUse {
    /// By uid, as in control groups: those that were there at its end. One that began in it counts from its start.
    pub pods: BTreeMap<String, PodUse>,
    /// Pods that were there when it opened and not when it closed.
    pub ended: u32,
    /// Groups of pods beyond [`MAX_PODS`] at its end.
    pub not_listed: u32,
    /// CPU time of pods that are not in `pods`, ns: those that ended in it, those beyond the limit. Absent where it cannot be told.
    pub other_cpu_ns: Option<u64>,
}

/// Where the groups were found.
#[derive(Debug, Default)]
struct Found {
    /// The groups of each pod, by uid. A pod has several only where its containers' groups
    /// are not in one of its own.
    pods: BTreeMap<String, Vec<Folder>>,
    not_listed: u32,
    /// The groups that all pods are in: one, or one for each kubelet.
    all: Vec<Folder>,
    /// Some pod is in none of these.
    elsewhere: bool,
}

impl PodGroups {
    /// CPU time so far.
    pub(crate) fn counters() -> Self {
        Self::timed(false)
    }

    /// CPU time so far and memory now.
    pub(crate) fn counters_and_memory() -> Self {
        Self::timed(true)
    }

    fn timed(memory: bool) -> Self {
        let begun = Instant::now();
        let found = Self::read(&mounts(), memory);
        debug!("looking at {} pods took {} us", found.pods.len(), begun.elapsed().as_micros());
        found
    }

    fn read(mounts: &[Mount], memory: bool) -> Self {
        let Some((mount, version)) = hierarchy(mounts, "cpuacct") else { return Self::default() };
        let Found { pods, not_listed, all, elsewhere } = Found::below(mount, version);
        let of_memory = hierarchy(mounts, "memory").filter(|_| memory);
        let working_set_bytes = |folder: &Folder| {
            let (of_memory, version) = of_memory?;
            let path = of_memory.place(&mount.name_of(&folder.path)?)?;
            Some(Folder { path, version }.memory()?.working_set_bytes)
        };
        let read = |folders: Vec<Folder>| PodUse {
            cpu_ns: folders.iter().map(Folder::cpu_ns).sum(),
            working_set_bytes: folders.iter().map(working_set_bytes).sum(),
        };
        Self {
            pods: pods.into_iter().map(|(uid, folders)| (uid, read(folders))).collect(),
            not_listed,
            all_cpu_ns: if all.is_empty() || elsewhere { None } else { all.iter().map(Folder::cpu_ns).sum() },
        }
    }

    /// What was added since `earlier`, memory as it is now.
    pub(crate) fn since(&self, earlier: &Self) -> PodsUse {
        let pods: BTreeMap<_, _> = self
            .pods
            .iter()
            // A group that went while it was read has nothing.
            .filter(|(_, now)| now.cpu_ns.is_some())
            .map(|(uid, now)| {
                let before_ns = match earlier.pods.get(uid) {
                    Some(then) => then.cpu_ns,
                    // It may have been one of those that were not read.
                    None if earlier.not_listed > 0 => None,
                    None => Some(0),
                };
                // Less than before: a group that was made anew under the same name.
                let cpu_ns = now.cpu_ns.and_then(|now_ns| now_ns.checked_sub(before_ns?));
                (uid.clone(), PodUse { cpu_ns, ..*now })
            })
            .collect();
        let told_ns: u64 = pods.values().filter_map(|pod| pod.cpu_ns).sum();
        let all_cpu_ns = match (self.all_cpu_ns, earlier.all_cpu_ns) {
            (Some(now_ns), Some(then_ns)) => now_ns.checked_sub(then_ns),
            _ => None,
        };
        PodsUse {
            ended: earlier.pods.keys().filter(|uid| !pods.contains_key(*uid)).count() as u32,
            pods,
            not_listed: self.not_listed,
            // The counters are not read at one instant.
            other_cpu_ns: all_cpu_ns.map(|all_ns| all_ns.saturating_sub(told_ns)),
        }
    }
}

impl PodsUse {
    /// True if there was no pod.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.ended == 0 && self.not_listed == 0
    }
}

impl Found {
    /// Names only: where there is no pod nothing is read.
    fn below(mount: &Mount, version: Version) -> Self {
        let mut found = Self::default();
        let mut next = vec![(mount.point.clone(), 0, false)];
        let mut seen = 0;
        while let Some((path, depth, among_pods)) = next.pop() {
            for (path, name) in groups_in(&path) {
                seen += 1;
                if let Some(uid) = Container::of(&name).pod_uid {
                    found.elsewhere |= !among_pods;
                    found.put(uid, Folder { path, version });
                } else if depth < MAX_DEPTH && seen < MAX_GROUPS {
                    let begins = !among_pods && is_of_all_pods(&name);
                    if begins {
                        found.all.push(Folder { path: path.clone(), version });
                    }
                    next.push((path, depth + 1, among_pods || begins));
                }
            }
        }
        found
    }

    fn put(&mut self, uid: String, folder: Folder) {
        if self.pods.len() < MAX_PODS || self.pods.contains_key(&uid) {
            self.pods.entry(uid).or_default().push(folder);
        } else {
            self.not_listed += 1;
        }
    }
}

fn groups_in(path: &Path) -> impl Iterator<Item = (PathBuf, String)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?)))
}

/// `kubepods` with the `cgroupfs` driver, `kubepods.slice` with `systemd`'s, `kubelet-kubepods.slice` where the kubelet is told a root.
fn is_of_all_pods(name: &str) -> bool {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    name == "kubepods" || name.ends_with("-kubepods")
}

/// Where a controller counts: in version 1 if that has it. Of several places the one that shows all.
fn hierarchy<'a>(mounts: &'a [Mount], controller: &str) -> Option<(&'a Mount, Version)> {
    let of = |version: Version| {
        let mounts = mounts.iter().filter(|mount| match (&mount.controllers, version) {
            (Some(controllers), Version::One) => controllers.iter().any(|name| name == controller),
            (None, Version::Two) => true,
            _ => false,
        });
        mounts.min_by_key(|mount| mount.root != "/").map(|mount| (mount, version))
    };
    of(Version::One).or_else(|| of(Version::Two))
}

impl Mount {
    /// What [`Mount::place`] finds.
    fn name_of(&self, place: &Path) -> Option<String> {
        let below = place.strip_prefix(&self.point).ok()?.to_str()?;
        Some(format!("{}/{below}", self.root.trim_end_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "2f1a6c3e-7f0e-4c58-9a30-5d2f0a4b8c11";
    const OTHER: &str = "e8846e7d-ea70-4244-9090-4bc183b935bb";
    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015";
    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// A node with files for groups.
    struct Node {
        dir: tempfile::TempDir,
        mounts: Vec<Mount>,
    }

    impl Node {
        fn new(version: Version) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mount = |below: &str, controllers: Option<&[&str]>| Mount {
                root: "/".into(),
                point: dir.path().join(below),
                controllers: controllers.map(|names| names.iter().map(|&name| name.to_owned()).collect()),
            };
            let mounts = match version {
                Version::One => vec![
                    mount("unified", None),
                    mount("cpuacct", Some(&["rw", "cpuacct"])),
                    mount("memory", Some(&["rw", "memory"])),
                ],
                Version::Two => vec![mount("", None)],
            };
            Self { dir, mounts }
        }

        /// CPU time in us, working set in bytes.
        fn put(&self, group: &str, cpu_us: u64, working_set_bytes: u64) {
            let write = |below: &str, name: &str, text: String| {
                let folder = self.dir.path().join(below).join(group);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(name), text).unwrap();
            };
            if self.mounts.len() > 1 {
                write("cpuacct", "cpuacct.usage", format!("{}\n", cpu_us * 1_000));
                write("memory", "memory.usage_in_bytes", format!("{}\n", working_set_bytes + 500));
                write("memory", "memory.stat", "inactive_file 1\ntotal_inactive_file 500\n".into());
            } else {
                write("", "cpu.stat", format!("usage_usec {cpu_us}\nuser_usec 1\nsystem_usec 1\n"));
                write("", "memory.current", format!("{}\n", working_set_bytes + 300));
                write("", "memory.stat", "anon 1\ninactive_file 300\n".into());
            }
        }

        fn end(&self, group: &str) {
            for below in ["", "cpuacct", "memory"] {
                drop(fs::remove_dir_all(self.dir.path().join(below).join(group)));
            }
        }

        fn read(&self) -> PodGroups {
            PodGroups::read(&self.mounts, true)
        }
    }

    fn used(cpu_us: u64, working_set_bytes: u64) -> PodUse {
        PodUse { cpu_ns: Some(cpu_us * 1_000), working_set_bytes: Some(working_set_bytes) }
    }

    #[test]
    fn pods_of_both_versions_and_drivers_and_nothing_else() {
        let under = UID.replace('-', "_");
        for (version, all, pod, hashed) in [
            (Version::One, "kubepods", format!("burstable/pod{UID}"), format!("besteffort/pod{HASH}")),
            (
                Version::Two,
                "kubepods.slice",
                format!("kubepods-burstable.slice/kubepods-burstable-pod{under}.slice"),
                format!("kubepods-pod{HASH}.slice"),
            ),
        ] {
            let node = Node::new(version);
            node.put(all, 900, 9_000);
            node.put(&format!("{all}/{pod}"), 300, 1_000);
            // Its containers are in it already.
            node.put(&format!("{all}/{pod}/cri-containerd-{ID}.scope"), 200, 700);
            node.put(&format!("{all}/{hashed}"), 500, 2_000);
            node.put("system.slice/nginx.service", 7_000, 7);
            let pods = [(UID, used(300, 1_000)), (HASH, used(500, 2_000))];
            let want = PodGroups {
                pods: pods.map(|(uid, used)| (uid.to_owned(), used)).into(),
                not_listed: 0,
                all_cpu_ns: Some(900_000),
            };
            assert_eq!(node.read(), want);
            let without = PodGroups::read(&node.mounts, false);
            assert!(without.pods.values().all(|pod| pod.working_set_bytes.is_none()));
        }
    }

    #[test]
    fn groups_of_containers_that_are_in_none_of_the_pods_add_up() {
        let node = Node::new(Version::Two);
        let group = |id: &str| {
            let under = UID.replace('-', "_");
            format!("system.slice/containerd.service/kubepods-pod{under}.slice:cri-containerd:{id}")
        };
        node.put(&group(ID), 100, 10);
        node.put(&group(&ID.replace('0', "a")), 50, 20);
        let found = node.read();
        assert_eq!(found.pods[UID], used(150, 30));
        assert_eq!(found.all_cpu_ns, None, "there is no group that all are in");
    }

    #[test]
    fn without_pods_there_is_nothing() {
        let node = Node::new(Version::Two);
        node.put("system.slice/nginx.service", 7_000, 7);
        let found = node.read();
        assert_eq!(found, PodGroups::default());
        assert!(found.since(&found).is_empty());
        assert_eq!(PodGroups::read(&[], true), PodGroups::default());
    }

    #[test]
    fn pods_that_begin_and_end_in_the_window() {
        let node = Node::new(Version::One);
        let (stays, ends, begins) = ("kubepods/podSTAYS", "kubepods/podENDS", "kubepods/podBEGINS");
        let [stays, ends, begins] = [(stays, UID), (ends, OTHER), (begins, HASH)].map(|(group, uid)| {
            let (start, _) = group.rsplit_once("pod").unwrap();
            format!("{start}pod{uid}")
        });
        node.put("kubepods", 1_000, 0);
        node.put(&stays, 300, 10);
        node.put(&ends, 700, 20);
        let open = node.read();
        node.end(&ends);
        node.put("kubepods", 1_090, 0);
        node.put(&stays, 350, 30);
        node.put(&begins, 25, 40);
        let used_now = node.read().since(&open);
        assert_eq!(used_now.pods[UID], used(50, 30));
        assert_eq!(used_now.pods[HASH], used(25, 40), "from its start");
        assert_eq!((used_now.pods.len(), used_now.ended), (2, 1));
        assert_eq!(used_now.other_cpu_ns, Some(15_000), "what the one that ended had used till then");
        // The same name, another group.
        node.put(&stays, 1, 5);
        let anew = node.read().since(&open).pods[UID];
        assert_eq!(anew, PodUse { cpu_ns: None, working_set_bytes: Some(5) });
    }

    #[test]
    fn beyond_the_limit_pods_are_counted_and_their_time_is_not_lost() {
        let node = Node::new(Version::One);
        let group = |number: usize| format!("kubepods/pod{number:032x}");
        node.put("kubepods", 0, 0);
        (0..MAX_PODS + 5).for_each(|number| node.put(&group(number), 0, 0));
        let open = node.read();
        assert_eq!((open.pods.len(), open.not_listed), (MAX_PODS, 5));
        (0..MAX_PODS + 5).for_each(|number| node.put(&group(number), 2, 1));
        node.put("kubepods", 2 * (MAX_PODS as u64 + 5), 0);
        let used = node.read().since(&open);
        assert_eq!((used.pods.len(), used.not_listed, used.ended), (MAX_PODS, 5, 0));
        assert_eq!(used.other_cpu_ns, Some(10_000));
        // One that was not read before, and may have run for long.
        let first = open.pods.keys().next().unwrap().clone();
        let without = PodGroups {
            pods: open
                .pods
                .iter()
                .filter(|(uid, _)| **uid != first)
                .map(|(uid, pod)| (uid.clone(), *pod))
                .collect(),
            ..open
        };
        assert_eq!(node.read().since(&without).pods[&first].cpu_ns, None);
    }
}
