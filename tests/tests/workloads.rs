//! What the agent says of the pods on its node is what their control groups' own files say, and what ran in them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bed::burn::Spent;
use bed::process::Child;
use bed::span::Span;
use bed::tools;
use serde_json::Value;

mod replay;

const ROOT: &str = "/sys/fs/cgroup";
/// How far from the truth memory may be, bytes: the kernel keeps some on each CPU for the next charge.
const MEMORY_BYTES: f64 = 1024.0 * 1024.0;
const POLL: Duration = Duration::from_millis(20);

/// The group that all pods are in.
const ALL: &str = "kubepods";
/// A recorded container's, and the static pod's.
const CART: &str = "kubepods/burstable/pode8846e7d-ea70-4244-9090-4bc183b935bb/e2698b95806dde2aad4a990f413623736049433c555a4b2d37211a20c46ce074";
const EDGE: &str = "kubepods/burstable/pod5c8089f7165e1672890cdc936c0d4b33/a772e915ec29ac1b9d4c21c38e43f5e62783c6ed7e2e44f32e3cb2a56b44b191";
/// One that the API server does not know.
const ENDS: &str = "kubepods/besteffort/pod00000000-0000-4000-8000-000000000001/0000000000000000000000000000000000000000000000000000000000000001";

#[test]
fn pods_that_stay_and_one_that_ends() -> Result<()> {
    let dir = tools::target().join("tests/workloads");
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir)?;
    let (address, _lists) = replay::server(Some(replay::recorded!("list.http")))?;
    let groups = Groups::new()?;
    let mut cart = Burner::start(&groups, CART, &dir, &["--user-ms", "1200", "--memory-mib", "64"])?;
    let mut edge = Burner::start(&groups, EDGE, &dir, &["--system-ms", "800", "--memory-mib", "24"])?;
    let mut ends = Burner::start(&groups, ENDS, &dir, &["--user-ms", "400", "--end"])?;
    groups.wait_for_memory(CART, 64 << 20)?;
    groups.wait_for_memory(EDGE, 24 << 20)?;

    let span = Span::new(dir.join("window"))?;
    let mut agent = replay::agent(&dir, &address)?;
    agent.args(["--kubernetes=on", "--node-name=node-a", &format!("--proxy={}", cart.child.pid()), "--out"]);
    agent.arg(&dir).arg("--").args(span.words());
    let mut agent = Child::start("smp-agent", &agent, &dir)?;
    let window = span.begin(&mut agent)?;
    let before = [CART, EDGE, ENDS].map(|group| groups.cpu_ns(group));
    fs::write(dir.join("go"), "")?;
    let [of_cart, of_edge, of_ends] = [cart.spent()?, edge.spent()?, ends.spent()?];
    ensure!(ends.child.wait()?.success());
    let after = [CART, EDGE, ENDS].map(|group| groups.cpu_ns(group));
    let memory = [CART, EDGE].map(|group| groups.working_set_bytes(group));
    groups.remove(ENDS)?;
    drop(window);
    let status = agent.wait_for(tools::longest())?;
    ensure!(status.success(), "{status}{}", agent.tail());

    let read = |name: &str| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(dir.join(name))?)?) };
    let (document, result) = (read("overhead.json")?, read("result.json")?);
    let [group_cart, group_edge, group_ends]: [f64; 3] = std::array::from_fn(|index| {
        let count = |of: &[Result<u64>; 3]| *of[index].as_ref().expect("the group's own files");
        (count(&after) - count(&before)) as f64
    });
    let [memory_cart, memory_edge] = memory.map(|bytes| bytes.expect("the group's own files") as f64);
    let seconds = number(&document["window"], "seconds");
    for (name, group, spent, group_ns, memory_bytes, least_bytes) in [
        ("cart", CART, of_cart, group_cart, memory_cart, 64 << 20),
        ("edge-node-a", EDGE, of_edge, group_edge, memory_edge, 24 << 20),
    ] {
        let workloads = document["kubernetes"]["workloads"].as_array().context("no workloads")?;
        let workload = workloads.iter().find(|workload| workload["name"] == name).context(name)?;
        println!("{name}: {workload}; its group {group_ns} ns, {memory_bytes} bytes; its program {spent:?}");
        let cpu_ns = number(workload, "cpu_ns");
        assert_near(name, cpu_ns, group_ns);
        assert_near(name, cpu_ns, spent.total_ns as f64);
        assert_near(name, cpu_ns, (spent.user_ns + spent.system_ns) as f64);
        let working_set = number(workload, "working_set_bytes");
        assert!((working_set - memory_bytes).abs() <= MEMORY_BYTES, "{working_set} for {memory_bytes}");
        assert!(working_set >= f64::from(least_bytes), "{workload}");
        assert_eq!(workload.get("unmeasured_pods"), None);
        // The same pod by its uid.
        let uid = group.split('/').find_map(|part| part.strip_prefix("pod")).context("a pod")?;
        let pods = document["pods"].as_array().context("no pods")?;
        let pod = pods.iter().find(|pod| pod["pod_uid"] == uid).context("it is not among the pods")?;
        for of_both in ["cpu_ns", "cpu_cores", "working_set_bytes"] {
            assert_eq!(pod[of_both], workload[of_both], "{of_both}");
        }
        let in_smp = result["environment"]["individual_workloads"].as_array().context("none in SMP")?;
        let in_smp =
            in_smp.iter().find(|found| found["name"].to_string().contains(name)).context("in SMP")?;
        let mcores = (cpu_ns / 1e6 / seconds).round();
        assert!((number(in_smp, "cpu_mcores") - mcores).abs() <= f64::EPSILON, "{in_smp} for {mcores}");
        assert!((number(in_smp, "mem_mb") - (working_set / 1e6).round()).abs() <= f64::EPSILON, "{in_smp}");
    }
    let others = &document["other_pods"];
    println!("ended: {others}; its group {group_ends} ns; its program {of_ends:?}");
    assert_eq!(others["ended"], 1, "{others}");
    assert_near("ended", number(others, "cpu_ns"), group_ends);
    // Its own end is not on its account.
    ensure!(number(others, "cpu_ns") >= (1.0 - share()) * of_ends.total_ns as f64, "{others}");
    Ok(())
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// How far from the truth CPU time may be, as a share of it. An emulated machine takes long from one count to the next, and what
/// waits for its sign looks for it meanwhile.
fn share() -> f64 {
    if tools::emulated() { 0.1 } else { 0.02 }
}

#[track_caller]
fn assert_near(what: &str, got: f64, truth: f64) {
    assert!((got - truth).abs() <= share() * truth, "{what}: {got} for {truth}");
}

/// A program of known cost in a group of its own.
struct Burner {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Burner {
    fn start(groups: &Groups, group: &str, dir: &Path, args: &[&str]) -> Result<Self> {
        let folders = groups.make(group)?;
        // In it from its start, so that all its memory is the group's.
        let enter = |folder: &PathBuf| format!("echo $$ >{}/cgroup.procs; ", folder.display());
        let enter: String = folders.iter().map(enter).collect();
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", &format!("{enter} exec \"$@\""), "sh", env!("CARGO_BIN_EXE_bed")]);
        command.arg("burn").arg("--go").arg(dir.join("go")).args(args);
        let (child, stdout) = Child::piped("burner", &command)?;
        Ok(Self { child, stdout: BufReader::new(stdout) })
    }

    fn spent(&mut self) -> Result<Spent> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("a burner said {line:?}"))
    }
}

/// A node's groups in those hierarchies that count CPU time or memory; removed on drop.
struct Groups {
    /// For CPU time, then, where it is another one, for memory.
    hierarchies: Vec<PathBuf>,
}

impl Groups {
    fn new() -> Result<Self> {
        let (root, name) = (Path::new(ROOT), format!("smp-agent-test-{}", std::process::id()));
        let hierarchies = if root.join("cpuacct").exists() { vec!["cpuacct", "memory"] } else { vec![""] };
        let new =
            Self { hierarchies: hierarchies.into_iter().map(|below| root.join(below).join(&name)).collect() };
        new.make(ALL)?;
        Ok(new)
    }

    fn is_version_1(&self) -> bool {
        self.hierarchies.len() > 1
    }

    /// Its folders, with all above it.
    fn make(&self, group: &str) -> Result<Vec<PathBuf>> {
        let make = |hierarchy: &PathBuf| {
            let folder = hierarchy.join(group);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            if !self.is_version_1() {
                // Each group is counted if the one above it says so.
                let above: Vec<_> =
                    folder.ancestors().skip(1).filter(|path| path.starts_with(ROOT)).collect();
                for path in above.iter().rev() {
                    fs::write(path.join("cgroup.subtree_control"), "+memory")?;
                }
            }
            Ok(folder)
        };
        self.hierarchies.iter().map(make).collect()
    }

    /// Of the pod that a container's group is in.
    fn pod(&self, group: &str, hierarchy: usize) -> PathBuf {
        let pod = group.rsplit_once('/').map_or(group, |(pod, _)| pod);
        self.hierarchies[hierarchy].join(pod)
    }

    fn cpu_ns(&self, group: &str) -> Result<u64> {
        let folder = self.pod(group, 0);
        if self.is_version_1() {
            return Ok(fs::read_to_string(folder.join("cpuacct.usage"))?.trim().parse()?);
        }
        Ok(1_000 * value(&folder.join("cpu.stat"), "usage_usec ")?)
    }

    fn working_set_bytes(&self, group: &str) -> Result<u64> {
        let folder = self.pod(group, self.hierarchies.len() - 1);
        let (usage, inactive) = if self.is_version_1() {
            ("memory.usage_in_bytes", "total_inactive_file ")
        } else {
            ("memory.current", "inactive_file ")
        };
        let usage: u64 = fs::read_to_string(folder.join(usage))?.trim().parse()?;
        Ok(usage - value(&folder.join("memory.stat"), inactive)?)
    }

    fn wait_for_memory(&self, group: &str, bytes: u64) -> Result<()> {
        let begun = Instant::now();
        while self.working_set_bytes(group)? < bytes {
            ensure!(
                begun.elapsed() < Duration::from_secs(20),
                "it has only {:?}",
                self.working_set_bytes(group)
            );
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Removes a pod, as the kubelet does when it has ended.
    fn remove(&self, group: &str) -> Result<()> {
        for (index, hierarchy) in self.hierarchies.iter().enumerate() {
            for folder in [hierarchy.join(group), self.pod(group, index)] {
                fs::remove_dir(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
        Ok(())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.hierarchies.iter().for_each(|folder| clear(folder));
    }
}

/// Removes a group and all in it. Whoever is left there goes to the root.
fn clear(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            clear(&entry.path());
        }
    }
    let root = folder.ancestors().find(|above| !above.to_string_lossy().contains("smp-agent-test"));
    for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
        drop(fs::write(root.unwrap_or(folder).join("cgroup.procs"), pid));
    }
    if let Err(error) = fs::remove_dir(folder) {
        eprintln!("cannot remove {}: {error}", folder.display());
    }
}

fn value(path: &Path, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path)?;
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    found.with_context(|| format!("no {name} in {}", path.display()))
}
