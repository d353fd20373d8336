//! Builds the probes for the BPF target and hands the object to `include_bytes!`.
//!
//! Without a BPF toolchain an empty object is written: the host half then builds, lints and passes its
//! unprivileged tests, and everything that would measure says that this build holds no probes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "smp-agent-ebpf";

/// A compiler that can build `core` for the BPF target.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// A stable compiler needs leave to use `-Z build-std` and the atomic intrinsics.
    bootstrap: bool,
}

fn main() {
    let workspace = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("..");
    let tools = workspace.join("target/tools");
    for input in ["agent-ebpf/src", "agent-ebpf/abi/src", "agent-ebpf/Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rustc-check-cfg=cfg(bpf_probes)");
    let object = PathBuf::from(var("OUT_DIR")).join(OBJECT);

    match find(&tools).and_then(|(toolchain, linker)| build(&workspace, &toolchain, &linker)) {
        Ok(built) => {
            fs::copy(&built, &object).expect("copying the object");
            println!("cargo::rustc-cfg=bpf_probes");
        }
        Err(reason) => {
            println!(
                "cargo::warning=THIS BUILD HOLDS NO PROBES AND CANNOT MEASURE: {reason}; run `cargo xtask setup`"
            );
            fs::write(&object, []).expect("writing the empty object");
        }
    }
}

fn find(tools: &Path) -> Result<(Toolchain, PathBuf), String> {
    let installed = tools.join("bin/bpf-linker");
    // Looked at again once setup has brought it.
    println!("cargo::rerun-if-changed={}", installed.display());
    let linker = if installed.exists() { installed } else { in_path("bpf-linker").ok_or("no bpf-linker")? };
    let toolchain = nightly().or_else(debian).ok_or("no nightly toolchain with rust-src, no rust-web-src")?;
    println!("cargo::rerun-if-changed={}", toolchain.rustc.display());
    Ok((toolchain, linker))
}

fn nightly() -> Option<Toolchain> {
    let which = |tool: &str| -> Option<PathBuf> {
        let found = Command::new("rustup").args(["which", "--toolchain", "nightly", tool]).output().ok()?;
        found.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&found.stdout).trim()))
    };
    let (cargo, rustc) = (which("cargo")?, which("rustc")?);
    has_sources(&rustc).then_some(Toolchain { cargo, rustc, bootstrap: false })
}

fn debian() -> Option<Toolchain> {
    let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    (cargo.exists() && has_sources(&rustc)).then_some(Toolchain { cargo, rustc, bootstrap: true })
}

fn has_sources(rustc: &Path) -> bool {
    let Ok(printed) = Command::new(rustc).args(["--print", "sysroot"]).output() else { return false };
    let sysroot = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
    Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists()
}

fn in_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.exists())
}

fn build(workspace: &Path, toolchain: &Toolchain, linker: &Path) -> Result<PathBuf, String> {
    // A target folder of its own: cargo holds the lock of the outer one.
    let target = PathBuf::from(var("OUT_DIR")).join("bpf");
    let flags = [
        "--cfg=bpf_target_arch=\"x86_64\"".replace("x86_64", &var("CARGO_CFG_TARGET_ARCH")),
        // v3 has the atomic operations that return a value: kernel 5.12.
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    let mut cargo = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        // What the outer cargo says about the host must not reach the inner one.
        if name.starts_with("CARGO") && name != "CARGO_HOME"
            || name.starts_with("RUST") && name != "RUSTUP_HOME"
        {
            cargo.env_remove(name);
        }
    }
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--package",
            OBJECT,
            "--bins",
            "--release",
            "--target",
            TARGET,
            "-Z",
            "build-std=core",
        ])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    if toolchain.bootstrap {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    let output = cargo.output().map_err(|error| format!("{}: {error}", toolchain.cargo.display()))?;
    if output.status.success() {
        return Ok(target.join(TARGET).join("release").join(OBJECT));
    }
    // A toolchain that is there and does not build the probes is a defect, not a missing tool.
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    panic!("the probes do not build with {}", toolchain.rustc.display());
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
