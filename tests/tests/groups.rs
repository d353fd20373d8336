//! Control groups, of whichever version this machine counts in: what the agent says of a proxy's group is what that group's own
//! files say, and no other's.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bed::measuring::Measuring;
use bed::process::Child;
use bed::tools;
use serde_json::Value;

const ROOT: &str = "/sys/fs/cgroup";
/// How far from the group's own count memory may be, bytes: the kernel keeps some on each CPU for the next charge.
const MEMORY_BYTES: f64 = 1024.0 * 1024.0;
/// How long a program may take to get its memory.
const LONGEST: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

#[test]
fn two_proxies_in_groups_of_their_own() {
    let dir = tools::target().join("tests/groups");
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).expect("the target folder is writable");
    let go = dir.join("go");
    let groups = [("limited", 96), ("free", 24)].map(|(name, mib)| {
        let group = Group::new(&format!("smp-agent-test-{name}")).expect("a control group");
        let mut burner = group.command(env!("CARGO_BIN_EXE_bed"));
        burner.arg("burn").arg("--go").arg(&go).args(["--user-ms", "200", "--memory-mib", &mib.to_string()]);
        let burner = Child::piped(name, &burner).expect("a burner");
        let memory_bytes = f64::from(mib << 20);
        group.wait_for_memory(memory_bytes).expect("it has its memory");
        (group, memory_bytes, burner)
    });
    let [(group, ..), _] = &groups;
    group.limit(20).expect("a limit");
    let limited = group.cpu().to_owned();
    // The agent reads between these two, and again between the two at the end: an emulated machine takes long from one to the next.
    let before_opening = group.read().expect("the group's own files");
    let pids = groups.each_ref().map(|(.., (burner, _))| burner.pid());
    let measuring = Measuring::start_all(&pids, &dir).expect("a measurement");
    let after_opening = group.read().expect("the group's own files");
    fs::write(go, "").expect("the folder is writable");
    let groups = groups.map(|(group, memory_bytes, (burner, stdout))| {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("what it spent");
        (group, memory_bytes, burner)
    });
    let truths = groups.each_ref().map(|(group, ..)| group.read().expect("the group's own files"));
    let document = measuring.finish().expect("a document");
    let after_closing = groups.each_ref().map(|(group, ..)| group.read().expect("the group's own files"));
    let proxies = document["proxies"].as_array().expect("proxies");
    for (((group, memory_bytes, burner), truth), after) in groups.iter().zip(truths).zip(after_closing) {
        let proxy = proxies.iter().find(|proxy| proxy["pid"] == burner.pid()).expect("it is in the document");
        let memory = &proxy["memory"];
        println!("{}: {truth:?}; {memory}, {}", group.cpu().display(), proxy["cpu"]["throttling"]);
        assert!(truth.working_set_bytes >= *memory_bytes, "{truth:?}");
        let of_memory = |name: &str| number(memory, name);
        let difference = of_memory("working_set_bytes") - truth.working_set_bytes;
        assert!(difference.abs() <= MEMORY_BYTES, "{memory} for {truth:?}");
        assert!(of_memory("working_set_peak_bytes") >= of_memory("working_set_bytes"), "{memory}");
        assert!(of_memory("rss_bytes") >= *memory_bytes, "{memory}");
        assert!(of_memory("pss_bytes") <= of_memory("rss_bytes"), "{memory}");
        let throttling = &proxy["cpu"]["throttling"];
        if group.cpu() == limited {
            let least_ns = truth.throttled_ns - after_opening.throttled_ns;
            assert!(least_ns > 1e8, "the limit was to be felt: {truth:?}");
            let between_ns = least_ns..=after.throttled_ns - before_opening.throttled_ns;
            assert!(
                between_ns.contains(&number(throttling, "throttled_ns")),
                "{throttling} for {between_ns:?}"
            );
            let between = truth.throttled_periods - after_opening.throttled_periods
                ..=after.throttled_periods - before_opening.throttled_periods;
            let periods = throttling["throttled_periods"].as_u64().expect("a count");
            assert!(between.contains(&periods), "{throttling} for {between:?}");
        } else {
            assert!(throttling.is_null(), "{throttling}");
        }
    }
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// A control group in each hierarchy that counts CPU time or memory; removed on drop.
struct Group {
    folders: Vec<PathBuf>,
}

/// What its own files say.
#[derive(Clone, Copy, Debug)]
struct Truth {
    throttled_ns: f64,
    throttled_periods: u64,
    working_set_bytes: f64,
}

impl Group {
    fn new(name: &str) -> Result<Self> {
        let root = Path::new(ROOT);
        let folders: Vec<_> = if root.join("cpu").exists() {
            ["cpu", "memory"].map(|controller| root.join(controller).join(name)).into()
        } else {
            vec![root.join(name)]
        };
        for folder in folders.iter().filter(|folder| !folder.exists()) {
            fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Self { folders })
    }

    /// Whether it is one of version 1, with a hierarchy for each controller.
    fn is_version_1(&self) -> bool {
        self.folders.len() > 1
    }

    /// Lets it have so many percent of a CPU.
    fn limit(&self, percent: u32) -> Result<()> {
        let quota_us = percent * 1_000;
        let (file, value) = if self.is_version_1() {
            // Of 100 ms, by default.
            ("cpu.cfs_quota_us", quota_us.to_string())
        } else {
            ("cpu.max", format!("{quota_us} 100000"))
        };
        let file = self.cpu().join(file);
        fs::write(&file, value).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Where CPU time is limited.
    fn cpu(&self) -> &Path {
        &self.folders[0]
    }

    /// Runs a program in it from its start, so that all its memory is the group's.
    fn command(&self, program: &str) -> Command {
        let enter = |folder: &PathBuf| format!("echo $$ >{}/cgroup.procs; ", folder.display());
        let enter: String = self.folders.iter().map(enter).collect();
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", &format!("{enter} exec \"$@\""), "sh", program]);
        command
    }

    /// Waits until its program has so much memory.
    fn wait_for_memory(&self, bytes: f64) -> Result<()> {
        let begun = Instant::now();
        while self.read()?.working_set_bytes < bytes {
            ensure!(begun.elapsed() < LONGEST, "it has only {:?}", self.read());
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn read(&self) -> Result<Truth> {
        let cpu = fs::read_to_string(self.cpu().join("cpu.stat"))?;
        let memory = self.folders.last().context("a folder")?;
        let stat = fs::read_to_string(memory.join("memory.stat"))?;
        let value = |text: &str, name: &str| -> Result<u64> {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            found.with_context(|| format!("no {name} in {text}"))
        };
        let (usage, inactive, throttled_ns) = if self.is_version_1() {
            ("memory.usage_in_bytes", "total_inactive_file ", value(&cpu, "throttled_time ")?)
        } else {
            ("memory.current", "inactive_file ", value(&cpu, "throttled_usec ")? * 1_000)
        };
        let usage: u64 = fs::read_to_string(memory.join(usage))?.trim().parse()?;
        let inactive = value(&stat, inactive)?;
        ensure!(usage >= inactive, "{usage} bytes, of which {inactive} are inactive");
        Ok(Truth {
            throttled_ns: throttled_ns as f64,
            throttled_periods: value(&cpu, "nr_throttled ")?,
            working_set_bytes: (usage - inactive) as f64,
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            // Whoever is left in it goes back to where all are.
            let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines() {
                drop(fs::write(folder.with_file_name("cgroup.procs"), pid));
            }
            if let Err(error) = fs::remove_dir(folder) {
                eprintln!("cannot remove {}: {error}", folder.display());
            }
        }
    }
}
