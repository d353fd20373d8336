//! Debian packages, and the toolchain that builds the probes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use bed::live::TransientFile;
use bed::process;

use super::Part;
use crate::step;

/// What the linker, the bed and the tests need.
const PACKAGES: [&str; 16] = [
    // bpf-linker links against it.
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    // libstdc++ for the same, and a C compiler for build scripts.
    "g++",
    // The bed.
    "nginx",
    "libnginx-mod-stream",
    "haproxy",
    "golang-go",
    "wrk",
    "tcpdump",
    "iproute2",
    "nftables",
    // Independent judges in the tests.
    "python3",
    "python3-venv",
    "tshark",
    "linux-perf",
];

/// A compiler with its matching sources: `core` is built from them for the BPF target.
const RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Packages that bring a service, which must not run because of us, and its name.
const SERVICES: [(&str, &str); 6] = [
    ("nginx", "nginx"),
    ("haproxy", "haproxy"),
    ("caddy", "caddy"),
    ("lighttpd", "lighttpd"),
    ("nghttp2-proxy", "nghttpx"),
    ("varnish", "varnish"),
];

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The packages that are not installed, these others as well, as one part.
///
/// # Errors
/// When this is no Debian, or something is missing and we are not root.
pub fn missing(others: &[&'static str]) -> Result<Option<Part>> {
    let rust: &[&str] = if nightly_has_sources() { &[] } else { &RUST };
    let wanted: Vec<&'static str> = PACKAGES.iter().chain(rust).chain(others).copied().collect();
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("setup knows only Debian's apt-get; install the likes of {} by hand", wanted.join(" "));
    }
    let installed = installed(&wanted)?;
    let missing: Vec<_> = wanted.into_iter().filter(|package| !installed.contains(*package)).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the Debian packages {} are missing and installing needs root: run this as root",
            missing.join(" ")
        );
    }
    let what = format!("Debian packages: {}", missing.join(" "));
    Ok(Some(Part { what, install: Box::new(move || install(&missing)) }))
}

/// Whether rustup's nightly can build `core`, as `agent/build.rs` asks.
fn nightly_has_sources() -> bool {
    let nightly = process::output(
        Command::new("rustup")
            .args(["which", "--toolchain", "nightly", "rustc"])
            .env("RUSTUP_AUTO_INSTALL", "0"),
    );
    let sysroot =
        nightly.and_then(|rustc| process::output(Command::new(rustc.trim()).args(["--print", "sysroot"])));
    sysroot.is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").exists())
}

fn installed(wanted: &[&str]) -> Result<BTreeSet<String>> {
    // It fails when it knows nothing of one of them, and still lists the others.
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"]).args(wanted);
    let listed = query.output().map_err(|error| anyhow::anyhow!("cannot run dpkg-query: {error}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    Ok(listed.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect())
}

fn install(packages: &[&'static str]) -> Result<()> {
    let again = "check the network and apt's sources, then run `cargo xtask setup` again";
    // An installation that was interrupted keeps apt from any other.
    let mut configure = noninteractive("dpkg");
    configure.args(["--configure", "-a"]);
    step::run(
        "finishing interrupted installations",
        "dpkg",
        &configure,
        "repair it with `dpkg --configure -a`",
    )?;
    // A source that cannot be reached is no failure yet: what is needed may come from the others.
    if let Err(error) =
        step::run("updating Debian's package lists", "apt-update", apt_get().arg("update"), again)
    {
        eprintln!("  going on with the package lists there are ({error:#})");
    }
    let services: Vec<_> = SERVICES.into_iter().filter(|(package, _)| packages.contains(package)).collect();
    let policy = if services.is_empty() { None } else { no_service_starts()? };
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
    step::run("installing Debian packages", "apt-install", &command, again)?;
    drop(policy);
    for (_, service) in services {
        // Nor at the next boot, where it is not systemd's alone.
        if !Path::new("/etc/init.d").join(service).exists() {
            continue;
        }
        let mut disable = Command::new("update-rc.d");
        disable.args([service, "disable"]);
        let what = format!("keeping the service {service} off");
        step::run(&what, "services", &disable, "switch it off by hand")?;
    }
    Ok(())
}

/// Debian asks this file whether the service of a new package may be started: 101 is no. One that is there already
/// is the decision of whoever runs the machine.
fn no_service_starts() -> Result<Option<TransientFile>> {
    if Path::new(POLICY).exists() {
        return Ok(None);
    }
    TransientFile::create(PathBuf::from(POLICY), "#!/bin/sh\nexit 101\n", 0o755).map(Some)
}

fn apt_get() -> Command {
    let mut command = noninteractive("apt-get");
    command.args(["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3", "-o", "Dpkg::Use-Pty=0"]);
    command
}

fn noninteractive(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_SUSPEND", "1");
    command
}
