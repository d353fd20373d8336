//! What holds on every kernel that can be measured; `cargo xtask test --kernel` asks it of others than the running one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use bed::netns::{Bed, Family};
use bed::process::{self, Child};
use bed::tools;
use bed::verifier::{self, BUDGET};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAMS: &str = env!("CARGO_BIN_EXE_bed");
const LONGEST: Duration = Duration::from_mins(1);
const CONNECTIONS: u64 = 16;

#[test]
fn hops_can_be_measured_with_one_program_for_each_stamp() {
    let table =
        process::output(Command::new(tools::agent().expect("the agent")).arg("doctor")).expect("a table");
    assert!(table.contains("hops can be measured"), "{table}");
    let programs = programs();
    for stamp in ["arrival", "read", "write", "departure", "state"] {
        let attached = programs.iter().filter(|program| {
            let of_stamp = program.name.split('_').next() == Some(stamp) && program.name != "write_pages";
            of_stamp && program.verdict == "attached"
        });
        assert_eq!(attached.count(), 1, "{stamp}: {table}");
    }
}

#[test]
fn a_program_that_cannot_be_had_says_why() {
    for program in programs() {
        assert_ne!(program.verdict, "failed", "{program:?}");
        if program.verdict == "unsupported" {
            assert!(program.why.starts_with("this kernel "), "{program:?}");
        }
    }
}

#[test]
fn every_program_is_within_its_budget() {
    let failures = verifier::failures(&programs(), BUDGET).expect("a budget");
    assert!(failures.is_empty(), "{}", failures.join("; "));
}

#[test]
fn every_message_is_in_one_class() {
    let document = measured().expect("a measurement");
    let matching = &document["matching"];
    let class = |name: &str| matching[name].as_u64().unwrap_or_else(|| panic!("no {name} in {matching}"));
    let lost: u64 = matching["lost"].as_object().expect("lost").values().filter_map(Value::as_u64).sum();
    let crossings = class("exact") + class("ambiguous");
    assert_eq!(class("seen"), crossings + class("unmatched") + class("in_flight") + lost, "{matching}");
    assert_eq!((class("unmatched"), lost, class("local")), (0, 0, 0), "{matching}");
    assert!(crossings > 10 * CONNECTIONS, "{matching}");
    // Each of the four stamps was taken of each message.
    for segment in ["hop", "queue", "proxy", "egress"] {
        let fitting =
            document["hops"].as_array().expect("hops").iter().filter(|hop| hop["segment"] == segment);
        let count: u64 = fitting.map(|hop| hop["count"].as_u64().expect("a count")).sum();
        assert_eq!(count, crossings, "{segment}");
    }
}

#[test]
fn nothing_stays_attached() {
    for signal in [Signal::INT, Signal::KILL] {
        let mut agent = Command::new(tools::agent().expect("the agent"));
        agent.args(["run", "--proxy", &std::process::id().to_string(), "--for", "600s"]);
        let mut agent = Child::start("attached", &agent, &folder("attached")).expect("the agent starts");
        let programs = agent
            .until(tools::longest(), "attach its programs", |agent| {
                let programs = programs_of(agent.pid())?;
                Ok((programs.len() >= 8).then_some(programs))
            })
            .expect("programs");
        let pid = Pid::from_raw(agent.pid().cast_signed()).expect("a process");
        kill_process(pid, signal).expect("the agent is there");
        agent.wait_for(LONGEST).expect("it ends");
        let gone = |_: &mut Child| Ok(loaded()?.is_disjoint(&programs).then_some(()));
        agent.until(LONGEST, "let go of its programs", gone).expect("nothing is left");
    }
}

fn programs() -> Vec<verifier::Program> {
    verifier::programs(&tools::agent().expect("the agent")).expect("programs")
}

/// The agent's document about a proxy that several connections keep busy.
fn measured() -> Result<Value> {
    let dir = folder("classes");
    let bed = Bed::new()?;
    let (listen, upstream) = (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4));
    let mut backend = bed.server.command(PROGRAMS);
    backend.args(["backend", "--listen", &upstream.to_string()]);
    let mut backend = Child::start("backend", &backend, &dir)?;
    backend.wait_for_port(upstream, LONGEST)?;
    let mut proxy = bed.proxy.command(PROGRAMS);
    proxy.args(["delayproxy", "--listen", &listen.to_string(), "--upstream", &upstream.to_string()]);
    let mut proxy = Child::start("proxy", &proxy, &dir)?;
    proxy.wait_for_port(listen, LONGEST)?;

    let mut agent = Command::new(tools::agent()?);
    agent.args(["run", "--proxy", &proxy.pid().to_string(), "--out"]).arg(&dir).arg("--");
    agent.args(bed.client.wrap(PROGRAMS));
    agent.args(["load", "--target", &listen.to_string(), "--seconds", "3"]);
    agent.args(["--connections", &CONNECTIONS.to_string()]);
    let mut agent = Child::start("smp-agent", &agent, &dir)?;
    let status = agent.wait_for(tools::longest())?;
    ensure!(status.success(), "the agent failed ({status}){}", agent.tail());
    Ok(serde_json::from_slice(&fs::read(dir.join("overhead.json"))?)?)
}

/// Ids of the programs that a process holds, by the kernel's account of its descriptors.
fn programs_of(pid: u32) -> Result<BTreeSet<u32>> {
    let mut programs = BTreeSet::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // One may be closed meanwhile.
        let Ok(text) = fs::read_to_string(descriptor?.path()) else { continue };
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        programs.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    Ok(programs)
}

/// Ids of all programs in the kernel.
fn loaded() -> Result<BTreeSet<u32>> {
    let ids = aya::programs::loaded_programs().map(|program| program.map(|program| program.id()));
    Ok(ids.collect::<Result<_, _>>()?)
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel").join(name);
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
