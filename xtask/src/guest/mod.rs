//! Tests inside other kernels: Debian's, each booted in an emulated machine that has only what the tests need.

mod image;
mod initramfs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, anyhow, bail};
use bed::tools;

use crate::test::Tally;
use crate::{cargo, setup, step};
use image::Kernel;
use initramfs::Initramfs;

/// The machine: emulated, since not every machine that tests can virtualise; its processors by one thread in turn. By one each,
/// one of them ran a breakpoint that another had already taken back (the kernel puts them where it switches a tracepoint
/// off), it seems, which ended the kernel: seen once, Linux 6.12 at `softirq_entry`, QEMU 10.0.2.
const MACHINE: [&str; 14] = [
    "-no-user-config",
    "-nodefaults",
    "-no-reboot",
    "-display",
    "none",
    "-accel",
    "tcg,thread=single",
    "-cpu",
    "max",
    "-smp",
    "2",
    "-m",
    "2048",
    "-append",
];
/// What the kernel is told: to end at a panic, which ends the machine.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1";
/// A machine that is not done by then has failed, s.
const LONGEST_SECONDS: &str = "2400";

/// The test executables that run inside.
const TESTS: [&str; 6] = ["kernel", "receive", "before", "delay", "groups", "workloads"];
/// Programs of this machine that the bed and the tests start.
const PROGRAMS: [&str; 4] = ["/usr/sbin/ip", "/usr/sbin/nft", "/usr/bin/nsenter", "/usr/bin/setpriv"];
const BUSYBOX: &str = "/bin/busybox";
/// Where the guest finds its first process.
const INIT: &str = "/init";

/// Boots each of the kernels and runs the tests inside. The last line is `N passed, N failed` over all of them; a
/// kernel that does not boot or a test that cannot run is a failure.
///
/// # Errors
/// When something cannot be brought or built: then nothing was tested.
pub fn run(names: &[String]) -> Result<ExitCode> {
    setup::ensure_with(&setup::GUEST_PACKAGES)?;
    let kernels = image::named(names)?;
    let agent = cargo::agent()?;
    let built = cargo::tests(&TESTS)?;
    let mut total = Tally::default();
    for kernel in &kernels {
        match test(kernel, &agent, &built) {
            Ok(tally) => total.add(&tally),
            Err(error) => {
                eprintln!("error: {}: {error:#}", kernel.name());
                total.failed += 1;
            }
        }
    }
    Ok(total.conclude())
}

fn test(kernel: &Kernel, agent: &Path, built: &cargo::Tests) -> Result<Tally> {
    let files = kernel.files()?;
    let folder = tools::target().join("guest").join(kernel.name());
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (initramfs, console) = (folder.join("initramfs.cpio"), folder.join("console.log"));
    gather(&files.modules, agent, built, &folder)?.write(&initramfs)?;
    // What an earlier run left must not pass for this one's.
    fs::write(&console, "").with_context(|| format!("cannot write {}", console.display()))?;

    let mut machine = Command::new("timeout");
    machine
        .args(["--kill-after", "5", LONGEST_SECONDS, "qemu-system-x86_64"])
        .args(MACHINE)
        .arg(KERNEL_ARGUMENTS);
    machine.arg("-kernel").arg(&files.image).arg("-initrd").arg(&initramfs);
    machine.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    let name = kernel.name();
    let remedy = format!("the kernel's own messages are in {}", console.display());
    step::run(&format!("testing inside {name}"), &name, &machine, &remedy)?;
    let log = step::log(&name);
    let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let said = String::from_utf8_lossy(&said);
    print!("{said}");
    verdict(&said).map_err(|error| anyhow!("{error}; {remedy}, what the tests said in {}", log.display()))
}

/// What a guest needs to run the tests.
fn gather(modules: &[PathBuf], agent: &Path, built: &cargo::Tests, scratch: &Path) -> Result<Initramfs> {
    let mut guest = Initramfs::default();
    guest.file(Path::new(INIT), include_str!("init.sh"));
    for folder in ["/dev", "/proc", "/sys", "/run", "/tmp"] {
        guest.folder(Path::new(folder));
    }
    guest.copy(Path::new(BUSYBOX), Path::new(BUSYBOX))?;
    for (number, module) in modules.iter().enumerate() {
        let name = module.file_name().context("a module has no name")?.to_string_lossy();
        // The guest loads them in the order of their names.
        guest.copy(module, &Path::new("/modules").join(format!("{number:02}-{name}")))?;
    }
    let programs = PROGRAMS.map(Path::new);
    let own = built.programs.iter().map(PathBuf::as_path).chain([agent]);
    for program in
        programs.into_iter().chain(own).chain(built.executables.iter().map(|(_, path)| path.as_path()))
    {
        guest.program(program, scratch)?;
    }
    guest.folder(&built.scratch);
    let folder = tools::workspace().join("tests");
    guest.folder(&folder);
    let environment = format!(
        "export REQUIRE_BPF=1 {}=1 {}={}\n",
        tools::EMULATED_VARIABLE,
        tools::AGENT_VARIABLE,
        agent.display()
    );
    guest.file(Path::new("/environment"), environment);
    let line = |(name, path): &(String, PathBuf)| format!("{name} {} {}\n", folder.display(), path.display());
    guest.file(Path::new("/tests"), built.executables.iter().map(line).collect::<String>());
    Ok(guest)
}

/// Adds up what the tests inside said, if each of them began and ended.
fn verdict(said: &str) -> Result<Tally> {
    let mut tally = Tally::default();
    let (mut ended, mut done, mut failed) = (Vec::new(), false, 0);
    for line in said.lines().map(str::trim_end) {
        tally.note(line);
        match line.strip_prefix("guest: ").map(|rest| rest.split_whitespace().collect::<Vec<_>>()).as_deref()
        {
            Some(["end", name, code]) => {
                if *code != "0" && tally.failed == failed {
                    // It ended in a way that its own count does not show.
                    tally.failed += 1;
                }
                failed = tally.failed;
                ended.push((*name).to_owned());
            }
            Some(["done"]) => done = true,
            _ => {}
        }
    }
    if !done {
        bail!("it ended before its tests did, or did not boot");
    }
    if ended != TESTS {
        bail!("of the tests {} only these ended: {}", TESTS.join(", "), ended.join(", "));
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(codes: [u32; 6]) -> String {
        let test = |(name, code)| {
            format!(
                "guest: begin {name}\r\ntest result: ok. 2 passed; 0 failed; 0 ignored\r\nguest: end {name} {code}\r\n"
            )
        };
        TESTS.iter().zip(codes).map(test).collect()
    }

    #[test]
    fn what_all_tests_say_is_added_up() {
        let whole = said([0; 6]) + "guest: done\r\n";
        assert_eq!(verdict(&whole).unwrap(), Tally { passed: 12, ..Tally::default() });
    }

    #[test]
    fn a_test_that_dies_and_a_guest_that_stops_are_failures() {
        let dies = said([0, 101, 0, 0, 0, 0]) + "guest: done\r\n";
        assert_eq!(verdict(&dies).unwrap().failed, 1);
        assert!(verdict(&said([0; 6])).is_err());
        assert!(verdict("guest: done\r\n").is_err());
        assert!(verdict("").is_err());
    }
}
