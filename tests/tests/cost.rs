//! CPU time and memory against what the kernel itself counts: a process's clock, its scheduler statistics, its connections, and
//! `/proc/stat`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command};
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use bed::burn::Spent;
use bed::measuring::Measuring;
use bed::netns::{Bed, Netns};
use bed::process::{self, Child};
use bed::tools;
use serde_json::Value;

/// How far from the kernel's own count a time may be, as a share of it.
const SHARE: f64 = 0.02;

/// Two processors, and each test wants them for itself.
static ALONE: Mutex<()> = Mutex::new(());

/// A program that waits for its sign, then uses CPU time.
struct Burner {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Burner {
    fn start(program: &Path, dir: &Path, pinned: Option<u32>, args: &[&str]) -> Result<Self> {
        let command = match pinned {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &cpu.to_string()]).arg(program);
                command
            }
            None => Command::new(program),
        };
        Self::start_by(command, dir, args)
    }

    fn start_by(mut command: Command, dir: &Path, args: &[&str]) -> Result<Self> {
        command.arg("burn").arg("--go").arg(dir.join("go")).args(args);
        let (child, stdout) = Child::piped("burner", &command)?;
        Ok(Self { child, stdout: BufReader::new(stdout) })
    }

    fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// What the kernel counted for it, when it is done.
    fn spent(&mut self) -> Result<Spent> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("a burner said {line:?}"))
    }
}

fn folder(name: &str) -> PathBuf {
    let dir = tools::target().join("tests/cost").join(name);
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).expect("the target folder is writable");
    dir
}

fn bed() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_bed"))
}

fn go(dir: &Path) {
    fs::write(dir.join("go"), "").expect("the folder is writable");
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

#[track_caller]
fn assert_near(what: &str, got: f64, truth: f64) {
    assert!((got - truth).abs() <= SHARE * truth, "{what}: {got} for {truth}");
}

/// One burner, measured from before it begins until it is done: the document's proxy and the kernel's count.
fn one(name: &str, args: &[&str]) -> (Value, Spent, Value) {
    let dir = folder(name);
    let mut burner = Burner::start(&bed(), &dir, None, args).expect("a burner");
    let measuring = Measuring::start(burner.pid(), &dir).expect("a measurement");
    go(&dir);
    let spent = burner.spent().expect("what it spent");
    let mut document = measuring.finish().expect("a document");
    (document["proxies"][0].take(), spent, document["node"].take())
}

/// Its threads, and the softirqs that ran on top of them: what its clock counts.
fn on_its_clock(proxy: &Value) -> f64 {
    number(&proxy["cpu"], "on_cpu_ns") + number(&proxy["cpu"], "softirq_borne_ns")
}

#[test]
fn a_second_of_user_and_a_second_of_system_time() {
    let _alone = ALONE.lock();
    for (kind, args) in [("user", ["--user-ms", "1000"]), ("system", ["--system-ms", "1000"])] {
        let (proxy, spent, _) = one(kind, &args);
        assert_near(kind, on_its_clock(&proxy), spent.total_ns as f64);
        let part = number(&proxy["cpu"], &format!("{kind}_ns"));
        let truth = if kind == "user" { spent.user_ns } else { spent.system_ns };
        assert_near(kind, part, truth as f64);
        assert!(part >= 0.8 * spent.total_ns as f64, "{kind}: {proxy}");
    }
}

#[test]
fn traffic_over_loopback_is_softirqs_of_its_own() {
    let _alone = ALONE.lock();
    let (proxy, spent, node) = one("loopback", &["--loopback-ms", "1000"]);
    let cpu = &proxy["cpu"];
    assert_near("loopback", on_its_clock(&proxy), spent.total_ns as f64);
    // It sends to itself: what softirqs it bears it causes.
    let (borne, caused) = (number(cpu, "softirq_borne_ns"), number(cpu, "softirq_ns"));
    assert!(borne >= 0.05 * spent.total_ns as f64, "{cpu}");
    assert!((0.7 * borne..=1.1 * borne).contains(&caused), "{cpu}");
    let shares = &node["shares"];
    let attributed = number(shares, "softirq_proxies_ns") + number(shares, "softirq_others_ns");
    let sum = attributed + number(shares, "softirq_unattributed_ns");
    assert_near("softirqs", sum, number(shares, "softirq_ns"));
}

#[test]
fn two_proxies_at_once_are_told_apart_and_the_node_adds_up() {
    let _alone = ALONE.lock();
    let dir = folder("two");
    let mut long = Burner::start(&bed(), &dir, None, &["--user-ms", "4000"]).expect("a burner");
    let mut short = Burner::start(&bed(), &dir, None, &["--system-ms", "3500"]).expect("a burner");
    let measuring = Measuring::start_all(&[long.pid(), short.pid()], &dir).expect("a measurement");
    go(&dir);
    let spent = [long.spent(), short.spent()].map(|spent| spent.expect("what it spent"));
    let document = measuring.finish().expect("a document");
    let proxies = document["proxies"].as_array().expect("proxies");
    for (burner, spent) in [&long, &short].into_iter().zip(spent) {
        let of = |proxy: &&Value| proxy["pid"] == burner.pid();
        let proxy = proxies.iter().find(of).expect("it is in the document");
        assert_near("one of two", on_its_clock(proxy), spent.total_ns as f64);
    }
    let node = &document["node"];
    let shares = ["proxies_ns", "others_ns", "softirq_ns"].map(|name| number(&node["shares"], name));
    let sum: f64 = shares.into_iter().sum();
    // `/proc/stat` counts what is busy by ticks, of which a virtual machine may miss some; idle CPUs by the clock (`get_idle_time`).
    let stat = fs::read_to_string("/proc/stat").expect("the kernel's statistics");
    // A line for all of them, and one for each.
    let cpus = stat.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    let all = number(&document["window"], "seconds") * 1e9 * cpus as f64;
    let busy = all - number(&node["cpu"], "idle_ns") - number(&node["cpu"], "iowait_ns");
    assert!((sum - busy).abs() <= SHARE * all, "the node: {sum} for {busy} of {all}: {node}");
}

#[test]
fn waiting_for_a_cpu_is_what_the_scheduler_counts() {
    let _alone = ALONE.lock();
    let dir = folder("wait");
    let mut first = Burner::start(&bed(), &dir, Some(1), &["--user-ms", "500"]).expect("a burner");
    let mut second = Burner::start(&bed(), &dir, Some(1), &["--user-ms", "500"]).expect("a burner");
    let measuring = Measuring::start(first.pid(), &dir).expect("a measurement");
    let before = run_delay_ns(first.pid()).expect("scheduler statistics");
    go(&dir);
    let _spent = [first.spent(), second.spent()].map(|spent| spent.expect("what it spent"));
    let truth = (run_delay_ns(first.pid()).expect("scheduler statistics") - before) as f64;
    let document = measuring.finish().expect("a document");
    let wait = &document["proxies"][0]["cpu"]["run_queue_wait"];
    let sum = number(wait, "mean") * number(wait, "count");
    assert!(truth > 2e8, "they were to share a CPU, and waited {truth} ns");
    assert_near("waiting", sum, truth);
    let switches = &document["proxies"][0]["cpu"];
    assert!(number(switches, "involuntary_switches") > 5.0, "{switches}");
}

#[test]
fn a_proxy_that_is_restarted_in_the_window_is_two() {
    let _alone = ALONE.lock();
    let dir = folder("restart");
    let program = dir.join("smp-burner");
    fs::copy(bed(), &program).expect("a copy with a name of its own");
    let args = ["--user-ms", "300", "--end"];
    let mut first = Burner::start(&program, &dir, None, &args).expect("a burner");
    let measuring = Measuring::start_named("smp-burner", &dir).expect("a measurement");
    go(&dir);
    let mut spent = vec![first.spent().expect("what it spent")];
    let mut next = Burner::start(&program, &dir, None, &args).expect("a burner");
    spent.push(next.spent().expect("what it spent"));
    // One that nobody takes its CPU from: not switched to or from between its first instruction and its last.
    let mut alone = Command::new("chrt");
    alone.args(["--fifo", "50", "taskset", "--cpu-list", "1"]).arg(&program);
    let mut last = Burner::start_by(alone, &dir, &args).expect("a burner");
    spent.push(last.spent().expect("what it spent"));
    let document = measuring.finish().expect("a document");
    let proxies = document["proxies"].as_array().expect("proxies");
    assert_eq!(proxies.len(), 3, "{proxies:?}");
    let sum: f64 = proxies.iter().map(on_its_clock).sum();
    let truth: u64 = spent.iter().map(|spent| spent.total_ns).sum();
    // The start of a process is not on the burner's account, some ms of it on the agent's.
    assert!((0.98 * truth as f64..=1.1 * truth as f64).contains(&sum), "{sum} for {truth}");
}

#[test]
fn a_noisy_neighbour_is_named_with_its_cpu_time() {
    let _alone = ALONE.lock();
    let dir = folder("neighbour");
    let [proxy, noisy, brief] = ["smp-proxy", "smp-noisy", "smp-brief"].map(|name| {
        let program = dir.join(name);
        fs::copy(bed(), &program).expect("a copy with a name of its own");
        program
    });
    let mut proxy = Burner::start(&proxy, &dir, None, &["--user-ms", "500"]).expect("a burner");
    let mut noisy =
        Burner::start(&noisy, &dir, None, &["--user-ms", "600", "--system-ms", "400"]).expect("a burner");
    let measuring = Measuring::start(proxy.pid(), &dir).expect("a measurement");
    go(&dir);
    let spent = noisy.spent().expect("what it spent");
    proxy.spent().expect("what it spent");
    // One that comes and goes in the window, under a shell that stays.
    let shell = dir.join("smp-shell");
    fs::copy("/bin/sh", &shell).expect("a copy with a name of its own");
    let mut shell = Command::new(shell);
    shell.args(["-c", "\"$0\" \"$@\"; echo ended; kill -STOP $$"]).arg(&brief);
    let mut brief = Burner::start_by(shell, &dir, &["--user-ms", "300", "--end"]).expect("a burner");
    let brief_spent = brief.spent().expect("what it spent");
    let mut ended = String::new();
    brief.stdout.read_line(&mut ended).expect("a shell that has waited for it");
    let document = measuring.finish().expect("a document");
    let co_tenants = document["node"]["co_tenants"].as_array().expect("who else was there");
    let of = |name: &str| co_tenants.iter().find(|co_tenant| co_tenant["name"] == name);
    for (name, spent) in [("smp-noisy", spent), ("smp-shell", brief_spent)] {
        let co_tenant = of(name).unwrap_or_else(|| panic!("{name} is not among {co_tenants:?}"));
        let (got, truth) = (number(co_tenant, "cpu_ns"), spent.total_ns as f64);
        println!("{name}: {co_tenant} for {truth} ns");
        // Counted in ticks of 10 ms, user and system time apart.
        assert!((got - truth).abs() <= (0.05 * truth).max(3e7), "{name}: {co_tenant} for {truth}");
    }
    assert!(of("smp-proxy").is_none(), "{co_tenants:?}");
    assert!(co_tenants.len() <= 5, "{co_tenants:?}");
}

#[test]
fn what_connections_hold_is_told_apart_by_proxy() {
    const UNREAD_BYTES: usize = 32 << 10;
    let _alone = ALONE.lock();
    let (dir, netns) = (folder("connections"), Bed::new().expect("a bed"));
    let places = [(&netns.proxy, 40), (&netns.server, 10)];
    let mut burners = places.map(|(netns, count)| {
        let args = ["--connections", &count.to_string(), "--unread-bytes", &UNREAD_BYTES.to_string()];
        Burner::start_by(netns.command(bed()), &dir, &args).expect("a burner")
    });
    let measuring = Measuring::start_all(&burners.each_ref().map(Burner::pid), &dir).expect("a measurement");
    go(&dir);
    // Only then they have all of them.
    for burner in &mut burners {
        burner.spent().expect("what it spent");
    }
    let truths = places.map(|(netns, _)| queued_bytes(netns).expect("the kernel's own numbers"));
    let document = measuring.finish().expect("a document");
    let proxies = document["proxies"].as_array().expect("proxies");
    for ((burner, truth), (_, count)) in burners.iter().zip(truths).zip(places) {
        let proxy = proxies.iter().find(|proxy| proxy["pid"] == burner.pid()).expect("it is in the document");
        let memory = &proxy["memory"];
        let held = number(memory, "sockets_bytes");
        assert!(truth >= (count * UNREAD_BYTES) as f64, "{truth} bytes in {count} connections");
        assert_near("connections", held, truth);
        assert!(number(memory, "sockets_peak_bytes") >= held, "{memory}");
    }
}

/// What the kernel has charged to the TCP connections of a namespace, by `ss`: received, to be sent, and set aside, bytes.
fn queued_bytes(netns: &Netns) -> Result<f64> {
    let said = process::output(netns.command("ss").args(["--tcp", "--numeric", "--memory", "--no-header"]))?;
    // `skmem:(r33024,rb131072,t0,tb2626560,f3840,w0,o0,bl0,d0)`
    let sockets = said.split("skmem:(").skip(1).flat_map(|rest| rest.split([',', ')']).take(9));
    let parts = sockets.filter_map(|part| {
        let digits = part.strip_prefix(['r', 'f', 'w'])?;
        digits.parse::<f64>().ok()
    });
    Ok(parts.sum())
}

/// Time that the main thread of a process was ready and did not run, ns: the second number of its `schedstat`.
fn run_delay_ns(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split_whitespace().nth(1).context("no second number")?.parse()?)
}
