//! Files that are whole or as they were before.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes the lines to a file of this folder that has either all of them or what it had before.
///
/// # Errors
/// When it cannot be written.
pub fn write_whole(dir: &Path, name: &str, lines: &[String]) -> Result<()> {
    let (path, new) = (dir.join(name), dir.join(format!("{name}.new")));
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&new, lines.join("\n") + "\n"))
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}
