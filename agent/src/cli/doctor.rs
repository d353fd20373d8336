//! `smp-agent doctor`: what this kernel can do, and what became of each probe.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

use super::CliError;
use crate::measure::MeasureError;
use crate::probe::btf::VMLINUX;
use crate::probe::{Options, ProbeError, Probes, Verdict, capability};

pub(super) fn run(options: &Options) -> Result<ExitCode, CliError> {
    print(&abilities().to_string())?;
    let probes = Probes::attach(options).map_err(MeasureError::Probe)?;
    let mut table = plain(&["program", "hook", "verdict", "why"]);
    for run in probes.runs() {
        let why = match &run.verdict {
            Verdict::Attached => "works".to_owned(),
            Verdict::NotNeeded => "a better hook for the same stamp works".to_owned(),
            Verdict::Unsupported(reason) | Verdict::Failed(reason) => reason.clone(),
        };
        table.add_row([run.program, run.hook, run.verdict.as_str(), &why]);
    }
    print(&format!("\n{table}\n"))?;
    match probes.measures_hops() {
        Ok(()) => {
            print("hops can be measured")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(ProbeError::Hook { program, hook, reason }) => Err(CliError::Doctor(format!(
            "{program} ({hook}): {reason}; Linux 6.3 or later with these tracepoints is needed"
        ))),
        Err(error) => Err(MeasureError::Probe(error).into()),
    }
}

/// What the kernel and this process have, whether or not the probes load.
fn abilities() -> Table {
    let system = rustix::system::uname();
    let btf = fs::metadata(VMLINUX)
        .map_or_else(|error| format!("none: {error}"), |found| format!("{} KiB", found.len() / 1024));
    let missing = capability::missing();
    let capabilities =
        if missing.is_empty() { "sufficient".to_owned() } else { format!("missing {}", missing.join(", ")) };
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown")
        .map_or_else(|_| "not shown (securityfs is not mounted)".to_owned(), |text| text.trim().to_owned());
    // PROC_PID_INIT_INO of the kernel's include/uapi/linux/nsfs.h: the first pid namespace.
    let host_pids =
        fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new("pid:[4026531836]"));
    let namespace =
        if host_pids { "the host's" } else { "not the host's: set hostPID, or processes are not found" };
    let mut table = plain(&["ability", "found"]);
    table
        .add_row([
            "kernel",
            &format!("{} {}", system.release().to_string_lossy(), system.machine().to_string_lossy()),
        ])
        .add_row(["kernel types (BTF)", &btf])
        .add_row(["capabilities", &capabilities])
        .add_row(["pid namespace", namespace])
        .add_row(["lockdown", &lockdown]);
    table
}

fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

fn print(text: &str) -> Result<(), CliError> {
    writeln!(std::io::stdout(), "{text}").map_err(CliError::Print)
}
