//! `smp-agent doctor`: what this kernel can do, and what became of each probe.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use super::{CliError, Format, ProbeArgs};
use crate::measure::MeasureError;
use crate::probe::btf::VMLINUX;
use crate::probe::{Options, ProbeError, Probes, Verdict, capability};
use crate::window::ProgramRun;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    probes: ProbeArgs,
    /// What to print: two tables, or the programs as JSON.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// One program.
#[derive(Serialize)]
struct Row {
    program: &'static str,
    /// `tp_btf` or `fentry`.
    kind: &'static str,
    /// The tracepoint or function.
    hook: &'static str,
    verdict: &'static str,
    why: String,
    /// How many instructions the kernel looked at to verify it; absent if it was not loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified_instructions: Option<u32>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, CliError> {
    if let Format::Table = args.format {
        print(&abilities().to_string())?;
    }
    let options = Options { load_all: true, ..args.probes.options() };
    let probes = Probes::attach(&options).map_err(MeasureError::Probe)?;
    let rows: Vec<_> = probes.runs().into_iter().map(|run| Row::new(&run, &probes)).collect();
    match args.format {
        Format::Table => print(&format!("\n{}\n", table(&rows)))?,
        Format::Json => {
            let text = serde_json::to_string_pretty(&rows);
            print(&text.map_err(|error| CliError::Print(error.into()))?)?;
        }
    }
    match probes.measures_hops() {
        Ok(()) => {
            if let Format::Table = args.format {
                print("hops can be measured")?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(ProbeError::Hook { program, hook, reason }) => Err(CliError::Doctor(format!(
            "{program} ({hook}): {reason}; Linux 6.3 or later, or one that takes fentry programs, is needed"
        ))),
        Err(error) => Err(MeasureError::Probe(error).into()),
    }
}

impl Row {
    fn new(run: &ProgramRun, probes: &Probes) -> Self {
        let why = match &run.verdict {
            Verdict::Attached => "works".to_owned(),
            Verdict::NotNeeded => "would work; a better hook for the same stamp does".to_owned(),
            Verdict::Unsupported(reason) | Verdict::Failed(reason) | Verdict::GivenUp(reason) => {
                reason.clone()
            }
        };
        Self {
            program: run.program,
            kind: run.hook.kind(),
            hook: run.hook.name(),
            verdict: run.verdict.as_str(),
            why,
            verified_instructions: probes.verified_instructions(run.program),
        }
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = plain(&["program", "kind", "hook", "verdict", "instructions", "why"]);
    for row in rows {
        let instructions = row.verified_instructions.map_or("-".to_owned(), |count| count.to_string());
        table.add_row([row.program, row.kind, row.hook, row.verdict, &instructions, &row.why]);
    }
    table
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
