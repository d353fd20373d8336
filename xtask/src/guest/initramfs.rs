//! The file system a guest starts from, all of it in memory: programs, the libraries they need, tests.
//!
//! Everything has the path that it has here, so that executables built for this machine find what they were told
//! at compile time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use bed::process;
use cpio::newc::Builder;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// What is gathered so far.
#[derive(Default)]
pub struct Initramfs {
    folders: BTreeSet<PathBuf>,
    /// By path in the guest.
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Initramfs {
    /// A folder with those above it.
    pub fn folder(&mut self, path: &Path) {
        let above = path.ancestors().filter(|path| path.parent().is_some());
        self.folders.extend(above.map(Path::to_owned));
    }

    /// A file with these contents; it may be executed.
    pub fn file(&mut self, path: &Path, contents: impl Into<Vec<u8>>) {
        if let Some(folder) = path.parent() {
            self.folder(folder);
        }
        self.files.insert(path.to_owned(), contents.into());
    }

    /// A copy of a file of this machine.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(to, contents);
        Ok(())
    }

    /// A program of this machine at its own path, with the libraries it is linked with; without its debugging
    /// symbols, which are most of what the compiler makes.
    ///
    /// # Errors
    /// When it or one of its libraries is not there.
    pub fn program(&mut self, path: &Path, scratch: &Path) -> Result<()> {
        let stripped = scratch.join("stripped");
        process::output(Command::new("strip").args(["--strip-debug", "-o"]).arg(&stripped).arg(path))?;
        self.copy(&stripped, path)?;
        let listed = process::output(Command::new("ldd").arg(path))?;
        for library in libraries(&listed) {
            self.copy(library, library)?;
        }
        Ok(())
    }

    /// Writes it as the kernel's documentation (driver-api/early-userspace/buffer-format.rst) asks.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let writing = || format!("cannot write {}", path.display());
        let mut file = std::io::BufWriter::new(fs::File::create(path).with_context(writing)?);
        let empty: &[u8] = &[];
        let folders = self.folders.iter().map(|path| (path, FOLDER, empty));
        let files = self.files.iter().map(|(path, contents)| (path, PROGRAM, contents.as_slice()));
        for (number, (path, mode, contents)) in folders.chain(files).enumerate() {
            let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
            let size = u32::try_from(contents.len()).with_context(|| format!("{name} is too large"))?;
            let entry = Builder::new(&name).ino(u32::try_from(number)? + 1).mode(mode);
            let mut entry = entry.write(&mut file, size);
            entry.write_all(contents).and_then(|()| entry.finish().map(drop)).with_context(writing)?;
        }
        cpio::newc::trailer(file).and_then(|mut file| file.flush()).with_context(writing)
    }
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn libraries(listed: &str) -> impl Iterator<Item = &Path> {
    listed.lines().filter_map(|line| {
        let place = line.split_once("=>").map_or(line, |(_, place)| place);
        place.split_whitespace().next().filter(|path| path.starts_with('/')).map(Path::new)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_with_and_without_a_name() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f8f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f8f)\n";
        let found: Vec<_> = libraries(listed).collect();
        assert_eq!(found, [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }
}
