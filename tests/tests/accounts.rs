//! CPU time against accounts that the agent does not read: perf's clock and samples, the kernel's task statistics, `getrusage`.
//! Of a program of known parts, and of real proxies under load.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bed::burn::Spent;
use bed::measuring::Measuring;
use bed::netns::{Bed, Family};
use bed::perf::{Counted, Counting, Sampled, Sampling};
use bed::process::Child;
use bed::proxy::{Proxy, ProxyKind, Spec};
use bed::{python, tools};
use procfs::process::{Process, all_processes};
use serde::Deserialize;
use serde_json::Value;

const PROGRAMS: &str = env!("CARGO_BIN_EXE_bed");
const LONGEST: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// How far from an account a time or a count may be, as a share of it.
const SHARE: f64 = 0.02;
/// Switches that may lie between the beginning, or the end, of one account and of another.
const EDGE_SWITCHES: f64 = 100.0;
/// Of the kernel's clock, by which user and system time are told apart; `CONFIG_HZ=250`, the least that distributions use.
const TICK_NS: f64 = 4e6;

/// Two processors, and each test wants them for itself.
static ALONE: Mutex<()> = Mutex::new(());

/// What the kernel has counted for some processes.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    statistics: Statistics,
    /// User and system time, as `getrusage` has them.
    rusage_ns: [f64; 2],
}

/// Task statistics.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Statistics {
    ran_ns: f64,
    voluntary: f64,
    involuntary: f64,
}

/// All accounts of a window.
#[derive(Debug)]
struct Accounts {
    counted: Counted,
    sampled: Sampled,
    kernel: Kernel,
}

impl Kernel {
    fn of(pids: &[u32]) -> Result<Self> {
        let said = python::judge("taskstats.py", pids.iter().map(u32::to_string))?;
        let mut rusage_ns = [0.0; 2];
        for &pid in pids {
            let stat = Process::new(pid.cast_signed())?.stat()?;
            let tick_ns = 1e9 / procfs::ticks_per_second() as f64;
            for (sum, ticks) in rusage_ns.iter_mut().zip([stat.utime, stat.stime]) {
                *sum += ticks as f64 * tick_ns;
            }
        }
        Ok(Self { statistics: serde_json::from_str(&said)?, rusage_ns })
    }

    fn since(self, earlier: Self) -> Self {
        let (now, then) = (self.statistics, earlier.statistics);
        Self {
            statistics: Statistics {
                ran_ns: now.ran_ns - then.ran_ns,
                voluntary: now.voluntary - then.voluntary,
                involuntary: now.involuntary - then.involuntary,
            },
            rusage_ns: [0, 1].map(|part| self.rusage_ns[part] - earlier.rusage_ns[part]),
        }
    }
}

/// What the agent and all accounts say of a proxy during `work`; before and after it the proxy rests.
fn measured<T>(pid: u32, dir: &Path, work: impl FnOnce() -> Result<T>) -> Result<(Value, Accounts, T)> {
    let pids = family(pid)?;
    let measuring = Measuring::start(pid, dir)?;
    let counting = Counting::start(&pids, dir)?;
    let sampling = Sampling::start(&pids, dir)?;
    let before = Kernel::of(&pids)?;
    let done = work()?;
    let kernel = Kernel::of(&pids)?.since(before);
    let (sampled, counted) = (sampling.finish()?, counting.finish()?);
    let mut document = measuring.finish()?;
    Ok((document["proxies"][0].take(), Accounts { counted, sampled, kernel }, done))
}

/// A process and its children.
fn family(pid: u32) -> Result<Vec<u32>> {
    let parent = |process: &Process| process.stat().ok().map(|stat| stat.ppid.cast_unsigned());
    let children = all_processes()?.filter_map(Result::ok);
    let children = children.filter(|process| parent(process) == Some(pid));
    Ok([pid].into_iter().chain(children.map(|process| process.pid.cast_unsigned())).collect())
}

fn folder(name: &str) -> PathBuf {
    let dir = tools::target().join("tests/accounts").join(name);
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).expect("the target folder is writable");
    dir
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[track_caller]
fn assert_near(what: &str, got: f64, truth: f64, within: f64) {
    assert!((got - truth).abs() <= within, "{what}: {got} for {truth}, within {within}");
}

/// The agent's numbers against all accounts.
fn agrees(what: &str, proxy: &Value, accounts: &Accounts) {
    let cpu = &proxy["cpu"];
    // The accounts have the softirqs on top of it in them.
    let ran_ns = number(cpu, "on_cpu_ns") + number(cpu, "softirq_borne_ns");
    let (user_ns, switches) = (number(cpu, "user_ns"), ["voluntary", "involuntary"]);
    let switches = switches.map(|kind| number(cpu, &format!("{kind}_switches")));
    let Accounts { counted, sampled, kernel } = accounts;
    let rusage_ns: f64 = kernel.rusage_ns.iter().sum();
    println!(
        "{what}: {ran_ns} ns, user {user_ns}, switches {switches:?}; perf {counted:?} {sampled:?}; {kernel:?}"
    );
    for (account, truth) in [("taskstats", kernel.statistics.ran_ns), ("getrusage", rusage_ns)] {
        assert_near(&format!("{what}: {account}"), ran_ns, truth, SHARE * truth);
    }
    let near = |account: &str, got: f64, truth: f64| {
        assert_near(&format!("{what}: {account}"), got, truth, SHARE * truth + EDGE_SWITCHES);
    };
    near("context-switches", switches.iter().sum(), counted.switches);
    near("nvcsw", switches[0], kernel.statistics.voluntary);
    near("nivcsw", switches[1], kernel.statistics.involuntary);
    // Of the same ticks; `getrusage` divides all that the process has ever used.
    assert_near(&format!("{what}: user, getrusage"), user_ns, kernel.rusage_ns[0], SHARE * ran_ns);
    // Of others.
    let samples = (sampled.user + sampled.kernel) as f64;
    let truth = sampled.user as f64 / samples;
    let within = six_errors(truth, 1.0 / (TICK_NS / ran_ns + 1.0 / samples));
    assert_near(&format!("{what}: user, samples"), user_ns / ran_ns, truth, within);
}

/// Six standard errors of a share that is counted in so many samples: ticks are fewer than they seem where threads share a CPU,
/// since these are switched at ticks.
fn six_errors(share: f64, samples: f64) -> f64 {
    6.0 * (share * (1.0 - share) / samples).sqrt()
}

#[test]
fn a_program_of_known_parts() {
    let _alone = ALONE.lock();
    let dir = folder("known");
    let go = dir.join("go");
    let mut burner = Command::new(PROGRAMS);
    burner.arg("burn").arg("--go").arg(&go).args(["--user-ms", "1200", "--system-ms", "800"]);
    let (burner, stdout) = Child::piped("burner", &burner).expect("a burner");
    let (proxy, accounts, spent) = measured(burner.pid(), &dir, || {
        fs::write(&go, "")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        serde_json::from_str::<Spent>(&line).with_context(|| format!("the burner said {line:?}"))
    })
    .expect("a measurement");
    agrees("burner", &proxy, &accounts);
    let cpu = &proxy["cpu"];
    let ran_ns = number(cpu, "on_cpu_ns") + number(cpu, "softirq_borne_ns");
    let of_itself = [spent.user_ns + spent.system_ns, spent.total_ns].map(|ns| ns as f64);
    // perf's clock begins and ends elsewhere in a switch; here there are few.
    for truth in of_itself.into_iter().chain([accounts.counted.ran_ns]) {
        assert_near("burner: itself, perf", ran_ns, truth, SHARE * truth);
    }
    let within = six_errors(0.6, 2e9 / TICK_NS) * 2e9;
    assert_near("burner: user", number(cpu, "user_ns"), 1.2e9, within);
    assert_near("burner: system", number(cpu, "system_ns"), 0.8e9, within);
}

#[test]
fn nginx_under_load() {
    under_load(ProxyKind::Nginx);
}

#[test]
fn envoy_under_load() {
    under_load(ProxyKind::Envoy);
}

fn under_load(kind: ProxyKind) {
    let _alone = ALONE.lock();
    let (dir, bed) = (folder(kind.name()), Bed::new().expect("a bed"));
    let spec = Spec::in_bed(&bed, Family::V4, kind, &dir);
    let mut backend = bed.server.command(PROGRAMS);
    backend.args(["backend", "--listen", &spec.upstream.to_string()]);
    let mut backend = Child::start("backend", &backend, &dir).expect("a server");
    backend.wait_for_port(spec.upstream, LONGEST).expect("a server that listens");
    let proxy = Proxy::start(&spec).expect("a proxy");
    // Its master listens before it has its workers.
    let processes = if kind == ProxyKind::Nginx { 1 + spec.workers as usize } else { 1 };
    let begun = Instant::now();
    while family(proxy.pid()).expect("its processes").len() < processes {
        assert!(begun.elapsed() < LONGEST, "{kind} has not {processes} processes");
        thread::sleep(POLL);
    }
    let mut load = bed.client.command(PROGRAMS);
    load.args(["load", "--target", &spec.listen.to_string(), "--seconds", "4"]);
    let (proxy, accounts, ()) = measured(proxy.pid(), &dir, || {
        let status = Child::start("load", &load, &dir)?.wait_for(LONGEST)?;
        ensure!(status.success(), "the load ended with {status}");
        Ok(())
    })
    .expect("a measurement");
    agrees(kind.name(), &proxy, &accounts);
}
