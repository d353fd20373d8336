//! The judges that share no code with the agent: Python scripts in `tests/python/`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Runs `tests/python/<script>` with `arguments` and gives its standard output.
///
/// The interpreter is `SMP_TEST_PYTHON`, else that of the workspace's `target/tools/python`.
///
/// # Errors
/// No such interpreter, a package missing from it, a script that breaks, or its verdict against its input, which
/// alone says "refuses".
pub fn judge<A: AsRef<OsStr>>(script: &str, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let interpreter = std::env::var_os("SMP_TEST_PYTHON")
        .map_or_else(|| tests.join("../target/tools/python/bin/python"), PathBuf::from);
    let output = Command::new(&interpreter)
        .arg("-I")
        .arg(tests.join("python").join(script))
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {}: run `cargo xtask setup`", interpreter.display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("ModuleNotFoundError") {
        bail!("{} lacks a package: run `cargo xtask setup`\n{errors}", interpreter.display());
    }
    if errors.contains("Traceback") {
        bail!("{script} broke: {errors}");
    }
    if !output.status.success() {
        bail!("{script} refuses: {}", errors.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{script} wrote something else than UTF-8"))
}
