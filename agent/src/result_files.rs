//! The result files of one run: each appears whole or not at all.

use std::error::Error;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile, TempPath};

use crate::document::Document;
use crate::smp::SmpResult;

/// The full document, JSON.
pub const OVERHEAD_JSON: &str = "overhead.json";
/// The SMP messages, YAML.
pub const RESULT_YAML: &str = "result.yaml";
/// The SMP messages, JSON.
pub const RESULT_JSON: &str = "result.json";

/// Why the files are not there. None of them is half-written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The directory cannot be made or is none.
    #[error("cannot make the directory {path}: {source}; name another one with --out")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file in it cannot be written.
    #[error("cannot write {path}: {source}; make room or permit it, or name another directory with --out")]
    File {
        /// Which one.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A value has no form in the file's format, which is a fault of the agent's.
    #[error("cannot render {path}: {source}; this is a fault of smp-agent, please report it")]
    Render {
        /// Which file it was for.
        path: PathBuf,
        /// The serializer's reason.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Makes `dir` and writes and removes a file in it: to be called before a measurement, which is too dear to be
/// thrown away after it. The directory stays.
pub fn ensure_writable(dir: &Path) -> Result<(), WriteError> {
    fs::create_dir_all(dir).map_err(|source| WriteError::Directory { path: dir.to_owned(), source })?;
    let failed = |source| WriteError::File { path: dir.to_owned(), source };
    let mut probe = temporary(dir).map_err(failed)?;
    probe.write_all(b"x").and_then(|()| probe.as_file().sync_all()).map_err(failed)
}

/// Writes [`OVERHEAD_JSON`], [`RESULT_YAML`] and [`RESULT_JSON`] into `dir`, making it if it is missing and
/// replacing files of those names. All are on the disk before the first takes its name.
pub fn write_all(dir: &Path, document: &Document, result: &SmpResult) -> Result<Vec<PathBuf>, WriteError> {
    fs::create_dir_all(dir).map_err(|source| WriteError::Directory { path: dir.to_owned(), source })?;
    let contents = [
        (OVERHEAD_JSON, json(dir, OVERHEAD_JSON, document)?),
        (RESULT_YAML, yaml(dir, result)?),
        (RESULT_JSON, json(dir, RESULT_JSON, result)?),
    ];
    let mut written = Vec::with_capacity(contents.len());
    for (name, text) in contents {
        let path = dir.join(name);
        match stage(dir, &text) {
            Ok(staged) => written.push((staged, path)),
            Err(source) => return Err(WriteError::File { path, source }),
        }
    }
    let mut paths = Vec::with_capacity(written.len());
    for (staged, path) in written {
        staged
            .persist(&path)
            .map_err(|error| WriteError::File { path: path.clone(), source: error.error })?;
        paths.push(path);
    }
    // The names are in the directory, which has to reach the disk as well.
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| WriteError::File { path: dir.to_owned(), source })?;
    Ok(paths)
}

fn json(dir: &Path, name: &str, value: &impl serde::Serialize) -> Result<String, WriteError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| WriteError::Render { path: dir.join(name), source: error.into() })?;
    text.push('\n');
    Ok(text)
}

/// All strings quoted: a YAML 1.1 reader takes plain times for dates, `on` for true and `1:30` for a number.
fn yaml(dir: &Path, result: &SmpResult) -> Result<String, WriteError> {
    let options = serde_saphyr::ser_options! { quote_all: true };
    serde_saphyr::to_string_with_options(result, options)
        .map_err(|error| WriteError::Render { path: dir.join(RESULT_YAML), source: error.into() })
}

fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    // Readable by all, less the umask, as any other program's output.
    Builder::new().prefix(".smp-agent-").permissions(Permissions::from_mode(0o666)).tempfile_in(dir)
}

fn stage(dir: &Path, text: &str) -> io::Result<TempPath> {
    let mut file = temporary(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    Ok(file.into_temp_path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::tests::{document, window};
    use crate::smp::Test;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn three_files_and_nothing_else_in_a_new_directory_and_again() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let document = document(&window());
        let result = SmpResult::new(&document, &Test::default());
        ensure_writable(&dir).unwrap();
        assert_eq!(names(&dir), [""; 0]);
        for _ in 0..2 {
            let paths = write_all(&dir, &document, &result).unwrap();
            assert_eq!(paths, [OVERHEAD_JSON, RESULT_YAML, RESULT_JSON].map(|name| dir.join(name)));
            assert_eq!(names(&dir), [OVERHEAD_JSON, RESULT_JSON, RESULT_YAML]);
        }
        let mode = fs::metadata(dir.join(OVERHEAD_JSON)).unwrap().permissions().mode();
        assert_eq!(mode & 0o600, 0o600);
        assert_ne!(mode & 0o044, 0, "others may read it under a usual umask");
        let text = fs::read_to_string(dir.join(OVERHEAD_JSON)).unwrap();
        assert!(text.ends_with("}\n") && text.contains("\"schema_version\": 1"));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named_before_and_after() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "mine").unwrap();
        let document = document(&window());
        let result = SmpResult::new(&document, &Test::default());
        for dir in [file.clone(), file.join("sub"), PathBuf::from("/proc/smp-agent")] {
            let before = ensure_writable(&dir).unwrap_err().to_string();
            let after = write_all(&dir, &document, &result).unwrap_err().to_string();
            assert_eq!(before, after);
            assert!(before.contains(dir.to_str().unwrap()) && before.contains("--out"), "{before}");
        }
        assert!(matches!(ensure_writable(Path::new("/proc")), Err(WriteError::File { .. })));
        assert_eq!(fs::read_to_string(file).unwrap(), "mine");
    }

    #[test]
    fn a_file_that_cannot_take_its_name_leaves_no_rest() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(OVERHEAD_JSON).join("in the way")).unwrap();
        let document = document(&window());
        let error =
            write_all(dir.path(), &document, &SmpResult::new(&document, &Test::default())).unwrap_err();
        assert!(error.to_string().contains(OVERHEAD_JSON), "{error}");
        assert_eq!(names(dir.path()), [OVERHEAD_JSON]);
    }
}
