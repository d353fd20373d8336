//! Debian's kernels: which there are, and the files of one that a guest needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use bed::{process, tools};

use crate::step;

/// Begins the names people give.
const DISTRIBUTION: &str = "debian-";
/// The smallest flavour: made for virtual machines.
const FLAVOUR: &str = "-cloud-amd64";
const PACKAGE: &str = "linux-image-";
/// Modules that the bed needs, in the order to load them: each comes behind those it depends on.
const MODULES: [&str; 13] = [
    "drivers/net/veth",
    // Redirection.
    "lib/libcrc32c",
    "net/netfilter/nfnetlink",
    "net/netfilter/nf_tables",
    "net/ipv4/netfilter/nf_defrag_ipv4",
    "net/ipv6/netfilter/nf_defrag_ipv6",
    "net/netfilter/nf_conntrack",
    "net/netfilter/nf_nat",
    "net/netfilter/nft_chain_nat",
    "net/netfilter/nft_redir",
    "net/ipv4/netfilter/nf_tproxy_ipv4",
    "net/ipv6/netfilter/nf_tproxy_ipv6",
    "net/netfilter/nft_tproxy",
];

/// One kernel of Debian's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `6.1.0-50`, or `6.12.113+deb12`.
    version: String,
}

/// The files of a kernel.
pub struct Files {
    /// What the machine boots.
    pub image: PathBuf,
    /// Modules that the bed needs, in the order to load them.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// What people call it.
    pub fn name(&self) -> String {
        format!("{DISTRIBUTION}{}", self.version)
    }

    fn package(&self) -> String {
        format!("{PACKAGE}{}{FLAVOUR}", self.version)
    }

    /// Its files, downloaded now if they are not there; nothing is installed.
    ///
    /// # Errors
    /// When the package cannot be had or is not as expected.
    pub fn files(&self) -> Result<Files> {
        let folder = tools::tools().join("kernels").join(&self.version);
        // An earlier version of this program wanted fewer modules.
        if self.modules(&folder).is_err() {
            self.download(&folder)?;
        }
        let image = folder.join("boot").join(format!("vmlinuz-{}", self.release()));
        Ok(Files { image, modules: self.modules(&folder)? })
    }

    fn release(&self) -> String {
        format!("{}{FLAVOUR}", self.version)
    }

    fn modules(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let root = folder.join("lib/modules").join(self.release()).join("kernel");
        let find = |module: &&str| {
            let files = [".ko", ".ko.xz"].map(|end| root.join(format!("{module}{end}")));
            let found = files.into_iter().find(|path| path.exists());
            found.with_context(|| format!("{} has no module {module}", self.package()))
        };
        MODULES.iter().map(find).collect()
    }

    fn download(&self, folder: &Path) -> Result<()> {
        // Beside its place and moved there whole: the folder is there only when it is complete.
        let partial = folder.with_extension("partial");
        for old in [&partial, folder] {
            if let Err(error) = fs::remove_dir_all(old)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(error).with_context(|| format!("cannot remove {}", old.display()));
            }
        }
        fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        let script = "package=$1; shift; apt-get -q download \"$package\" && dpkg-deb --fsys-tarfile ./*.deb | \
                      tar -x --wildcards './boot/vmlinuz-*' \"$@\" && rm ./*.deb";
        let mut command = Command::new("sh");
        command.args(["-ec", script, "sh", &self.package()]).current_dir(&partial);
        command.args(MODULES.map(|module| format!("./lib/modules/*/kernel/{module}.ko*")));
        step::run(
            &format!("downloading Debian's {}", self.package()),
            "kernel",
            &command,
            "check the network and apt's sources, then run `apt-get update`",
        )?;
        fs::rename(&partial, folder).with_context(|| format!("cannot create {}", folder.display()))
    }
}

/// The kernels named: `debian-6.1` is the newest of that series, `debian-6.1.0-50` that one, `all` every one.
///
/// # Errors
/// When apt knows no kernel of that name.
pub fn named(names: &[String]) -> Result<Vec<Kernel>> {
    let offered = offered()?;
    let mut kernels = Vec::new();
    for name in names {
        if name == "all" {
            kernels.extend(offered.iter().cloned());
            continue;
        }
        let Some(kernel) = newest(&offered, name) else {
            let known: Vec<_> = offered.iter().map(Kernel::name).collect();
            bail!(
                "apt knows no {name}; it knows {} (`apt-get update` brings its lists up to date)",
                known.join(", ")
            );
        };
        kernels.push(kernel.clone());
    }
    Ok(kernels)
}

/// Those that apt's sources offer, the oldest first.
fn offered() -> Result<Vec<Kernel>> {
    let packages = process::output(Command::new("apt-cache").args(["pkgnames", PACKAGE]))?;
    let mut kernels: Vec<_> = packages.lines().filter_map(kernel_of).collect();
    kernels.sort_by_key(|kernel| numbers(&kernel.version));
    Ok(kernels)
}

/// `linux-image-6.1.0-50-cloud-amd64` is one; metapackages (`linux-image-6.12-cloud-amd64`), the unsigned and those of
/// debug symbols are none.
fn kernel_of(package: &str) -> Option<Kernel> {
    let version = package.strip_prefix(PACKAGE)?.strip_suffix(FLAVOUR)?;
    let is_whole = numbers(version).len() > 2 && version.starts_with(|first: char| first.is_ascii_digit());
    is_whole.then(|| Kernel { version: version.to_owned() })
}

fn newest<'a>(offered: &'a [Kernel], name: &str) -> Option<&'a Kernel> {
    let wanted = name.strip_prefix(DISTRIBUTION)?;
    let fits = |kernel: &&Kernel| {
        let rest = kernel.version.strip_prefix(wanted);
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    offered.iter().rfind(fits)
}

/// The numbers in a version, in their order.
fn numbers(version: &str) -> Vec<u32> {
    let parts = version.split(|char: char| !char.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> Vec<Kernel> {
        ["6.1.0-9", "6.1.0-50", "6.12.113+deb12"]
            .map(|version| Kernel { version: version.to_owned() })
            .to_vec()
    }

    #[test]
    fn only_images_are_kernels() {
        assert_eq!(kernel_of("linux-image-6.1.0-50-cloud-amd64"), Some(kernels()[1].clone()));
        for other in [
            "linux-image-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-6.1.0-50-cloud-amd64-dbg",
            "linux-image-6.1.0-50-amd64",
        ] {
            assert_eq!(kernel_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_series_is_its_newest_and_a_version_is_itself() {
        let kernels = kernels();
        let found = |name| newest(&kernels, name).map(Kernel::name);
        assert_eq!(found("debian-6.1").as_deref(), Some("debian-6.1.0-50"));
        assert_eq!(found("debian-6.1.0-9").as_deref(), Some("debian-6.1.0-9"));
        assert_eq!(found("debian-6.12").as_deref(), Some("debian-6.12.113+deb12"));
        assert_eq!(found("debian-6.3"), None);
        assert_eq!(found("6.1"), None);
    }
}
